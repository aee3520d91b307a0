"""What is on the shelf: exporting models, and the room that runs take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.blobs.resource import default_store, open_store
from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.checkpoints.lease import acquire, is_free
from kitchen_resources.checkpoints.retention import payload_to_keep
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.errors import CheckpointError, ConfigError, LeaseHeld
from kitchen_resources.registry.port import ModelVersion
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.training.exporting import export_stored_checkpoint
from kitchen_resources.training.model_files import write_model_folder


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


def export(source: str, target: str | Path, merged: bool = True, *, blobs: BlobStore | None = None) -> Path:
    """Write a model to a folder that plain transformers (or peft) loads.

    Args:
        source: A registered version, `name@3`, `name@candidate` or `name@production`; or a checkpoint,
            `FINGERPRINT@STEP` by the fingerprint's first digits.
        target: Folder to make.
        merged: Whole weights; else the LoRA adapter alone.
        blobs: The store; by default the one that runs use.

    Raises:
        ConfigError: There is no such version or checkpoint, or `target` exists.
        RegistryError: There is no such version.
        CheckpointError: It is damaged or was pruned.
    """
    store = blobs or open_store(default_store())
    folder = Path(target)
    if folder.exists():
        raise ConfigError("exists already", where=str(folder), fix="name a new folder")
    name, _, which = source.partition("@")
    if not name or not which:
        raise ConfigError(
            f"{source!r} names neither a version nor a checkpoint",
            where="export",
            fix="supervised@candidate, supervised@3, or 3f2a91c04b77@400",
        )
    checkpoints = CheckpointStore(store)
    runs = checkpoints.find(name) if len(name) >= 4 and set(name) <= set("0123456789abcdef") else []
    if len(runs) > 1 and which.isdecimal():
        raise ConfigError(
            f"{len(runs)} runs start with {name}",
            where="export",
            fix=f"give more digits: {', '.join(run[:16] for run in runs[:5])}",
        )
    if len(runs) == 1 and which.isdecimal():
        return export_stored_checkpoint(checkpoints, runs[0], int(which), folder, merged=merged)
    version = _version(StoreRegistry(store), name, which)
    if (version.model.kind == "adapter") == (not merged):
        return write_model_folder(checkpoints.content, version.model, folder)
    return export_stored_checkpoint(checkpoints, version.fingerprint, version.step, folder, merged=merged)


def storage(blobs: BlobStore | None = None) -> list[StoredRun]:
    """The runs in the store and the room that their checkpoints take, the largest first."""
    checkpoints = CheckpointStore(blobs or open_store(default_store()))
    return sorted(_stored_runs(checkpoints), key=lambda run: -run.bytes)


def prune(run: str = "", *, keep_last: int = 1, blobs: BlobStore | None = None) -> dict[str, list[int]]:
    """Delete the payload of old checkpoints; records, and what a model version was made of, stay.

    Args:
        run: First digits of a fingerprint; all runs that are not being trained when empty.
        keep_last: Newest checkpoints of each run to keep whole.
        blobs: The store; by default the one that runs use.

    Returns:
        The steps pruned, by fingerprint. Runs that are being trained are left alone.

    Raises:
        ConfigError: No run starts with those digits, or `keep_last` is negative.
    """
    if keep_last < 0:
        raise ConfigError(f"is {keep_last}, and must be at least 0", where="keep_last", fix="keep_last=1")
    store = blobs or open_store(default_store())
    checkpoints = CheckpointStore(store)
    protected = StoreRegistry(store).protected_manifests()
    pruned: dict[str, list[int]] = {}
    found = checkpoints.find(run)
    if run and not found:
        raise ConfigError(f"no run starts with {run}", where="prune", fix="see kitchen_assets.storage()")
    for fingerprint in found:
        try:
            lease = acquire(store, fingerprint, run="prune", wait_s=0)
        except LeaseHeld:
            continue
        try:
            keep = payload_to_keep(
                lease.head.entries(), {}, metric="loss", keep_last=keep_last, keep_best=0, protected=protected
            )
            steps = checkpoints.prune(lease, keep, f"pruned by hand, keep_last {keep_last}")
        finally:
            lease.release()
        if steps:
            pruned[fingerprint] = steps
    return pruned


def _version(registry: StoreRegistry, name: str, which: str) -> ModelVersion:
    number = int(which) if which.isdecimal() else registry.alias(name, which)
    if number is None:
        raise ConfigError(
            f"model {name!r} has no alias {which!r}", where="export", fix=f"{name}@candidate, or a number"
        )
    return registry.get(name, number)


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
