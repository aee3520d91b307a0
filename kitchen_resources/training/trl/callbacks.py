"""Watching a TRL trainer step by step: metrics, rows, divergence, when to save and when to stop."""

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from kitchen_resources.errors import TrainingDiverged
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.plan import TrainingPlan
from kitchen_resources.training.port import StepMetrics
from kitchen_resources.training.trl.processes import from_first
from kitchen_resources.training.trl.trainer import KitchenTrainerMixin

_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024
_NOT_EXTRA = frozenset({"loss", "grad_norm", "learning_rate", "epoch", "num_tokens"})


class EpochWatch(TrainerCallback):  # type: ignore[misc]
    """Reports each optimiser step, asks for checkpoints, and ends the call at the epoch's end.

    Transformers calls `on_step_end`, then logs, then saves: so a loss that is not finite stops the run before
    anything of it is saved.
    """

    def __init__(
        self,
        trainer: KitchenTrainerMixin,
        recipe: Recipe,
        plan: TrainingPlan,
        epoch: int,
        on_step: Callable[[StepMetrics, list[int]], None],
        stopping: Callable[[], bool],
        names: Mapping[str, str],
    ) -> None:
        self._trainer = trainer
        self._recipe = recipe
        self._plan = plan
        self._epoch = epoch
        self._on_step = on_step
        self._stopping = stopping
        self._names = names
        self._rows: list[int] = []
        self._trained_on: list[int] = []
        self._tokens = 0
        self._seconds = 0.0
        self._saved_at = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """An optimiser step starts."""
        self._trainer.step_started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """An optimiser step is done, and not yet logged or saved."""
        self._rows = self._trainer.rows_of_step()
        # A step without rows of its own trains on what was sampled for those before.
        self._trained_on = self._rows or self._trained_on
        self._tokens = self._trainer.tokens_of_step()
        self._seconds = time.perf_counter() - self._trainer.step_started
        control.should_log = True
        inside = state.global_step < self._plan.last_step(self._epoch)
        if inside and (from_first(self._is_due(state.global_step)) or self._stopping()):
            control.should_save = True
            self._saved_at = time.monotonic()
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """The step's numbers are known."""
        if not logs or "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        rate = float(logs["learning_rate"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "loss" if not math.isfinite(loss) else "gradient norm"
            raise TrainingDiverged(
                f"the {what} is {loss if what == 'loss' else norm} at learning rate {rate:g}; "
                f"the rows of this step are {_some(self._trained_on)}",
                where=f"epoch {self._epoch}, step {state.global_step}",
                fix="lower learning_rate, set max_grad_norm, or look at those rows; nothing of this epoch was published",
            )
        metrics = StepMetrics(
            epoch=self._epoch,
            global_step=state.global_step,
            total_steps=self._plan.total_steps,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens=self._tokens,
            seconds=self._seconds,
            host_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES,
            device_memory_bytes=_device_memory(),
            extra={
                name: float(v)
                for k, v in logs.items()
                if k not in _NOT_EXTRA and _is_number(v) and (name := self._names.get(k, k))
            },
        )
        self._on_step(metrics, self._rows)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """The epoch is over: save it, and end this call; the next epoch is another one."""
        control.should_save = True
        control.should_training_stop = True
        return control

    def _is_due(self, step: int) -> bool:
        every, minutes = self._recipe.checkpoint_steps, self._recipe.checkpoint_minutes
        if every is not None and step % every == 0:
            return True
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes


def _device_memory() -> int:
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _some(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:20]))
    return f"{shown} and {len(rows) - 20} more" if len(rows) > 20 else shown
