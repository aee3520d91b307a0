"""An order in the store: what is to be trained, who carries it out, what is said of it, and that it is over.

    orders/<fingerprint>/<number>/order.json      what to train; names by digest all that is needed
                                  call.json       the id of the call that was made for it
                                  claim.json      the id of the call that carries it out
                                  said/<number>.json   what that call says, in order
                                  stop.json       it is to stop at a step's end
                                  heard.json      up to which step its launchers have told of it
                                  over.json       how it ended; nothing is expected of it any more

All but `heard.json` are written once. What an order names by digest is kept from collections as long as it is there.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore, content_key
from kitchen_resources.blobs.garbage import spare
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import CheckpointError, FormatError

ORDERS = "orders/"
_KEPT = ("over.json", "call.json", "claim.json")


class OrderOver(BaseException):
    """Whoever follows an order has ended it; the call that carries it out is to end too."""


FORMAT = 1


@dataclass(frozen=True)
class Order:
    """One order.

    Args:
        blobs: The store.
        fingerprint: The run.
        number: From 1.
    """

    blobs: BlobStore
    fingerprint: str
    number: int

    @property
    def key(self) -> str:
        """What its objects' keys start with."""
        return f"{ORDERS}{self.fingerprint}/{self.number:06d}/"

    def put(self, name: str, value: Mapping[str, Any]) -> bool:
        """Write one of its objects; False when it was there."""
        return self.blobs.put_if_absent(f"{self.key}{name}.json", canonical_json(dict(value)))

    def get(self, name: str) -> dict[str, Any] | None:
        """One of its objects; None when it isn't there.

        Raises:
            FormatError: A later version wrote it.
        """
        stored = self.blobs.get(f"{self.key}{name}.json")
        if stored is None:
            return None
        value: dict[str, Any] = json.loads(stored.data)
        if value.get("format", FORMAT) > FORMAT:
            raise FormatError(
                f"was written by a later version (format {value['format']})",
                where=f"{self.key}{name}.json",
                fix="use that version",
            )
        return value

    def replace(self, name: str, value: Mapping[str, Any]) -> None:
        """Write an object that may be there already; only the holder of the run's lease does."""
        key = f"{self.key}{name}.json"
        stored = self.blobs.get(key)
        self.blobs.compare_and_swap(key, stored.version if stored else None, canonical_json(dict(value)))

    def say(self, number: int, messages: list[dict[str, Any]]) -> None:
        """Say something, as the call that carries it out.

        Raises:
            OrderOver: Nobody listens any more.
        """
        if self.get("over") is not None:
            raise OrderOver
        self.put(f"said/{number:08d}", {"messages": messages})

    def said(self, after: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """What was said after a number, in order and without a gap."""
        number = after + 1
        while (value := self.get(f"said/{number:08d}")) is not None:
            yield number, value["messages"]
            number += 1

    def end(self, how: str) -> None:
        """Note that it is over, and remove what is needed no more."""
        self.put("over", {"how": how})
        self.tidy()

    def tidy(self) -> None:
        """Remove what is needed no more of one that is over; also what a call has said since."""
        for key in list(self.blobs.list(self.key)):
            if key.removeprefix(self.key) not in _KEPT:
                self.blobs.delete(key)


def orders_of(blobs: BlobStore, fingerprint: str) -> list[Order]:
    """All orders of a run, in order."""
    prefix = f"{ORDERS}{fingerprint}/"
    numbers = {int(key.removeprefix(prefix).partition("/")[0]) for key in blobs.list(prefix)}
    return [Order(blobs, fingerprint, number) for number in sorted(numbers)]


def order_at(blobs: BlobStore, key: str) -> Order:
    """The order whose objects' keys start so."""
    _, fingerprint, number = key.strip("/").split("/")
    return Order(blobs, fingerprint, int(number))


def end_orders(blobs: BlobStore, fingerprint: str, how: str, say: Callable[[str], None]) -> None:
    """End the open orders of a run that needs them no more, and tell a person if there were any.

    Their calls see it at their next look at the store, and end.
    """
    found = [order for order in orders_of(blobs, fingerprint) if order.get("over") is None]
    for order in found:
        order.end(how)
    if found:
        say(f"ended an open order of this run: {how}")


def keep_file(content: ContentStore, path: Path, sha256: str) -> None:
    """Store a file of a known digest, unless it is there. Whoever reads it by its digest verifies it."""
    spare(content.blobs, sha256)
    if content.blobs.size(content_key(sha256)) != path.stat().st_size:
        content.put_file(path)


def fetch_files(content: ContentStore, files: Mapping[str, str], folder: Path) -> Path:
    """Bring files by name and digest into a folder, those that are missing there; every byte is verified."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
            raise CheckpointError(f"the file name {name!r} leads out of its folder", where="an order")
    for name, sha256 in files.items():
        target = folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{target.name}.draft")
            draft.unlink(missing_ok=True)
            content.get_file(sha256, draft)
            draft.rename(target)
    return folder
