"""Collecting garbage: blobs that nothing names are marked, and deleted by a later collection.

A blob is deleted when all of this holds:

- an earlier collection marked it, and the marker is older than the grace period when this one begins to look;
- this one looks through the whole store and finds nothing that names it;
- no run that was held when it was marked is still held by the same holder: those runs were looked at before the store,
  so that what a run published before it was given back is found;
- nobody has spared it since: this collection's claim of the marker is one compare-and-swap (`blobs/garbage.py`).

So a writer loses nothing if it names what it stores within the grace period, or holds a run's lease until it has. The
clocks of the machines must agree to well within the grace period, for it is reckoned by them.

A collection may be killed anywhere. What it leaves is a marker too many, or a claim without an owner, which the next
collection takes over; and of two at once each blob is deleted by one.
"""

import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from kitchen_resources.blobs.content import content_key
from kitchen_resources.blobs.garbage import (
    GARBAGE,
    PROMPT_S,
    HeldRun,
    Marker,
    StoredMarker,
    at_work,
    claimed,
    is_abandoned,
    marked,
    marker_key,
    put_marker,
    read_marker,
    spared,
    swap_marker,
)
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import Holder
from kitchen_resources.checkpoints.lease import is_free
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.storage.launches import old_launches, remove_launch
from kitchen_resources.storage.marking import Marking, mark

HEARTBEAT_S = 3600.0
"""A holder whose heartbeat stood still for this long, in seconds, is gone: it beats several times a minute."""


@dataclass(frozen=True)
class Collected:
    """What a collection did, or would do.

    Attributes:
        deleted: Size of each blob that was deleted, in bytes, by digest.
        marked: Blobs that were marked now.
        waiting: Blobs that were marked before and are not due yet.
        launches: Launches whose notes were removed.
        notes: Number of those notes.
        held_back: Why nothing was deleted although it may have been due, or "".
    """

    deleted: Mapping[str, int]
    marked: int
    waiting: int
    launches: tuple[str, ...]
    notes: int
    held_back: str


def collect(
    blobs: BlobStore,
    *,
    grace_s: float,
    launch_age_s: float,
    protected: Set[str] = frozenset(),
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
) -> Collected:
    """Mark what nothing names, and delete what was marked long enough ago.

    Args:
        blobs: The store.
        grace_s: How long a blob must have been marked, in seconds.
        launch_age_s: Age from which on the notes of a launch that is over are removed, in seconds.
        protected: Digests that are named elsewhere: manifests that a registry outside the store knows.
        dry_run: Change nothing.
        clock: Seconds since 1970.

    Raises:
        CheckpointError: A run's head can't be read.
        BlobError: The store failed; the next collection goes on.
    """
    held, runs = _held(blobs)
    old = old_launches(blobs, now=clock(), older_than_s=launch_age_s, held=runs)
    keys = [key for launch in old.values() for key in launch]
    notes = len(keys) if dry_run else sum(remove_launch(blobs, launch) for launch in old.values())
    began = clock()
    marking = mark(blobs, _required(blobs), named=protected, without=frozenset(keys))
    with at_work() as holder:
        sweep = _Sweep(blobs, marking, holder, held, began, grace_s, dry_run, clock)
        sweep.settle_markers()
        sweep.mark_new()
    return Collected(sweep.deleted, sweep.marked, sweep.waiting, tuple(old), notes, sweep.held_back)


