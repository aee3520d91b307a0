"""The `fireworks` backend as a `Trainer`."""

from dataclasses import replace
from typing import Any

from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.fireworks.service import FireworksService
from kitchen_resources.training.port import Capabilities
from kitchen_resources.training.remote.backend import RemoteTrainer, ServiceKind

KIND = ServiceKind("fireworks", FireworksService, sdk="fireworks-ai")


class FireworksTrainer(RemoteTrainer):
    """Trains by Fireworks' Training SDK, on the trainers that several runs share; see `RemoteTrainer` for its arguments."""

    def __init__(self, base_model: str, **how: Any) -> None:
        # The service takes no word on how long a state is to be kept.
        super().__init__(KIND, base_model, keep_days=None, **how)

    def capabilities(self) -> Capabilities:
        """See `Trainer.capabilities`."""
        return replace(super().capabilities(), methods=frozenset({"supervised", "preference", "distillation"}))

    def check(self, recipe: Recipe) -> list[Problem]:
        """See `Trainer.check`."""
        problems = super().check(recipe)
        if isinstance(recipe, DistillationRecipe) and recipe.mode == "on_policy":
            problems.append(("mode", "on_policy samples, which this backend doesn't", "mode: sequence"))
        return problems
