"""What the kitchen adds to a TRL trainer: row ids that travel with the batch, the one schedule, and our own saving.

A mixin over any of TRL's trainers. It changes no arithmetic of a step.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitchen_resources.errors import BackendError
from kitchen_resources.formulas.schedules import learning_rate
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.attempt import SavedState
from kitchen_resources.training.plan import TrainingPlan
from kitchen_resources.training.pytorch.state import rng_state, write_rng, write_training_state, write_weights
from kitchen_resources.training.trl.processes import gathered, rank
from kitchen_resources.training.trl.sharding import (
    is_sharded,
    load_whole_optimizer_state,
    whole_optimizer_state,
    whole_weights,
)

if TYPE_CHECKING:
    import torch

ROW_IDS = "kitchen_row_ids"


class RowIdCollator:
    """Any collator, with the row ids of the batch beside its tensors."""

    def __init__(self, inner: Callable[[list[dict[str, Any]]], dict[str, Any]], column: str) -> None:
        self._inner = inner
        self._column = column

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows; the ids are a flat tensor of int64."""
        import torch

        ids = [row[self._column] for row in rows]
        flat = [item for entry in ids for item in (entry if isinstance(entry, list) else [entry])]
        batch = self._inner([{key: value for key, value in row.items() if key != self._column} for row in rows])
        return {**batch, ROW_IDS: torch.tensor(flat, dtype=torch.int64)}


class KitchenTrainerMixin:
    """See the module. To be listed before the TRL trainer class.

    Attributes:
        step_rows: Rows of each pass that the optimiser step under way has received so far, here.
        step_tokens: Trained tokens of the optimiser step under way.
    """

    # Of transformers' Trainer.
    args: Any
    model: Any
    state: Any
    accelerator: Any
    optimizer: Any
    lr_scheduler: Any
    data_collator: Any
    _signature_columns: Any

    def adopt(self, recipe: Recipe, plan: TrainingPlan, row_column: str, save: Callable[[SavedState], None]) -> None:
        """Tie the trainer to a run.

        Args:
            recipe: What is trained.
            plan: Its steps.
            row_column: Column of the data set with the row id, or with the list of a pack's row ids.
            save: Called with each checkpoint's files, at the moment they hold the state.
        """
        self._recipe = recipe
        self._plan = plan
        self._save = save
        self._attempts = 0
        self.step_rows: list[list[int]] = []
        self.step_tokens = 0
        self.step_started = time.perf_counter()
        self.wrap_collator(row_column)
        self._set_signature_columns_if_needed()  # type: ignore[attr-defined]
        self._signature_columns = [*self._signature_columns, row_column]

    def wrap_collator(self, row_column: str) -> None:
        """Let row ids travel with each batch."""
        self.data_collator = RowIdCollator(self.data_collator, row_column)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> "torch.Tensor":
        """One forward and backward pass; takes note of what it really received."""
        self.take_note(inputs, num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc, no-any-return]

    def take_note(self, inputs: Any, num_items_in_batch: Any) -> None:
        """Take note of the rows and trained tokens of one pass; the row ids are taken out of the batch."""
        if not self.step_rows:
            self.step_tokens = int(num_items_in_batch) if num_items_in_batch is not None else 0
        self.step_rows.append(inputs.pop(ROW_IDS).tolist())

    def rows_of_step(self) -> list[int]:
        """The rows that the optimiser step which is now done has received, on all processes; the next starts with none."""
        passes, self.step_rows = self.step_rows, []
        # The processes take turns with the passes of a step, and have equally many.
        return [row for turn in zip(*gathered(passes), strict=True) for rows in turn for row in rows]

    def tokens_of_step(self) -> int:
        """Trained tokens of the optimiser step under way."""
        return self.step_tokens

    def records(self) -> dict[str, bytes]:
        """What is to stay on record of the epoch besides rows and steps, by file name; no part of the state."""
        return {}

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The kitchen's schedule, over the planned total whatever this session trains of it."""
        from torch.optim.lr_scheduler import LambdaLR

        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, schedule_factor(self._recipe, self._plan))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As transformers does it, but hyperparameters are the recipe's and not the checkpoint's.

        For the same recipe they are equal. Where one recipe continues another, transformers would silently go on
        with the old ones: its schedule loads the old base rate.
        """
        fresh = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        base_lrs = list(self.lr_scheduler.base_lrs)
        if checkpoint is not None and is_sharded(self.model):
            self._load_whole(Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        self.lr_scheduler.base_lrs = base_lrs
        step = self.lr_scheduler.last_epoch
        for group, values, base, factor in zip(
            self.optimizer.param_groups, fresh, base_lrs, self.lr_scheduler.lr_lambdas, strict=True
        ):
            group.update(values)
            group["lr"] = base * factor(step)
        # What the Trainer logs as the step's rate is what the schedule says that it set last.
        self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        """As transformers does it; weights that are to be shared out were loaded before they were."""
        if not self.accelerator.is_fsdp2:
            super()._load_from_checkpoint(checkpoint, model)  # type: ignore[misc]

    def _load_whole(self, checkpoint: Path) -> None:
        import torch

        state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        load_whole_optimizer_state(self.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(checkpoint / "scheduler.pt", weights_only=True))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the state as safetensors and JSON, and hand it over; transformers' own writing is not used."""
        folder = Path(self.args.output_dir) / f"state-{self.state.global_step}-{self._attempts}"
        self._attempts += 1
        folder.mkdir(parents=True)
        states = gathered(rng_state())
        if self.accelerator.is_fsdp2 and not is_sharded(self.model):
            raise BackendError("the weights weren't shared out", where="trainer.backend.trl.fsdp", fix="report this")
        whole = whole_weights(self.model) if is_sharded(self.model) else None
        optimizer_state = whole_optimizer_state(self.optimizer) if whole else self.optimizer.state_dict()
        if rank():
            # The first process writes for all; the others wait for what becomes of it.
            self._save(SavedState(folder, [], [], {}))
            return
        weights, others = write_weights(folder, self.accelerator.unwrap_model(self.model), whole)
        before = {path.name for path in folder.iterdir()}
        write_training_state(folder, optimizer_state, self.lr_scheduler)
        for number, state in enumerate(states[1:], start=1):
            write_rng(folder, state, number)
        written = sorted(path.name for path in folder.iterdir() if path.name not in before)
        self._save(SavedState(folder, [*weights, *written], others, self.records()))


def schedule_factor(recipe: Recipe, plan: TrainingPlan) -> Callable[[int], float]:
    """The learning rate at a step (from 0), over its peak."""
    peak = recipe.learning_rate
    final = recipe.lr_final / peak if peak else 0.0

    def factor(step: int) -> float:
        return learning_rate(
            step,
            schedule=recipe.lr_schedule,
            peak=1.0,
            total_steps=plan.total_steps,
            warmup_steps=plan.warmup_steps,
            final=final,
            power=recipe.lr_power,
            rate=recipe.lr_decay_rate,
            num_cycles=recipe.lr_cycles,
        )

    return factor
