"""One epoch as it is trained, whatever the backend: what it received, did and published."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kitchen_resources.errors import CheckpointError
from kitchen_resources.training.ledger import require_planned
from kitchen_resources.training.port import (
    CheckpointDraft,
    ExternalState,
    LocalCheckpoint,
    StepMetrics,
    TrainingEvents,
    TrainingJob,
)


@dataclass(frozen=True)
class SavedState:
    """A checkpoint as just written.

    Attributes:
        folder: Folder of its files.
        state_files: Names of those that are the state.
        other_files: Names of those beside them.
        records: What else is to stay on record of the epoch, by file name.
        external: What of the state a remote service keeps.
    """

    folder: Path
    state_files: Sequence[str]
    other_files: Sequence[str]
    records: Mapping[str, bytes]
    external: Sequence[ExternalState] = ()


class EpochAttempt:
    """What one call of `train_epoch` has received, done and published."""

    def __init__(
        self, job: TrainingJob, epoch: int, events: TrainingEvents, expected: list[list[int]], *, exact_inside: bool
    ) -> None:
        self._job = job
        self._exact_inside = exact_inside
        self._epoch = epoch
        self._events = events
        self._expected = expected
        self._rows = [list(step) for step in events.earlier_rows()]
        self._steps = list(events.earlier_steps())
        self.steps_done = 0
        self.published: LocalCheckpoint | None = None
        self._drafted: Path | None = None
        self._started_at = (epoch - 1) * job.plan.steps_per_epoch

    def step(self, metrics: StepMetrics, rows: list[int]) -> None:
        """An optimiser step is done."""
        self._rows.append(rows)
        self._steps.append(metrics)
        self.steps_done += 1
        self._require_planned_rows(metrics.global_step)
        self._events.step(metrics)

    def stopping(self) -> bool:
        """Whether the step that has just ended is to be saved, because the run is to stop."""
        return self._events.stopping(exact=self._exact_inside)

    def save(self, saved: SavedState) -> LocalCheckpoint:
        """A checkpoint's files are written."""
        into_epoch = len(self._rows)
        step = self._started_at + into_epoch
        complete = step == self._job.plan.last_step(self._epoch)
        draft = CheckpointDraft(
            folder=saved.folder,
            state_files=saved.state_files,
            other_files=saved.other_files,
            epoch=self._epoch,
            global_step=step,
            steps_into_epoch=into_epoch,
            epoch_complete=complete,
            row_ids=[list(step) for step in self._rows],
            metrics=epoch_metrics(self._steps),
            steps=list(self._steps),
            records=saved.records,
            external=saved.external,
        )
        self.published = self._events.checkpoint(draft)
        if self._drafted is not None:
            # The files of the one before are the store's now; a link here would keep the space of what is pruned.
            shutil.rmtree(self._drafted, ignore_errors=True)
        self._drafted = saved.folder
        return self.published

    def _require_planned_rows(self, global_step: int) -> None:
        """As soon as a step is done, and not only when its epoch would be published."""
        index = len(self._rows) - 1
        if global_step != self._started_at + index + 1:
            raise CheckpointError(
                f"the trainer counts it as step {global_step}",
                where=f"epoch {self._epoch}, step {self._started_at + index + 1}",
                fix="report this: the trainer did not go on from where the checkpoint ends",
            )
        # The steps before it were looked at in their turn.
        if index >= len(self._expected) or sorted(self._rows[index]) != sorted(self._expected[index]):
            require_planned(self._expected, self._rows, epoch=self._epoch, first_step=self._started_at + 1)


def epoch_metrics(steps: list[StepMetrics]) -> dict[str, float]:
    """Numbers of an epoch so far: loss as the mean per trained token, sums of tokens and seconds, peaks of memory.

    What else the method logs is the mean over the steps that have it.
    """
    further: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.extra.items():
            further.setdefault(name, []).append(value)
    tokens = sum(step.tokens for step in steps)
    seconds = sum(step.seconds for step in steps)
    weighted = sum(step.loss * step.tokens for step in steps)
    return {
        **{name: math.fsum(values) / len(values) for name, values in further.items()},
        "loss": weighted / tokens if tokens else steps[-1].loss,
        "last_loss": steps[-1].loss,
        "learning_rate": steps[-1].learning_rate,
        "grad_norm": steps[-1].grad_norm,
        "tokens": float(tokens),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "peak_host_memory_bytes": float(max(step.host_memory_bytes for step in steps)),
        "peak_device_memory_bytes": float(max(step.device_memory_bytes for step in steps)),
    }
