"""Markers of content that is about to be deleted, and how a writer takes content back that it relies on.

    garbage/<sha256>    one small object a blob that a collection found unreferenced; changed only by compare-and-swap

A marker is *marked* when a collection found its blob unreferenced, *deleting* when a later one has claimed the blob,
which it then deletes, and *spared* when a writer relies on the blob or something refers to it again. Every change is
a compare-and-swap, so that of a writer and a collection exactly one has its way:

    writer       look at the marker, and spare it where it is marked; only then store the blob, or find it stored
    collection   swap marked to deleting; only then delete the blob, and last the marker

A writer that finds *deleting* waits until the marker is gone, and stores its blob again. It looks at the marker first
and at the blob afterwards, never the other way round: a blob that was there before the look may be gone after it.
What is marked after the writer's look is protected by the grace period, see `storage/collection.py`.
"""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import Holder
from kitchen_resources.checkpoints.holder import is_gone, is_this_process, this_holder
from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import BlobError

FORMAT = 1
GARBAGE = "garbage/"

PROMPT_S = 60.0
"""A collection deletes what it claimed within this time, in seconds, or leaves it: nothing fences a late delete."""

ABANDONED_S = 24 * 3600.0
"""A claim of another host that is older than this, in seconds, is nobody's: far more than `PROMPT_S`."""

WAIT_S = 60.0
"""How long a writer waits for a collection to finish deleting the blob that it wants to store, in seconds."""

_POLL_S = 0.2

_at_work: set[str] = set()
"""The collections of this process that are going on; one that failed is not among them."""


@dataclass(frozen=True)
class HeldRun:
    """A run that was held when a blob was marked, told apart from its later holders and from a dead one.

    Attributes:
        fingerprint: The run.
        token: Number of the holder.
        heartbeat: Its sign of life at that time.
    """

    fingerprint: str
    token: int
    heartbeat: int


@dataclass(frozen=True)
class Marker:
    """See the module.

    Attributes:
        state: See the module.
        at: When it came into this state, in seconds since 1970 by the clock of who brought it there.
        nonce: Tells apart two markers that are equal otherwise, where a version is a digest of the bytes.
        held: Of a marked one: the runs that were being trained when it was marked.
        holder: Of a claimed one: the collection that deletes it.
    """

    state: Literal["marked", "deleting", "spared"]
    at: float
    nonce: str
    held: tuple[HeldRun, ...] = ()
    holder: Holder | None = None


@dataclass(frozen=True)
class StoredMarker:
    """A marker and its version."""

    marker: Marker
    version: str


def marker_key(sha256: str) -> str:
    """Key of a blob's marker."""
    return f"{GARBAGE}{sha256}"


def marked(now: float, held: Sequence[HeldRun]) -> Marker:
    """A marker of a blob that nothing refers to."""
    return Marker("marked", now, uuid.uuid4().hex, held=tuple(held))


def claimed(now: float, holder: Holder) -> Marker:
    """A marker of a blob that is being deleted."""
    return Marker("deleting", now, uuid.uuid4().hex, holder=holder)


def spared(now: float) -> Marker:
    """A marker of a blob that stays."""
    return Marker("spared", now, uuid.uuid4().hex)


def read_marker(blobs: BlobStore, sha256: str) -> StoredMarker | None:
    """The marker of a blob; None when it has none.

    Raises:
        BlobError: It is of another format, or none.
    """
    key = marker_key(sha256)
    stored = blobs.get(key)
    if stored is None:
        return None
    try:
        value: dict[str, Any] = json.loads(stored.data)
        if value.pop("format") != FORMAT:
            raise BlobError("is of another format", where=key, fix="upgrade crucible-kitchen")
        holder = value.pop("holder")
        held = tuple(HeldRun(**run) for run in value.pop("held"))
        marker = Marker(held=held, holder=Holder(**holder) if holder else None, **value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BlobError(
            f"is not a marker of a blob: {error!r}",
            where=key,
            fix="delete this object while nothing else uses the store",
        ) from error
    return StoredMarker(marker, stored.version)


def put_marker(blobs: BlobStore, sha256: str, marker: Marker) -> bool:
    """Mark a blob that has no marker; false when it has one by now."""
    return blobs.put_if_absent(marker_key(sha256), _encode(marker))


def swap_marker(blobs: BlobStore, sha256: str, found: StoredMarker, marker: Marker) -> bool:
    """Change a marker; false when somebody else did."""
    key, data = marker_key(sha256), _encode(marker)
    if blobs.compare_and_swap(key, found.version, data) is not None:
        return True
    # A swap whose answer was lost looks like a lost race; the nonce says whose it was.
    stored = blobs.get(key)
    return stored is not None and stored.data == data


def spare(blobs: BlobStore, sha256: str) -> None:
    """Take a blob back from a collection, before it is stored or relied on; waits while it is being deleted.

    Raises:
        BlobError: It is still being deleted after `WAIT_S`.
    """
    waited = 0.0
    while True:
        found = read_marker(blobs, sha256)
        if found is None or found.marker.state == "spared":
            return
        now = time.time()
        if found.marker.state == "marked" or is_abandoned(found.marker, now):
            if swap_marker(blobs, sha256, found, spared(now)):
                return
            continue
        if waited >= WAIT_S:
            raise BlobError(
                f"is being deleted by {_name(found.marker.holder)}, and was still after {WAIT_S:g} s",
                where=marker_key(sha256),
                fix="run again; should that process be gone, kitchen_assets.prune() finishes its work on its host "
                "at once, and elsewhere after a day",
                retriable=True,
            )
        _pause(_POLL_S)
        waited += _POLL_S


def is_abandoned(marker: Marker, now: float) -> bool:
    """Whether the collection that claimed a blob is known not to be at work on it any more."""
    holder = marker.holder
    if holder is None:
        return True
    if is_this_process(holder):
        return holder.id not in _at_work
    return is_gone(holder) or now - marker.at > ABANDONED_S


@contextmanager
def at_work() -> Iterator[Holder]:
    """A collection of this process, for as long as it is going on."""
    holder = this_holder("collection")
    _at_work.add(holder.id)
    try:
        yield holder
    finally:
        _at_work.discard(holder.id)


def _encode(marker: Marker) -> bytes:
    return canonical_json({"format": FORMAT, **asdict(marker)})


def _pause(seconds: float) -> None:
    time.sleep(seconds)


def _name(holder: Holder | None) -> str:
    return f"process {holder.pid} on {holder.host.split('/')[0]}" if holder else "nobody"
