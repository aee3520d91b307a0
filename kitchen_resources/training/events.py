"""What a session reports, made durable: steps to telemetry, checkpoints to the store; and who is told of it."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.checkpoints.lease import Lease
from kitchen_resources.checkpoints.manifest import Manifest
from kitchen_resources.checkpoints.store import RunRecord, local_checkpoint
from kitchen_resources.launch import Launch
from kitchen_resources.telemetry.port import METHOD_METRICS
from kitchen_resources.training.ledger import Steps, require_planned
from kitchen_resources.training.method_events import step_events
from kitchen_resources.training.port import CheckpointDraft, LocalCheckpoint, StepMetrics
from kitchen_resources.training.stopping import StopRequest

_OF_EPOCH = ("loss", "tokens", "tokens_per_second", "cost_usd")


class Observer(Protocol):
    """Who wants to know what a run does, such as Dagster's log and event stream."""

    def say(self, message: str) -> None:
        """A sentence for a person."""
        ...

    def published(self, entry: CheckpointEntry) -> None:
        """A checkpoint now exists."""
        ...


class PublishingEvents:
    """The `TrainingEvents` of one epoch.

    Args:
        launch: Who trains.
        lease: The right to publish.
        record: What the run's checkpoints have in common.
        parent: Where the epoch goes on from.
        inside: The parent's manifest when it lies inside this epoch.
        epoch: From 1.
        first_step: Global step of the epoch's first one.
        planned: The rows that its steps are to receive; None where the backend doesn't tell what they received.
        published: Told of each checkpoint.
        stop: Whether somebody asked for the run to stop.
        say: Tells a person.
    """

    def __init__(
        self,
        *,
        launch: Launch,
        lease: Lease,
        record: RunRecord,
        parent: LocalCheckpoint | None,
        inside: Manifest | None,
        epoch: int,
        first_step: int,
        planned: Steps | None,
        published: Callable[[CheckpointEntry, LocalCheckpoint], None],
        stop: StopRequest,
        say: Callable[[str], None],
    ) -> None:
        self._launch = launch
        self._lease = lease
        self._record = record
        self._parent = parent.state_digest if parent else ""
        self._epoch = epoch
        self._first_step = first_step
        self._planned = planned
        self._published = published
        self._stop = stop
        self._say = say
        self._inside = inside

    def step(self, metrics: StepMetrics) -> None:
        """See `TrainingEvents.step`."""
        self._lease.check()
        about = {**self._about(metrics.global_step), "total_steps": metrics.total_steps}
        telemetry = self._launch.ports.telemetry
        telemetry.emit(
            "training.step",
            {
                "loss": metrics.loss,
                "learning_rate": metrics.learning_rate,
                "grad_norm": metrics.grad_norm,
                "tokens": metrics.tokens,
                "tokens_per_second": metrics.tokens_per_second,
                "duration_s": metrics.seconds,
                "host_memory_bytes": metrics.host_memory_bytes,
                "device_memory_bytes": metrics.device_memory_bytes,
                **metrics.extra,
            },
            about,
        )
        place = metrics.global_step - self._first_step
        planned = self._planned or ()
        rows = len(planned[place]) if place < len(planned) else 0
        for event in step_events(self._launch.recipe, metrics, about, rows=rows, steps_before=place):
            telemetry.emit(*event)

    def stopping(self, *, exact: bool) -> bool:
        """See `TrainingEvents.stopping`."""
        if not self._stop.asked:
            return False
        if not exact:
            self._say("stopped on request; the next run goes on from the last published checkpoint")
            self._stop.stop()
        self._stop.take_time()
        return True

    def checkpoint(self, draft: CheckpointDraft) -> LocalCheckpoint:
        """See `TrainingEvents.checkpoint`; what received other rows than planned is refused.

        Raises:
            LedgerError: With the rows and their steps.
        """
        self._stop.take_time()
        started = time.monotonic()
        if self._planned is not None:
            require_planned(
                self._planned,
                draft.row_ids,
                epoch=self._epoch,
                first_step=self._first_step,
                complete=draft.epoch_complete,
            )
        entry = self._launch.checkpoints.publish(self._lease, draft, self._record, self._parent)
        local = local_checkpoint(draft.folder, draft, entry)
        self._parent = entry.state_digest
        self._launch.ports.telemetry.emit(
            "training.checkpoint",
            {"bytes": entry.bytes, "duration_s": time.monotonic() - started},
            {**self._about(draft.global_step), "state_digest": entry.state_digest},
        )
        self._published(entry, local)
        if self._stop.asked:
            self._say(f"stopped on request at step {entry.step}, which is published; the next run goes on from there")
            self._stop.stop()
        return local

    def check(self) -> None:
        """See `TrainingEvents.check`."""
        self._lease.check()

    def earlier_rows(self) -> Sequence[Sequence[int]]:
        """See `TrainingEvents.earlier_rows`."""
        store = self._launch.checkpoints
        return store.ledger(self._inside) if self._inside else []

    def earlier_steps(self) -> Sequence[StepMetrics]:
        """See `TrainingEvents.earlier_steps`."""
        store = self._launch.checkpoints
        return store.steps(self._inside) if self._inside else []

    def epoch_done(self, checkpoint: LocalCheckpoint, seconds: float) -> None:
        """Tell of the whole epoch."""
        entry = self._lease.head.at(checkpoint.global_step)
        if entry is None:
            return
        metrics = self._launch.checkpoints.manifest(entry).metrics
        self._launch.ports.telemetry.emit(
            "training.epoch",
            {
                "duration_s": seconds,
                **{name: metrics[name] for name in (*_OF_EPOCH, *METHOD_METRICS) if name in metrics},
            },
            self._about(checkpoint.global_step),
        )

    def _about(self, step: int) -> dict[str, object]:
        return {
            "recipe": self._record.recipe,
            "fingerprint": self._record.fingerprint,
            "epoch": self._epoch,
            "step": step,
        }
