"""The `trl` backend as a `Trainer`."""

from collections.abc import Mapping
from types import MappingProxyType

from kitchen_resources.errors import CapabilityError
from kitchen_resources.formulas.memory import state_bytes
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
        from kitchen_resources.training.pytorch import machine
        from kitchen_resources.training.pytorch.models import require_quantization, weight_dtype
        from kitchen_resources.training.pytorch.sizing import memory_bytes, model_config, trained_parameters
        from kitchen_resources.training.trl.arguments import OPTIMIZERS
        from kitchen_resources.training.trl.session import METHODS

        if base.folder is None:
            raise CapabilityError(
                "a simulated model can't be trained", where="model", fix="name a model with weights"
            )
        require_quantization(recipe.quantization)
        if isinstance(recipe, ReinforcementRecipe):
            require_engine(recipe)
        config = model_config(base.folder)
        device = machine.choose_device(self._device)
        threads = machine.choose_threads(self._threads, base.parameters)
        precision = machine.choose_precision(recipe, device)
        dtype = weight_dtype(recipe, precision)
        trained = trained_parameters(recipe, config, base.parameters)
        return Resolution(
            algorithm={
                "trl": TRL_ALGORITHM_VERSION,
                f"trl.{recipe.method}": METHODS[recipe.method].ALGORITHM_VERSION,
            },
            values={
                "precision": precision,
                "weight_dtype": dtype,
                "attention": machine.choose_attention(recipe, config, device),
                "optimizer": OPTIMIZERS[recipe.optimizer],
                "world_size": 1,
            },
            threads=threads,
            device=device,
            environment=machine.environment(device, threads),
            memory_bytes=memory_bytes(recipe, config, base.parameters, trained, dtype)
            + METHODS[recipe.method].frozen_copies(recipe) * int(base.parameters * (2 if precision == "bf16" else 4))
            + sum(model.parameters * (2 if precision == "bf16" else 4) for model in models.values()),
            state_bytes=state_bytes(
                trained_parameters=trained, stored_weight_bytes=4, moments=0 if recipe.optimizer == "sgd" else 2
            ),
        )

    def open(self, job: TrainingJob) -> Session:
        """See `Trainer.open`."""
        from kitchen_resources.training.trl.session import TrlSession

        return TrlSession(job, exact_inside=self.capabilities().is_exact_inside(job.recipe))
