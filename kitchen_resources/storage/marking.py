"""Which blobs are alive: everything that an object of the store names, directly or through other blobs.

The roots are all objects outside `blobs/sha256/`. Every 64 hexadecimal digits in a root's key or bytes name a blob that
is alive, and the blobs that are alive are searched in turn, but for large ones, which hold weights or rows. So no format
has to be known, and a new kind of record can't be overlooked. Memory is flat but for the set of digests.
"""

import json
import mmap
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from kitchen_resources.blobs.content import CONTENT, content_key
from kitchen_resources.blobs.garbage import GARBAGE
from kitchen_resources.blobs.listing import list_sizes
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.digests import digest_bytes

SEARCHED_BYTES = 64 * 2**20
"""Blobs larger than this are not searched for digests: what names others is far smaller."""

_HEX = re.compile(rb"[0-9a-f]{64,}")
_PAYLOAD = re.compile(r"runs/[^/]+/payload/")


class Kind(IntEnum):
    """What a blob is for, by who names it; of several the lowest."""

    RECORD = 0
    MODEL = 1
    PREPARED = 2
    OTHER = 3


_KINDS = {
    "runs": Kind.RECORD,
    "models": Kind.MODEL,
    "registry": Kind.MODEL,
    "prepared": Kind.PREPARED,
    "derived": Kind.PREPARED,
}


@dataclass(frozen=True)
class Marking:
    """What a pass over the store found.

    Attributes:
        alive: What the digests that were found are for; also digests that name no blob.
        blobs: Size of every blob in the store, in bytes.
        roots: Number of roots, and their bytes.
        unsound: What can't be read of what names others: what it names may look like garbage.
    """

    alive: Mapping[str, Kind]
    blobs: Mapping[str, int]
    roots: tuple[int, int]
    unsound: tuple[str, ...]

    def unreferenced(self) -> Iterator[str]:
        """The blobs that nothing names."""
        return (sha256 for sha256 in self.blobs if sha256 not in self.alive)


def is_payload(key: str) -> bool:
    """Whether a key is that of a checkpoint's file, of which its run's head and manifests decide."""
    return _PAYLOAD.match(key) is not None


def mark(
    blobs: BlobStore,
    required: Mapping[str, str],
    *,
    named: Collection[str] = (),
    without: Collection[str] = (),
    searched_bytes: int = SEARCHED_BYTES,
) -> Marking:
    """Pass over the store.

    Roots are read first and blobs listed afterwards, so that what a root names is in the listing.

    Args:
        blobs: The store.
        required: What must be there and sound because it names others, and who needs it, by digest.
        named: Further digests that are taken to be named.
        without: Keys of roots that are taken not to be there.
        searched_bytes: See `SEARCHED_BYTES`.
    """
    alive: dict[str, Kind] = dict.fromkeys((*required, *named), Kind.RECORD)
    unsound: list[str] = []
    count = size = 0
    for key, key_size in list_sizes(blobs, ""):
        if key.startswith((CONTENT, GARBAGE)) or is_payload(key) or key in without:
            continue
        kind = _KINDS.get(key.partition("/")[0], Kind.OTHER)
        count, size = count + 1, size + key_size
        _note(alive, _digests(key.encode()), kind)
        _note(alive, _digests_of(blobs, key, key_size, unsound), kind)
    sizes = {key.removeprefix(CONTENT): size for key, size in list_sizes(blobs, CONTENT)}
    unsound += [
        f"{content_key(sha256)} ({who}) is missing" for sha256, who in required.items() if sha256 not in sizes
    ]
    waiting = [sha256 for sha256 in alive if sha256 in sizes]
    while waiting:
        sha256 = waiting.pop()
        if sizes[sha256] > searched_bytes:
            continue
        stored = blobs.get(content_key(sha256))
        if stored is None:
            continue
        if sha256 in required and digest_bytes(stored.data) != sha256:
            unsound.append(f"{content_key(sha256)} ({required[sha256]}) is damaged")
        for found in _digests(stored.data):
            if found in sizes and found not in alive:
                alive[found] = Kind.RECORD if alive[sha256] is Kind.RECORD else Kind.OTHER
                waiting.append(found)
    return Marking(alive, sizes, (count, size), tuple(unsound))


def _note(alive: dict[str, Kind], found: Iterator[str], kind: Kind) -> None:
    for sha256 in found:
        alive[sha256] = min(kind, alive.get(sha256, kind))


def _digests_of(blobs: BlobStore, key: str, size: int, unsound: list[str]) -> Iterator[str]:
    """The digests in a root. One that should be JSON and isn't may have named more than can be read."""
    if size > SEARCHED_BYTES:
        yield from _digests_of_large(blobs, key)
        return
    stored = blobs.get(key)
    if stored is None:
        return
    if key.endswith(".json") and not _is_json(stored.data):
        unsound.append(f"{key} is not JSON")
    yield from _digests(stored.data)


def _digests_of_large(blobs: BlobStore, key: str) -> Iterator[str]:
    copy = blobs.scratch() / f"search-{uuid.uuid4().hex}"
    try:
        blobs.get_file(key, copy)
        with copy.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from _digests(data)
    finally:
        copy.unlink(missing_ok=True)


def _digests(data: bytes | mmap.mmap) -> Iterator[str]:
    """Every 64 hexadecimal digits in a row; of a longer row each 64 of it."""
    for match in _HEX.finditer(data):
        text = match.group().decode()
        yield from (text[start : start + 64] for start in range(len(text) - 63))


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
