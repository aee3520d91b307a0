"""The `trl` backend as a `Trainer`."""

from collections.abc import Mapping
from types import MappingProxyType

from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.port import BaseModel, Capabilities, Resolution, Session, TrainingJob
from kitchen_resources.training.trl.generation import check_generation, require_engine

TRL_ALGORITHM_VERSION = 1
"""Raised by hand when the arithmetic that all methods share here changes."""


class TrlTrainer:
    """Trains with TRL in this process."""

    def __init__(self, device: str = "auto", threads: int | None = None) -> None:
        self._device = device
        self._threads = threads

    def capabilities(self) -> Capabilities:
        """See `Trainer.capabilities`."""
        return Capabilities(
            backend="trl",
            methods=frozenset({"supervised", "preference", "reinforcement", "distillation"}),
            resume="exact",
            step_checkpoints=frozenset({"supervised", "preference", "distillation"}),
            quantization=frozenset({"none", "8bit", "4bit"}),
        )

    def check(self, recipe: Recipe) -> list[Problem]:
        """See `Trainer.check`."""
        problems = check_generation(recipe) if isinstance(recipe, ReinforcementRecipe) else []
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
        return resolve_here(
            recipe,
            base,
            models,
            device=self._device,
            threads=self._threads,
            algorithm={"trl": TRL_ALGORITHM_VERSION, f"trl.{recipe.method}": method.ALGORITHM_VERSION},
            optimizer=OPTIMIZERS[recipe.optimizer],
            frozen_copies=method.frozen_copies(recipe),
        )

    def open(self, job: TrainingJob) -> Session:
        """See `Trainer.open`."""
        from kitchen_resources.training.trl.session import TrlSession

        return TrlSession(job, exact_inside=self.capabilities().is_exact_inside(job.recipe))
