"""The `trl` backend as a `Trainer`."""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from kitchen_resources.errors import CapabilityError
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.port import BaseModel, Capabilities, Resolution, Session, TrainingJob
from kitchen_resources.training.trl.generation import check_generation, require_engine

_METHODS = frozenset({"supervised", "preference", "reinforcement", "distillation"})

_SHARED = frozenset({"supervised", "preference"})
"""What several processes train together. A draw of episodes or of answers belongs to one."""

TRL_ALGORITHM_VERSION = 1
"""Raised by hand when the arithmetic that all methods share here changes."""


class TrlTrainer:
    """Trains with TRL, in this process or in several of its own.

    Args:
        device: Where to train: auto, cpu or cuda.
        threads: CPU threads of a process; None for as many as suit the model.
        processes: How many share the work; each has a GPU of its own where there are any.
        fsdp: Settings of FSDP, by which they share the weights too; None for a copy each.
        elsewhere: Whose machine trains, when it isn't this one; `device` is taken to be there.
    """

    def __init__(
        self,
        device: str = "auto",
        threads: int | None = None,
        processes: int = 1,
        fsdp: Mapping[str, Any] | None = None,
        elsewhere: str = "",
    ) -> None:
        self._elsewhere = elsewhere
        self._fsdp = fsdp
        self._device = device
        self._threads = threads
        self._processes = processes

    def capabilities(self) -> Capabilities:
        """See `Trainer.capabilities`."""
        return Capabilities(
            backend="trl",
            methods=_METHODS if self._processes == 1 else _SHARED,
            resume="exact",
            step_checkpoints=(_METHODS if self._processes == 1 else _SHARED) - {"reinforcement"},
            quantization=frozenset({"none"} if self._fsdp is not None else {"none", "8bit", "4bit"}),
        )

    def check(self, recipe: Recipe) -> list[Problem]:
        """See `Trainer.check`."""
        problems = check_generation(recipe) if isinstance(recipe, ReinforcementRecipe) else []
        if self._processes > 1:
            problems.extend(_check_shared(recipe, self._processes))
        if not recipe.trainer_args:
            return problems
        from kitchen_resources.training.trl.arguments import check_trainer_args
        from kitchen_resources.training.trl.session import METHODS

        return [*problems, *check_trainer_args(recipe, METHODS[recipe.method])]

    def resolve(
        self, recipe: Recipe, base: BaseModel, models: Mapping[str, BaseModel] = MappingProxyType({})
    ) -> Resolution:
        """See `Trainer.resolve`."""
        from kitchen_resources.training.pytorch.sizing import resolve_here
        from kitchen_resources.training.trl.arguments import OPTIMIZERS
        from kitchen_resources.training.trl.session import METHODS

        if isinstance(recipe, ReinforcementRecipe):
            require_engine(recipe)
        method = METHODS[recipe.method]
        resolution = resolve_here(
            recipe,
            base,
            models,
            device=self._device,
            threads=self._threads,
            algorithm={"trl": TRL_ALGORITHM_VERSION, f"trl.{recipe.method}": method.ALGORITHM_VERSION},
            optimizer=OPTIMIZERS[recipe.optimizer],
            frozen_copies=method.frozen_copies(recipe),
            processes=self._processes,
            elsewhere=self._elsewhere,
        )
        if self._fsdp is None:
            return resolution
        return replace(resolution, values={**resolution.values, "fsdp": dict(self._fsdp)})

    def open(self, job: TrainingJob) -> Session:
        """See `Trainer.open`."""
        exact_inside = self.capabilities().is_exact_inside(job.recipe)
        if self._processes > 1:
            from kitchen_resources.training.worker.session import WorkersSession
            from kitchen_resources.training.worker.torchrun import Torchrun

            require_even_batches(job, self._processes)
            count = self._processes
            return WorkersSession(job, Torchrun(count), processes=count, exact_inside=exact_inside)
        from kitchen_resources.training.trl.session import TrlSession

        return TrlSession(job, exact_inside=exact_inside)


def _check_shared(recipe: Recipe, processes: int) -> list[Problem]:
    """What of a recipe several processes can't share."""
    problems: list[Problem] = []
    passes = recipe.gradient_accumulation_steps
    if passes % processes:
        more = math.ceil(passes / processes) * processes
        problems.append(
            (
                "gradient_accumulation_steps",
                f"{passes} forward passes a step can't be shared out among {processes} processes",
                f"gradient_accumulation_steps: {more} (and batch_size smaller by as much)",
            )
        )
    if isinstance(recipe, PreferenceRecipe) and recipe.precompute_reference:
        problems.append(
            ("precompute_reference", "is not offered by several processes", "precompute_reference: false")
        )
    return problems


def require_even_batches(job: TrainingJob, processes: int) -> None:
    """Refuse rows whose last batches not every process would have one of: they would be filled up with rows twice.

    Raises:
        CapabilityError: With a batch size that does.
    """
    rows, size = job.plan.rows, job.recipe.batch_size
    if math.ceil(rows / size) % processes == 0:
        return
    fitting = [other for other in range(1, 4 * size + 1) if math.ceil(rows / other) % processes == 0]
    nearest = min(fitting, key=lambda other: abs(other - size), default=None)
    raise CapabilityError(
        f"{rows} rows are {math.ceil(rows / size)} batches of {size}, which {processes} processes can't share evenly",
        where="trainer.backend.trl.processes",
        fix=f"batch_size: {nearest}" if nearest else f"leave out rows until their number divides by {processes}",
    )
