"""A session on a client with primitives: one epoch a call, always by a new client from its parent's verified files."""

import json
import math
import resource
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kitchen_resources.errors import BackendError, TrainingDiverged
from kitchen_resources.training.attempt import EpochAttempt, SavedState
from kitchen_resources.training.ledger import RowPlan
from kitchen_resources.training.loops import distillation, preference, reinforcement, supervised
from kitchen_resources.training.loops.frame import Batch, Clients, Epoch, StepDone
from kitchen_resources.training.plan import planned_rows
from kitchen_resources.training.port import (
    TRANSCRIPT,
    AdamParams,
    EpochResult,
    LocalCheckpoint,
    StepMetrics,
    TrainingClient,
    TrainingEvents,
    TrainingJob,
)

LOOPS: Mapping[str, Any] = {
    "supervised": supervised,
    "preference": preference,
    "reinforcement": reinforcement,
    "distillation": distillation,
}
"""The module of each method: `train` and `ALGORITHM_VERSION`."""

DESCRIBING = frozenset({"config.json", "generation_config.json"})
"""Files of a saved state that describe the model, and aren't the state."""

_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


class LoopSession:
    """See the module. What it keeps between epochs is no state: the rows, the environments, models that are only read.

    Args:
        job: What to train.
        clients: Opens clients of its models.
        exact_inside: Whether a run can go on exactly from inside an epoch.
    """

    def __init__(self, job: TrainingJob, clients: Clients, *, exact_inside: bool) -> None:
        import pyarrow.parquet

        self._job = job
        self._clients = clients
        self._exact_inside = exact_inside
        self._rows = pyarrow.parquet.read_table(job.data.path, memory_map=True)
        self._row_plan = RowPlan(job.recipe, job.plan, job.data)
        self._lives: dict[str, Any] = {}

    def train_epoch(self, epoch: int, parent: LocalCheckpoint | None, events: TrainingEvents) -> EpochResult:
        """See `Session.train_epoch`."""
        job = self._job
        attempt = EpochAttempt(job, epoch, events, self._row_plan.of_epoch(epoch), exact_inside=self._exact_inside)
        folder = job.scratch / f"epoch-{epoch}-{uuid.uuid4().hex[:8]}"
        try:
            with self._clients.errors(epoch), self._client(parent) as client:
                self._train(attempt, epoch, parent, client, folder)
        finally:
            # The folder of the parent goes only now: it may be the one that the last epoch published.
            for old in job.scratch.glob("epoch-*"):
                if old != folder:
                    shutil.rmtree(old, ignore_errors=True)
        if attempt.published is None or not attempt.published.epoch_complete:
            raise BackendError("the loop ended before the epoch did", where=f"epoch {epoch}")
        return EpochResult(attempt.published, attempt.steps_done)

    def export(self, checkpoint: LocalCheckpoint, target: Path, *, merged: bool) -> None:
        """See `Session.export`."""
        from kitchen_resources.training.pytorch.export import export_model

        export_model(self._job.base, self._job.serving(), checkpoint, target, merged=merged)

    def close(self) -> None:
        """See `Session.close`."""
        lives, self._lives = self._lives, {}
        for held in lives.values():
            if hasattr(held, "close"):
                held.close()
        self._rows = None
        self._clients.close()

    @contextmanager
    def _client(self, parent: LocalCheckpoint | None) -> Iterator[TrainingClient]:
        client = self._clients.open()
        try:
            if parent is not None:
                client.load_state(parent.folder, weights_only=parent.restart == "weights").result()
            yield client
        finally:
            client.close()

    def _train(
        self, attempt: EpochAttempt, epoch: int, parent: LocalCheckpoint | None, client: TrainingClient, folder: Path
    ) -> None:
        job, plan = self._job, self._job.plan
        goes_on = parent is not None and parent.restart == "all" and parent.epoch == epoch
        done_before = parent.steps_into_epoch if parent is not None and goes_on else 0
        batches = self._batches(epoch, done_before)
        lines: list[Mapping[str, Any]] = []
        saved_at = started = time.monotonic()
        loop = LOOPS[job.recipe.method]
        noted = _RateNoted(client)
        for done in loop.train(Epoch(job, epoch, noted, self._clients, batches, self._lives)):
            seconds, started = time.monotonic() - started, time.monotonic()
            self._require_finite(done, epoch, noted.rate)
            lines += done.lines
            attempt.step(self._metrics(done, epoch, seconds, noted.rate), done.batch.row_ids())
            last = done.batch.step == plan.last_step(epoch)
            if last or self._is_due(done.batch.step, saved_at) or attempt.stopping():
                attempt.save(_saved(client, folder / f"state-{done.batch.step}", lines))
                saved_at = started = time.monotonic()

    def _batches(self, epoch: int, done: int) -> Iterator[Batch]:
        """The steps of an epoch that are left, each with its rows, which are read when it is their turn."""
        plan = self._job.plan
        first = (epoch - 1) * plan.steps_per_epoch + 1
        for place, indices in enumerate(planned_rows(self._job.recipe, plan, epoch)[done:], start=done):
            yield Batch(first + place, self._rows.take(indices).to_pylist() if indices else [])

    def _is_due(self, step: int, saved_at: float) -> bool:
        every, minutes = self._job.recipe.checkpoint_steps, self._job.recipe.checkpoint_minutes
        if every is not None and step % every == 0:
            return True
        return minutes is not None and time.monotonic() - saved_at >= 60 * minutes

    def _require_finite(self, done: StepDone, epoch: int, rate: float) -> None:
        if math.isfinite(done.loss) and math.isfinite(done.grad_norm):
            return
        what = "loss" if not math.isfinite(done.loss) else "gradient norm"
        value = done.loss if what == "loss" else done.grad_norm
        rows = done.batch.row_ids()
        shown = ", ".join(map(str, rows[:20])) + (f" and {len(rows) - 20} more" if len(rows) > 20 else "")
        raise TrainingDiverged(
            f"the {what} is {value} at learning rate {rate:g}; the rows of this step are {shown}",
            where=f"epoch {epoch}, step {done.batch.step}",
            fix="lower learning_rate, set max_grad_norm, or look at those rows; nothing of this epoch was published",
        )

    def _metrics(self, done: StepDone, epoch: int, seconds: float, rate: float) -> StepMetrics:
        plan = self._job.plan
        return StepMetrics(
            epoch=epoch,
            global_step=done.batch.step,
            total_steps=plan.total_steps,
            loss=done.loss,
            learning_rate=rate,
            grad_norm=done.grad_norm,
            tokens=done.tokens,
            seconds=seconds,
            host_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES,
            device_memory_bytes=self._clients.device_memory(),
            extra=dict(done.extra),
        )


class _RateNoted:
    """A client, and the learning rate of the last step that it was asked for: a stage of one's own may choose another."""

    def __init__(self, client: TrainingClient) -> None:
        self._client = client
        self.rate = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def optim_step(self, params: AdamParams) -> "Future[Mapping[str, float]]":
        """See `TrainingClient.optim_step`."""
        self.rate = params.learning_rate
        return self._client.optim_step(params)


def _saved(client: TrainingClient, folder: Path, lines: list[Mapping[str, Any]]) -> SavedState:
    """The client's state, written into a new folder."""
    external = client.save_state(folder).result()
    names = sorted(path.name for path in folder.iterdir())
    records = {}
    if lines:
        text = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
        records[TRANSCRIPT] = text.encode()
    return SavedState(
        folder=folder,
        state_files=[name for name in names if name not in DESCRIBING],
        other_files=[name for name in names if name in DESCRIBING],
        records=records,
        external=external,
    )
