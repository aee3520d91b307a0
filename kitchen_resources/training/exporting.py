"""The model of a finished run: exported once, kept in the store, and brought into a folder when it is wanted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore, StoredFile
from kitchen_resources.blobs.workplace import workplace
from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.checkpoints.lease import acquire
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.digests import canonical_json, digest_json
from kitchen_resources.errors import CheckpointError, FormatError
from kitchen_resources.launch import Launch
from kitchen_resources.registry.port import ModelFiles
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.training.base_models import resolve_base
from kitchen_resources.training.model_files import files_as_json, files_from_json
from kitchen_resources.training.port import BaseModel, LocalCheckpoint, Serving, TrainingJob
from kitchen_resources.training.registered import REGISTERED, registered_base

EXPORT_VERSION = 1
"""Raised by hand when the same checkpoint would be exported otherwise."""


def export_checkpoint(launch: Launch, job: TrainingJob, entry: CheckpointEntry, kind: str) -> ModelFiles:
    """The model of a checkpoint in the content store, exported unless it has been.

    Args:
        launch: The launch.
        job: The run.
        entry: Its checkpoint.
        kind: merged, adapter, or both (the adapter in the subfolder `adapter`).

    Raises:
        CheckpointError: The checkpoint was pruned; or it is damaged, and was quarantined.
    """
    template = job.data.extra.get("chat_template")
    asked = digest_json(
        {
            "version": EXPORT_VERSION,
            "state": entry.state_digest,
            "kind": kind,
            "base": job.base.digest,
            "template": template,
        }
    )
    key = f"models/{asked}.json"
    stored = launch.ports.blobs.get(key)
    if stored is not None:
        return files_from_json(json.loads(stored.data))
    with workplace(launch.ports.blobs.scratch(), "export") as scratch:
        checkpoint = _checkout(launch, job.fingerprint, entry, scratch / "checkpoint")
        session = launch.ports.trainer.session(job)
        target = scratch / "model"
        session.export(checkpoint, target, merged=kind != "adapter")
        if kind == "both":
            session.export(checkpoint, target / "adapter", merged=False)
        files = _store_folder(launch.content, target)
    model = ModelFiles(
        files=files, kind=kind, digest=digest_json({name: file.sha256 for name, file in files.items()})
    )
    launch.ports.blobs.put_if_absent(key, canonical_json(files_as_json(model)))
    return model


def note_model(launch: Launch, fingerprint: str, entry: CheckpointEntry, model: ModelFiles) -> None:
    """Note for the later stages of a launch which model it made."""
    launch.write(
        "model",
        {
            "fingerprint": fingerprint,
            "step": entry.step,
            "epoch": entry.epoch,
            "manifest": entry.manifest,
            "files": files_as_json(model),
        },
    )


def _checkout(launch: Launch, fingerprint: str, entry: CheckpointEntry, folder: Path) -> LocalCheckpoint:
    """A checkpoint as a local folder. A damaged one is quarantined: nothing else would make a finished run whole."""
    try:
        return launch.checkpoints.checkout(fingerprint, entry, folder)
    except CheckpointError as error:
        if entry.payload != "present" or isinstance(error, FormatError):
            raise
        lease = acquire(launch.ports.blobs, fingerprint, run=launch.run_id, wait_s=launch.recipe.lease_wait_s)
        try:
            launch.checkpoints.quarantine(lease, entry.step, str(error))
        finally:
            lease.release()
        raise CheckpointError(
            f"the checkpoint is damaged and was quarantined: {error}",
            where=f"run {fingerprint[:12]}, step {entry.step}",
            fix="run the recipe again: it is made again, or where later epochs were made the best of the others is taken",
        ) from error


def export_stored_checkpoint(
    checkpoints: CheckpointStore, fingerprint: str, step: int, target: Path, *, merged: bool
) -> Path:
    """Write the model of any stored checkpoint, long after its run and without its recipe.

    Args:
        checkpoints: The store.
        fingerprint: The run.
        step: The checkpoint's step.
        target: Folder to make.
        merged: Whole weights; else the LoRA adapter alone.

    Raises:
        CheckpointError: There is no such checkpoint, it is damaged, or its base isn't the one it was trained from.
    """
    where = f"run {fingerprint[:12]}"
    entry = checkpoints.head(fingerprint).at(step)
    if entry is None:
        steps = ", ".join(str(known.step) for known in checkpoints.head(fingerprint).entries()) or "none yet"
        raise CheckpointError(f"has no checkpoint at step {step}", where=where, fix=f"its checkpoints: {steps}")
    manifest = checkpoints.manifest(entry)
    if manifest.simulated:
        raise CheckpointError(
            "is simulated and has no weights", where=f"{where}, step {step}", fix="train it with a real backend"
        )
    scratch = checkpoints.blobs.scratch()
    base = _stored_base(checkpoints, manifest.base, scratch / "cache")
    if base.digest != manifest.base["digest"]:
        raise CheckpointError(
            f"its base {base.reference} is not what it was trained from", where=where, fix="restore that base model"
        )
    from kitchen_resources.training.pytorch.export import export_model

    with workplace(scratch, "export") as place:
        checkpoint = checkpoints.checkout(fingerprint, entry, place / "checkpoint")
        serving = Serving(**{**manifest.serving, "stop_token_ids": tuple(manifest.serving["stop_token_ids"])})
        export_model(base, serving, checkpoint, target, merged=merged)
    return target


def _stored_base(checkpoints: CheckpointStore, base: Mapping[str, Any], cache: Path) -> BaseModel:
    """The base that a checkpoint names: by its commit where it came from a hub, by its version from the registry."""
    reference: str = base["reference"]
    if reference.startswith(REGISTERED):
        return registered_base(reference, StoreRegistry(checkpoints.blobs), checkpoints.content, cache)
    return resolve_base(f"{reference.partition('@')[0]}@{base['revision']}" if base["revision"] else reference, cache)


def _store_folder(content: ContentStore, folder: Path) -> dict[str, StoredFile]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): content.put_file(path) for path in paths}
