"""What a run's head says about how far it is: what is made, due, to be kept and chosen."""

from typing import Literal

from kitchen_resources.checkpoints.head import CheckpointEntry, Head, RunEnd
from kitchen_resources.checkpoints.retention import payload_to_keep
from kitchen_resources.errors import CheckpointError
from kitchen_resources.evaluation.checkpoints import CheckpointEvaluations
from kitchen_resources.formulas.selection import best_epoch, early_stop_epoch
from kitchen_resources.launch import Launch
from kitchen_resources.training.plan import TrainingPlan


class Progress:
    """Reads heads of one run; nothing is trained, measured or written.

    Args:
        launch: The launch that asks, whose recipe says what is planned and kept.
        plan: The run's steps and epochs.
        evaluations: What is measured of its checkpoints.
    """

    def __init__(self, launch: Launch, plan: TrainingPlan, evaluations: CheckpointEvaluations) -> None:
        self._recipe = launch.recipe
        self._registry = launch.ports.registry
        self._plan = plan
        self._evaluations = evaluations

    def is_made(self, head: Head, epoch: int) -> bool:
        """Whether an epoch exists: it, or any later step of the same run."""
        return head.last_epoch() >= epoch

    def is_done(self, head: Head, epoch: int) -> bool:
        """Whether an epoch exists, or isn't needed, and no evaluation is due up to it."""
        last = min(epoch, self.last_epoch(head))
        return self.is_made(head, last) and not self.due(head, last)

    def due(self, head: Head, epoch: int) -> list[CheckpointEntry]:
        """The checkpoints up to an epoch whose evaluation is due and missing."""
        return [e for e in head.entries() if self._is_due(e) and e.epoch <= epoch and e.payload == "present"]

    def last_epoch(self, head: Head) -> int:
        """The epoch after which the run is over: the last planned one, or where it stops early."""
        if self._recipe.early_stop_patience is None:
            return self._plan.epochs
        values = self._evaluations.values(head, self._recipe.select_metric)
        stop = early_stop_epoch(values, self._recipe.select_metric, self._recipe.early_stop_patience)
        return self._plan.epochs if stop is None else min(stop, self._plan.epochs)

    def end(self, head: Head) -> RunEnd:
        """Why the run is over, once it is."""
        epoch = self.last_epoch(head)
        reason: Literal["completed", "early_stop"] = "early_stop" if epoch < self._plan.epochs else "completed"
        return RunEnd(reason=reason, epoch=epoch, step=self._plan.last_step(epoch))

    def to_keep(self, head: Head) -> set[int]:
        """The steps whose payload the recipe keeps."""
        return payload_to_keep(
            head.entries(),
            self._evaluations.values(head, self._recipe.select_metric),
            metric=self._recipe.select_metric,
            keep_last=self._recipe.keep_last,
            keep_best=max(self._recipe.keep_best, int(self._recipe.select == "best")),
            protected=self._registry.protected_manifests(),
        )

    def selected(self, head: Head) -> CheckpointEntry:
        """The checkpoint that becomes the model.

        Raises:
            CheckpointError: The best one is asked for, and nothing was measured.
        """
        last = self.last_epoch(head)
        ends = {entry.epoch: entry for entry in head.entries() if entry.epoch_complete and entry.epoch <= last}
        epoch: int | None = max(ends, default=None)
        if self._recipe.select == "best":
            values = self._evaluations.values(head, self._recipe.select_metric)
            epoch = best_epoch({e: v for e, v in values.items() if e in ends}, self._recipe.select_metric)
        if epoch is None:
            raise CheckpointError(
                f"{self._recipe.select_metric} was measured for no epoch",
                where=f"run {head.fingerprint[:12]}",
                fix="eval_every: 1",
            )
        return ends[epoch]

    def _is_due(self, entry: CheckpointEntry) -> bool:
        """Whether an evaluation of this checkpoint is due and missing."""
        every = self._recipe.eval_every
        if not entry.epoch_complete or every == 0 or not self._evaluations.asked:
            return False
        regular = entry.epoch % every == 0 or entry.epoch == self._plan.epochs
        return regular and self._evaluations.key not in entry.evaluations
