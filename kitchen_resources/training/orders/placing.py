"""An epoch as an order, and back: a job by digests instead of paths."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.blobs.derived import DerivedStore
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.digests import digest_file
from kitchen_resources.errors import CheckpointError
from kitchen_resources.training.orders.order import FORMAT, fetch_files, keep_file
from kitchen_resources.training.port import (
    BaseModel,
    LocalCheckpoint,
    StepMetrics,
    TrainingEvents,
    TrainingJob,
)
from kitchen_resources.training.worker.job_file import (
    checkpoint_from,
    checkpoint_value,
    job_from,
    job_value,
    steps_from,
)

Value = dict[str, Any]


class Orderer:
    """Makes orders of a job's epochs, and stores what they need.

    Args:
        blobs: The store.
        job: What to train.
        exact_inside: Whether a run can go on exactly from inside an epoch.
    """

    def __init__(self, blobs: BlobStore, job: TrainingJob, *, exact_inside: bool) -> None:
        self._content = ContentStore(blobs)
        self._store = CheckpointStore(blobs)
        self._job = job
        self._exact_inside = exact_inside

    def order(self, epoch: int, parent: LocalCheckpoint | None, events: TrainingEvents) -> Value:
        """The order for one epoch; all that it names is in the store when this returns."""
        job = self._job
        data = digest_file(job.data.path)
        keep_file(self._content, job.data.path, data)
        for model in (job.base, *job.models.values()):
            self._keep_model(model)
        return {
            "format": FORMAT,
            "job": job_value(job),
            "data": data,
            "exact_inside": self._exact_inside,
            "epoch": epoch,
            "parent": checkpoint_value(parent),
            "parent_from": self._parent(parent),
            "earlier_rows": self._content.put_json([list(rows) for rows in events.earlier_rows()]),
            "earlier_steps": self._content.put_json([vars(step) for step in events.earlier_steps()]),
        }

    def _keep_model(self, model: BaseModel) -> None:
        assert model.folder is not None
        for name, sha256 in model.files.items():
            keep_file(self._content, model.folder / name, sha256)

    def _parent(self, parent: LocalCheckpoint | None) -> Value | None:
        """Where the parent's files are: a checkpoint of the run, or of another one, whose files are stored for it."""
        if parent is None:
            return None
        for entry in self._store.head(self._job.fingerprint).entries():
            if entry.state_digest == parent.state_digest and entry.payload == "present":
                return {"step": entry.step}
        files = {path.name: digest_file(path) for path in sorted(parent.folder.iterdir()) if path.is_file()}
        for name, sha256 in files.items():
            keep_file(self._content, parent.folder / name, sha256)
        return {"files": files}


def ordered_job(blobs: BlobStore, order: Mapping[str, Any], folder: Path) -> TrainingJob:
    """The job of an order, on the machine that carries it out.

    Args:
        blobs: The store.
        order: What `Orderer.order` gave.
        folder: For the files that are fetched: models by their digest, so that a later order finds them.
    """
    content = ContentStore(blobs)
    job = job_from(order["job"])
    rows = fetch_files(content, {f"{order['data']}.parquet": order["data"]}, folder / "data")
    return replace(
        job,
        base=_fetched(content, job.base, folder),
        models={role: _fetched(content, model, folder) for role, model in job.models.items()},
        data=replace(job.data, path=rows / f"{order['data']}.parquet"),
        scratch=folder / "scratch",
        derived=DerivedStore(content),
        blobs=blobs,
    )


def ordered_parent(blobs: BlobStore, order: Mapping[str, Any], target: Path) -> LocalCheckpoint | None:
    """The checkpoint that an order goes on from.

    Raises:
        CheckpointError: It isn't in the store any more.
    """
    parent, place = checkpoint_from(order["parent"]), order["parent_from"]
    if parent is None:
        return None
    if "files" in place:
        return replace(parent, folder=fetch_files(ContentStore(blobs), place["files"], target))
    store, fingerprint = CheckpointStore(blobs), order["job"]["fingerprint"]
    entry = store.head(fingerprint).at(place["step"])
    if entry is None or entry.state_digest != parent.state_digest:
        raise CheckpointError(
            "the checkpoint to go on from is there no more", where=f"run {fingerprint[:12]}, step {place['step']}"
        )
    return replace(parent, folder=store.checkout(fingerprint, entry, target).folder)


def earlier(blobs: BlobStore, order: Mapping[str, Any]) -> tuple[list[list[int]], list[StepMetrics]]:
    """The rows and metrics of the epoch's steps that the parent holds already."""
    content = ContentStore(blobs)
    rows: list[list[int]] = json.loads(content.get(order["earlier_rows"]))
    return rows, steps_from(json.loads(content.get(order["earlier_steps"])))


def _fetched(content: ContentStore, model: BaseModel, folder: Path) -> BaseModel:
    return replace(model, folder=fetch_files(content, model.files, folder / "models" / model.digest))
