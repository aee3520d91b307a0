"""What is on the shelf: exporting and publishing models, the room that things take, freeing it, and whether all is sound."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from kitchen_resources.blobs.listing import Uploads
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.blobs.resource import default_store, open_store
from kitchen_resources.blobs.workplace import remove_abandoned, workplace
from kitchen_resources.checkpoints.head import CheckpointEntry, Head
from kitchen_resources.checkpoints.lease import acquire, is_free
from kitchen_resources.checkpoints.retention import payload_to_keep
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.errors import BlobError, ConfigError, LeaseHeld, RegistryError
from kitchen_resources.hub.push import Pushed, push_folder
from kitchen_resources.registry.card import model_card
from kitchen_resources.registry.port import PREVIOUS, PRODUCTION, ModelRegistry, ModelVersion
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.storage.collection import collect
from kitchen_resources.storage.room import Storage, measure
from kitchen_resources.storage.verification import Finding, verify_store
from kitchen_resources.training.exporting import export_stored_checkpoint
from kitchen_resources.training.model_files import write_model_folder

_BROKEN_OFF_S = 24 * 3600.0
"""Uploads that were begun longer ago than this, in seconds, are given up: parts of them are paid for."""

_DEFAULTS = {"keep_last": 1, "grace_hours": 24, "launch_days": 30}


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
    version = _version(StoreRegistry(store), name, which, "export")
    if (version.model.kind == "adapter") == (not merged):
        return write_model_folder(checkpoints.content, version.model, folder)
    return export_stored_checkpoint(checkpoints, version.fingerprint, version.step, folder, merged=merged)


def push(
    source: str,
    repo_id: str,
    *,
    private: bool = True,
    branch: str = "main",
    merged: bool = True,
    blobs: BlobStore | None = None,
    registry: ModelRegistry | None = None,
) -> Pushed:
    """Publish a registered version on a hub, with a model card of what was measured and what it is made of.

    The token is huggingface_hub's own (`HF_TOKEN`, or `hf auth login`).

    Args:
        source: A registered version, `name@3`, `name@candidate` or `name@production`.
        repo_id: `organisation/name`; made when it isn't there.
        private: Whether only its members see a repository that is made now.
        branch: Branch to push to; made when it isn't there.
        merged: Whole weights; else the LoRA adapter alone.
        blobs: The store; by default the one that runs use.
        registry: Where model versions are; by default in the store.

    Raises:
        ConfigError: There is no such version, or `repo_id` isn't the name of a repository.
        RegistryError: There is no such version.
        HubError: The hub refuses it, or is away.
    """
    store = blobs or open_store(default_store())
    name, _, which = source.partition("@")
    version = _version(registry or StoreRegistry(store), name, which, "push")
    if version.simulated:
        raise ConfigError("is simulated and has no weights", where=source, fix="train it with a real backend")
    with workplace(store.scratch(), "push") as place:
        folder = export(f"{name}@{version.version}", place / "model", merged, blobs=store)
        card = model_card(version, kind="merged" if merged else "adapter")
        (folder / "README.md").write_text(card, encoding="utf-8")
        message = f"{name}, version {version.version} (run {version.fingerprint[:12]}, step {version.step})"
        return push_folder(folder, repo_id, branch=branch, private=private, message=message)


@dataclass(frozen=True)
class Moved:
    """What is in production now, and what was before.

    Attributes:
        model: Name of the model.
        version: In production now.
        before: In production until now.
    """

    model: str
    version: int
    before: int

    def __str__(self) -> str:
        return f"version {self.version} of {self.model} is in production, and no longer version {self.before}"


def rollback(
    model: str,
    *,
    to: int | None = None,
    blobs: BlobStore | None = None,
    registry: ModelRegistry | None = None,
) -> Moved:
    """Point `production` of a model back to the version that was there before, or to another one. No gate is asked.

    Args:
        model: Name of the model, the recipe's.
        to: Version to go back to; by default the one before, which `model@previous` names.
        blobs: The store; by default the one that runs use.
        registry: Where model versions are; by default in the store.

    Raises:
        RegistryError: Nothing is in production, nothing was before, or there is no such version.
    """
    versions = registry or StoreRegistry(blobs or open_store(default_store()))
    before = versions.alias(model, PRODUCTION)
    if before is None:
        raise RegistryError("has nothing in production", where=f"model {model}", fix=f"run the job {model}_promote")
    target = versions.alias(model, PREVIOUS) if to is None else to
    if target is None or target == before:
        raise RegistryError(
            f"has nothing to go back to from version {before}", where=f"model {model}", fix="name a version: to=…"
        )
    versions.move_alias(model, PRODUCTION, target, expected=before)
    return Moved(model, target, before)


@dataclass(frozen=True)
class Pruned:
    """What pruning freed, or would free.

    Attributes:
        runs: Steps whose payload was deleted, by fingerprint. Runs that are being trained are left alone.
        payload_bytes: Size of that payload; files that several checkpoints share are counted with each.
        blobs: Blobs deleted that nothing names.
        bytes: Their size.
        marked: Blobs that nothing names, marked now: a later call deletes them.
        waiting: Blobs that were marked before, and are not due yet.
        notes: Notes removed of launches that are long over.
        uploads: Uploads given up that had broken off.
        held_back: Why no blob was deleted although it may have been due, or "".
        uploads_left: Why uploads that had broken off were not looked for, or "".
        dry_run: Whether nothing was changed.
    """

    runs: Mapping[str, list[int]]
    payload_bytes: int = 0
    blobs: int = 0
    bytes: int = 0
    marked: int = 0
    waiting: int = 0
    notes: int = 0
    uploads: int = 0
    held_back: str = ""
    uploads_left: str = ""
    dry_run: bool = False

    def lines(self) -> list[str]:
        """The same as sentences."""
        did, was = ("would be", "would be") if self.dry_run else ("were", "was")
        payload = [
            f"run {run[:12]}: the payload at step {_listed(steps)} {was} deleted" for run, steps in self.runs.items()
        ]
        said = [
            *payload,
            f"{self.blobs} blobs that nothing names ({self.bytes} bytes) {did} deleted, {self.marked} {did} marked, "
            f"{self.waiting} marked ones are not due yet",
            f"{self.notes} notes of launches that are over {did} removed",
        ]
        if self.uploads:
            said.append(f"{self.uploads} uploads that had broken off were given up")
        if self.uploads_left:
            said.append(f"uploads that had broken off were left: {self.uploads_left}")
        if self.held_back:
            said.append(
                f"no blob is deleted: {self.held_back}; restore it from a backup, see kitchen_assets.verify()"
            )
        return said

    def __str__(self) -> str:
        return "\n".join(self.lines())


def storage(blobs: BlobStore | None = None) -> Storage:
    """The runs in the store, those with the largest checkpoints first, and what else takes room in it."""
    return measure(blobs or open_store(default_store()))


def verify(run: str = "", *, blobs: BlobStore | None = None) -> list[Finding]:
    """Read everything that the store's heads, manifests, versions and aliases name, and compare it with its digest.

    Changes nothing. From a bucket all of it is downloaded, a file at a time.

    Args:
        run: First digits of a fingerprint; everything in the store when empty.
        blobs: The store; by default the one that runs use.

    Returns:
        What is damaged or missing, each with who needs it; empty when all is sound.

    Raises:
        ConfigError: No run starts with those digits.
    """
    store = blobs or open_store(default_store())
    if run:
        _find(CheckpointStore(store), run, "verify")
    return verify_store(store, run)


def prune(
    run: str = "",
    *,
    keep_last: int | None = 1,
    grace_hours: float = 24.0,
    launch_days: float = 30.0,
    dry_run: bool = False,
    blobs: BlobStore | None = None,
    registry: ModelRegistry | None = None,
) -> Pruned:
    """Free room: delete the payload of old checkpoints, and what nothing in the store names.

    Records, and what a model version was made of, stay. What nothing names is only marked by this call, and deleted by
    a later one, when the grace period is over: who has just stored it may be about to name it.

    Of a run of which no version is registered, the newest checkpoint and the best by each metric that was measured stay
    too: it goes on from the one, and its model may be another.

    Args:
        run: First digits of a fingerprint, and then only the payload of such runs; all runs and all garbage when empty.
        keep_last: Newest checkpoints of each run to keep whole; None to keep all.
        grace_hours: How long what nothing names stays marked before it is deleted. With less than the default be sure
            that nothing else is at work in the store.
        launch_days: Age from which on the notes of a launch that is over are removed.
        dry_run: Change nothing, and say what would be done.
        blobs: The store; by default the one that runs use.
        registry: Where model versions are; by default in the store.

    Raises:
        ConfigError: No run starts with those digits, or a number is negative.
        CheckpointError: The head of a run can't be read.
    """
    _require_bounds(keep_last=keep_last, grace_hours=grace_hours, launch_days=launch_days)
    store = blobs or open_store(default_store())
    checkpoints = CheckpointStore(store)
    found = _find(checkpoints, run, "prune")
    protected = (registry or StoreRegistry(store)).protected_manifests()
    steps: dict[str, list[int]] = {}
    size = 0
    if keep_last is not None:
        for fingerprint in found:
            entries = _prune_run(checkpoints, fingerprint, keep_last, protected, dry_run=dry_run)
            if entries:
                steps[fingerprint] = [entry.step for entry in entries]
                size += sum(entry.bytes for entry in entries)
    pruned = Pruned(runs=steps, payload_bytes=size, dry_run=dry_run)
    if run:
        return pruned
    collected = collect(
        store,
        grace_s=grace_hours * 3600,
        launch_age_s=launch_days * 24 * 3600,
        protected=protected,
        dry_run=dry_run,
    )
    uploads, uploads_left = (0, "") if dry_run else _clear_leftovers(store)
    return replace(
        pruned,
        blobs=len(collected.deleted),
        bytes=sum(collected.deleted.values()),
        marked=collected.marked,
        waiting=collected.waiting,
        notes=collected.notes,
        uploads=uploads,
        held_back=collected.held_back,
        uploads_left=uploads_left,
    )


def _prune_run(
    checkpoints: CheckpointStore, fingerprint: str, keep_last: int, protected: Set[str], *, dry_run: bool
) -> list[CheckpointEntry]:
    """Delete the payload of a run's old checkpoints; those that had it, or none when the run is being trained."""

    def keep(head: Head) -> set[int]:
        entries = head.entries()
        newest = keep_last if _has_version(entries, protected) else max(keep_last, 1)
        kept = payload_to_keep(entries, {}, metric="loss", keep_last=newest, keep_best=0, protected=protected)
        return kept if _has_version(entries, protected) else kept | _best_by_any(entries)

    if dry_run:
        head = checkpoints.head(fingerprint)
        kept = keep(head)
        if head.holder is not None and not is_free(head.holder):
            return []
        return [entry for entry in head.entries() if entry.payload == "present" and entry.step not in kept]
    try:
        lease = acquire(checkpoints.blobs, fingerprint, run="prune", wait_s=0)
    except LeaseHeld:
        return []
    try:
        steps = checkpoints.prune(lease, keep(lease.head), f"pruned by hand, keep_last {keep_last}")
        return [entry for entry in lease.head.entries() if entry.step in steps]
    finally:
        lease.release()