class _Sweep:
    """What a collection does with the markers, once it knows what is alive."""

    def __init__(
        self,
        blobs: BlobStore,
        marking: Marking,
        holder: Holder,
        held: Mapping[str, HeldRun],
        began: float,
        grace_s: float,
        dry_run: bool,
        clock: Callable[[], float],
    ) -> None:
        self._blobs = blobs
        self._marking = marking
        self._holder = holder
        self._held = held
        self._began = began
        self._grace_s = grace_s
        self._dry_run = dry_run
        self._clock = clock
        # Looked at after the blobs were listed: a run that had stored one of them by then is among these, or has
        # published it and is over.
        self._held_since = tuple(_held(blobs)[0].values())
        self._known: set[str] = set()
        self.deleted: dict[str, int] = {}
        self.marked = 0
        self.waiting = 0
        self.held_back = "; ".join(marking.unsound)

    def settle_markers(self) -> None:
        """Bring every marker that is there a step further."""
        for key in self._blobs.list(GARBAGE):
            sha256 = key.removeprefix(GARBAGE)
            self._known.add(sha256)
            found = read_marker(self._blobs, sha256)
            if found is not None:
                self._settle(sha256, found)

    def mark_new(self) -> None:
        """Mark what nothing names and what has no marker yet."""
        for sha256 in self._marking.unreferenced():
            if sha256 in self._known:
                continue
            if self._dry_run or put_marker(self._blobs, sha256, self._new_marker()):
                self.marked += 1

    def _settle(self, sha256: str, found: StoredMarker) -> None:
        marker = found.marker
        if marker.state == "deleting":
            if is_abandoned(marker, self._clock()):
                self._finish(sha256, found)
            return
        if sha256 in self._marking.alive or sha256 not in self._marking.blobs:
            self._lift(sha256, found)
        elif marker.state == "spared":
            # Whoever spared it had time to name it: it is marked as if for the first time.
            if self._dry_run or swap_marker(self._blobs, sha256, found, self._new_marker()):
                self.marked += 1
        elif self._is_due(marker) and not self.held_back:
            self._delete(sha256, found)
        else:
            self.waiting += 1

    def _finish(self, sha256: str, found: StoredMarker) -> None:
        """Go on with what a collection that was killed had claimed."""
        if sha256 in self._marking.alive and sha256 in self._marking.blobs:
            self._lift(sha256, found)
        elif not self.held_back:
            self._delete(sha256, found)

    def _delete(self, sha256: str, found: StoredMarker) -> None:
        """Claim a blob and delete it; somebody who spares it at the same moment wins, or finds the claim and waits."""
        size = self._marking.blobs.get(sha256)
        if not self._dry_run:
            started = _Moment(self._clock)
            if not swap_marker(self._blobs, sha256, found, claimed(self._clock(), self._holder)):
                return
            for key in (content_key(sha256), marker_key(sha256)):
                if not started.is_recent():
                    return
                self._blobs.delete(key)
        if size is not None:
            self.deleted[sha256] = size

    def _lift(self, sha256: str, found: StoredMarker) -> None:
        """Take the marker away. Spared first: a delete has no condition, and could hit another collection's claim."""
        if self._dry_run:
            return
        started = _Moment(self._clock)
        if swap_marker(self._blobs, sha256, found, spared(self._clock())) and started.is_recent():
            self._blobs.delete(marker_key(sha256))

    def _is_due(self, marker: Marker) -> bool:
        if marker.at + self._grace_s > self._began:
            return False
        return not any(self._is_held(run, marker.at) for run in marker.held)

    def _is_held(self, run: HeldRun, since: float) -> bool:
        now = self._held.get(run.fingerprint)
        if now is None or now.token != run.token:
            return False
        return now.heartbeat != run.heartbeat or self._began - since < HEARTBEAT_S

    def _new_marker(self) -> Marker:
        return marked(self._clock(), self._held_since)


class _Moment:
    """When something was begun, by two clocks: one stands still while a machine sleeps, the other can be set."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = (clock(), time.monotonic())

    def is_recent(self) -> bool:
        """Whether it is so short a while ago that nobody else can have taken over."""
        wall, steady = self._at
        return abs(self._clock() - wall) < PROMPT_S and time.monotonic() - steady < PROMPT_S


def _held(blobs: BlobStore) -> tuple[dict[str, HeldRun], dict[str, str]]:
    """The training runs that are held now, and the Dagster runs that hold them, by fingerprint."""
    store = CheckpointStore(blobs)
    held: dict[str, HeldRun] = {}
    runs: dict[str, str] = {}
    for fingerprint in store.find(""):
        head = store.head(fingerprint)
        if head.holder is not None and not is_free(head.holder):
            held[fingerprint] = HeldRun(fingerprint, head.token, head.heartbeat)
            runs[fingerprint] = head.holder.run
    return held, runs


def _required(blobs: BlobStore) -> dict[str, str]:
    """The manifests of all checkpoints that exist, and who needs them: without one, what it names looks like garbage."""
    store = CheckpointStore(blobs)
    required: dict[str, str] = {}
    for fingerprint in store.find(""):
        for entry in store.head(fingerprint).entries():
            required[entry.manifest] = f"the manifest of run {fingerprint[:12]}, step {entry.step}"
    return required
