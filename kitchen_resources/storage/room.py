"""What takes room in the store. Reads heads, manifests and listings, never a checkpoint's files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from kitchen_resources.blobs.listing import list_sizes
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.checkpoints.lease import is_free
from kitchen_resources.checkpoints.store import CheckpointStore, payload_key
from kitchen_resources.errors import CheckpointError
from kitchen_resources.storage.marking import Kind, Marking, is_payload, mark

_SEARCHED_BYTES = 2**20
"""A collection searches larger blobs too before it deletes anything; here a manifest's size is enough."""


@dataclass(frozen=True)
class StoredRun:
    """A run in the store.

    Attributes:
        recipe: Name of the recipe.
        fingerprint: Identity of the run.
        checkpoints: Checkpoints that exist.
        whole: How many of them have their payload.
        bytes: Size of those payloads.
        ended: completed, early_stop, or "" while it isn't over.
        held_by: Run that trains it now, or "".
    """

    recipe: str
    fingerprint: str
    checkpoints: int
    whole: int
    bytes: int
    ended: str
    held_by: str


@dataclass(frozen=True)
class Room:
    """A number of objects and their size in bytes."""

    objects: int = 0
    bytes: int = 0

    def __add__(self, other: "Room") -> "Room":
        return Room(self.objects + other.objects, self.bytes + other.bytes)


@dataclass(frozen=True)
class Storage(Sequence[StoredRun]):
    """What takes room in the store; as a sequence, its runs.

    Attributes:
        runs: The runs, the one with the largest payload first.
        payload: The files that training goes on from, of all runs.
        models: Exported models.
        prepared: Prepared data, and what follows from it.
        records: Manifests, ledgers, step metrics, evaluations, versions, heads and notes.
        garbage: What nothing needs, here or among the payload: `prune` frees it, some of it in a later call.
    """

    runs: tuple[StoredRun, ...]
    payload: Room
    models: Room
    prepared: Room
    records: Room
    garbage: Room

    @property
    def bytes(self) -> int:
        """Size of everything in the store."""
        return (self.payload + self.models + self.prepared + self.records + self.garbage).bytes

    def __len__(self) -> int:
        return len(self.runs)

    @overload
    def __getitem__(self, index: int) -> StoredRun: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[StoredRun]: ...

    def __getitem__(self, index: int | slice) -> StoredRun | Sequence[StoredRun]:
        return self.runs[index]

    def __str__(self) -> str:
        lines = [
            f"{run.fingerprint[:12]}  {run.recipe:<16} {run.whole:>3} of {run.checkpoints:>3} checkpoints "
            f"{_mib(run.bytes):>12}  {f'in training by {run.held_by}' if run.held_by else run.ended}".rstrip()
            for run in self.runs
        ]
        for name in ("payload", "models", "prepared", "records", "garbage"):
            room: Room = getattr(self, name)
            lines.append(f"{name:<12} {room.objects:>8} objects {_mib(room.bytes):>12}")
        return "\n".join(lines)


def measure(blobs: BlobStore) -> Storage:
    """What takes room in a store.

    Raises:
        CheckpointError: A run's head can't be read.
    """
    checkpoints = CheckpointStore(blobs)
    runs = sorted(_stored_runs(checkpoints), key=lambda run: -run.bytes)
    payload, leftover = _payload(checkpoints)
    marking = mark(blobs, {}, searched_bytes=_SEARCHED_BYTES)
    by_kind = _by_kind(marking)
    garbage = [Room(1, marking.blobs[sha256]) for sha256 in marking.unreferenced()]
    return Storage(
        runs=tuple(runs),
        payload=payload,
        models=by_kind[Kind.MODEL],
        prepared=by_kind[Kind.PREPARED],
        records=by_kind[Kind.RECORD] + by_kind[Kind.OTHER] + Room(*marking.roots),
        garbage=sum(garbage, leftover),
    )


def _by_kind(marking: Marking) -> dict[Kind, Room]:
    found = dict.fromkeys(Kind, Room())
    for sha256, size in marking.blobs.items():
        if sha256 in marking.alive:
            kind = marking.alive[sha256]
            found[kind] = found[kind] + Room(1, size)
    return found


def _payload(checkpoints: CheckpointStore) -> tuple[Room, Room]:
    """The payload that checkpoints need, or that is being published, and what dead attempts left."""
    needed: set[str] = set()
    held: set[str] = set()
    for fingerprint in checkpoints.find(""):
        head = checkpoints.head(fingerprint)
        if head.holder is not None and not is_free(head.holder):
            held.add(fingerprint)
        for entry in head.entries():
            if entry.payload == "present":
                needed |= _files_of(checkpoints, fingerprint, entry, held)
    used = leftover = Room()
    for key, size in list_sizes(checkpoints.blobs, "runs/"):
        if not is_payload(key):
            continue
        if key in needed or key.split("/")[1] in held:
            used += Room(1, size)
        else:
            leftover += Room(1, size)
    return used, leftover


def _files_of(checkpoints: CheckpointStore, fingerprint: str, entry: CheckpointEntry, held: set[str]) -> set[str]:
    try:
        manifest = checkpoints.manifest(entry)
    except CheckpointError:
        # What it needs can't be known, so none of the run's files is garbage.
        held.add(fingerprint)
        return set()
    return {payload_key(fingerprint, manifest.token, file.sha256) for file in manifest.files.values()}


def _stored_runs(checkpoints: CheckpointStore) -> Iterator[StoredRun]:
    for fingerprint in checkpoints.find(""):
        head = checkpoints.head(fingerprint)
        entries = head.entries()
        whole = [entry for entry in entries if entry.payload == "present"]
        yield StoredRun(
            recipe=_recipe_of(checkpoints, entries),
            fingerprint=fingerprint,
            checkpoints=len(entries),
            whole=len(whole),
            bytes=sum(entry.bytes for entry in whole),
            ended=head.end.reason if head.end else "",
            held_by=head.holder.run if head.holder and not is_free(head.holder) else "",
        )


def _recipe_of(checkpoints: CheckpointStore, entries: Sequence[CheckpointEntry]) -> str:
    for entry in entries:
        try:
            return checkpoints.manifest(entry).recipe
        except CheckpointError:
            # Damaged; the other runs are to be seen all the same.
            continue
    return ""


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
