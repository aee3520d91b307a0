"""The plan of a training run: its steps and epochs, fixed before the first one."""

import math
from dataclasses import dataclass

from kitchen_resources.errors import DataError
from kitchen_resources.formulas.batches import RowOrder, batch_plan, block_plan, steps_per_epoch, total_steps
from kitchen_resources.formulas.schedules import learning_rate, warmup_steps_from_ratio
from kitchen_resources.recipes.recipe import Recipe


@dataclass(frozen=True)
class TrainingPlan:
    """Steps and epochs of a run. The learning rate's schedule runs over `total_steps`, in every session alike.

    Attributes:
        rows: Training rows, or packs of rows.
        steps_per_epoch: Optimiser steps of a whole epoch.
        total_steps: Optimiser steps of the run.
        epochs: Epochs of the run; `max_steps` may end the last one early.
        warmup_steps: Steps over which the learning rate rises.
    """

    rows: int
    steps_per_epoch: int
    total_steps: int
    epochs: int
    warmup_steps: int

    def last_step(self, epoch: int) -> int:
        """The global step at which an epoch (from 1) ends."""
        return min(epoch * self.steps_per_epoch, self.total_steps)

    def epoch_at(self, global_step: int) -> int:
        """The epoch (from 1) that the given step, from 1, belongs to."""
        return max(1, math.ceil(global_step / self.steps_per_epoch))


def make_plan(recipe: Recipe, rows: int, *, in_one_go: bool = False) -> TrainingPlan:
    """The plan of a recipe over so many prepared rows.

    Args:
        recipe: What to train.
        rows: Prepared rows, or packs of rows.
        in_one_go: Whether all epochs are trained together: then they are one of the plan.

    Raises:
        DataError: There are no rows.
    """
    if rows < 1:
        raise DataError(
            "no training rows are left", where="dataset", fix="see the row report for why rows were dropped"
        )
    draws = recipe.draws(rows)
    if draws is not None:
        per_epoch = draws.count * draws.steps_per_draw
    else:
        per_epoch = steps_per_epoch(
            rows, batch_size=recipe.batch_size, accumulation=recipe.gradient_accumulation_steps
        )
    total = total_steps(per_epoch, epochs=recipe.epochs, max_steps=recipe.max_steps)
    warmup = recipe.warmup_steps or 0
    if recipe.warmup_ratio is not None:
        warmup = warmup_steps_from_ratio(recipe.warmup_ratio, total)
    if in_one_go:
        per_epoch = total
    return TrainingPlan(
        rows=rows,
        steps_per_epoch=per_epoch,
        total_steps=total,
        epochs=math.ceil(total / per_epoch),
        warmup_steps=min(warmup, total),
    )


def learning_rate_at(recipe: Recipe, plan: TrainingPlan, step: int) -> float:
    """The learning rate that the optimiser uses at a step of the run, from 1."""
    return learning_rate(
        step - 1,
        schedule=recipe.lr_schedule,
        peak=recipe.learning_rate,
        total_steps=plan.total_steps,
        warmup_steps=plan.warmup_steps,
        final=recipe.lr_final,
        power=recipe.lr_power,
        rate=recipe.lr_decay_rate,
        num_cycles=recipe.lr_cycles,
    )


def planned_rows(recipe: Recipe, plan: TrainingPlan, epoch: int, order: RowOrder = "torch") -> list[list[int]]:
    """The rows that each optimiser step of an epoch (from 1) receives, as indices of the prepared rows.

    Where a method samples, a step that trains on what an earlier one sampled receives no row of its own.

    Args:
        recipe: What is trained.
        plan: Its steps.
        epoch: From 1.
        order: How the backend permutes rows.
    """
    draws = recipe.draws(plan.rows)
    if draws is None:
        steps = batch_plan(
            plan.rows,
            seed=recipe.seed,
            epoch=epoch - 1,
            batch_size=recipe.batch_size,
            accumulation=recipe.gradient_accumulation_steps,
            order=order,
        )
    else:
        drawn = block_plan(
            plan.rows, seed=recipe.seed, block=epoch - 1, prompts=draws.prompts, draws=draws.count, order=order
        )
        steps = [rows for prompts in drawn for rows in (prompts, *([[]] * (draws.steps_per_draw - 1)))]
    return steps[: plan.last_step(epoch) - (epoch - 1) * plan.steps_per_epoch]