def _has_version(entries: Sequence[CheckpointEntry], protected: Set[str]) -> bool:
    return any(entry.manifest in protected for entry in entries)


def _best_by_any(entries: Sequence[CheckpointEntry]) -> set[int]:
    """The steps that are best by some metric: which one the recipe selects by is told when the run goes on."""
    names = {name for entry in entries for found in entry.evaluations.values() for name in found.metrics}
    best: set[int] = set()
    for metric in names:
        values = {
            entry.epoch: found.metrics[metric]
            for entry in entries
            for found in entry.evaluations.values()
            if entry.epoch_complete and metric in found.metrics
        }
        best |= payload_to_keep(entries, values, metric=metric, keep_last=0, keep_best=1, protected=set())
    return best


def _clear_leftovers(store: BlobStore) -> tuple[int, str]:
    """Remove the local folders of workers that are gone, and give up uploads that broke off.

    Returns:
        How many uploads, and why they couldn't be looked for: it takes permissions that nothing else needs.
    """
    remove_abandoned(store.scratch())
    if not isinstance(store, Uploads):
        return 0, ""
    try:
        return store.abort_uploads(_BROKEN_OFF_S), ""
    except BlobError as error:
        return 0, error.what


def _find(checkpoints: CheckpointStore, run: str, where: str) -> list[str]:
    found = checkpoints.find(run)
    if run and not found:
        raise ConfigError(f"no run starts with {run}", where=where, fix="see kitchen_assets.storage()")
    return found


def _require_bounds(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not number >= 0:
            raise ConfigError(f"is {number}, and must be at least 0", where=name, fix=f"{name}={_DEFAULTS[name]}")


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))


def _version(registry: ModelRegistry, name: str, which: str, where: str) -> ModelVersion:
    number = int(which) if which.isdecimal() else registry.alias(name, which)
    if number is None:
        raise ConfigError(f"model {name!r} has no alias {which!r}", where=where, fix=f"{name}@candidate, or a number")
    return registry.get(name, number)
