"""The `trl` backend as a `Trainer`."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kitchen_resources.errors import CapabilityError, ConfigError
from kitchen_resources.formulas.memory import state_bytes, training_bytes
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
        from kitchen_resources.training.trl import machine
        from kitchen_resources.training.trl.arguments import OPTIMIZERS
        from kitchen_resources.training.trl.models import require_quantization, weight_dtype
        from kitchen_resources.training.trl.session import METHODS

        if base.folder is None:
            raise CapabilityError(
                "a simulated model can't be trained", where="model", fix="name a model with weights"
            )
        require_quantization(recipe.quantization)
        if isinstance(recipe, ReinforcementRecipe):
            require_engine(recipe)
        config = _config(base.folder)
        device = machine.choose_device(self._device)
        threads = machine.choose_threads(self._threads, base.parameters)
        precision = machine.choose_precision(recipe, device)
        dtype = weight_dtype(recipe, precision)
        trained = _trained_parameters(recipe, config, base.parameters)
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
            memory_bytes=_memory(recipe, config, base.parameters, trained, dtype)
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


def _config(folder: Path) -> Any:
    """The model's config, as transformers knows it.

    Raises:
        ConfigError: It is of an architecture that this transformers doesn't have, or of no causal language model.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    where = f"model {folder}"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(
            f"its config can't be used: {str(error).splitlines()[0]}",
            where=where,
            fix="name a model that transformers has itself; code that comes with a model is never run",
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"{config.model_type or 'it'} is no causal language model", where=where, fix="name one that writes text"
        )
    return config


def _trained_parameters(recipe: Recipe, config: Any, parameters: int) -> int:
    """Trained weights: all, or about what a LoRA on every linear layer of such a model has."""
    if recipe.lora is None:
        return parameters
    text = config.get_text_config()
    hidden, layers = text.hidden_size, text.num_hidden_layers
    inner = getattr(text, "intermediate_size", 4 * hidden)
    per_layer = 4 * 2 * hidden + 3 * (hidden + inner)
    return int(recipe.lora.rank * layers * per_layer)


def _memory(recipe: Recipe, config: Any, parameters: int, trained: int, dtype: str) -> int:
    text = config.get_text_config()
    weight_bytes = {"none": 2 if dtype == "bfloat16" else 4, "8bit": 1, "4bit": 0.5}[recipe.quantization]
    return training_bytes(
        parameters=parameters,
        trained_parameters=trained,
        weight_bytes=weight_bytes,
        hidden_size=text.hidden_size,
        layers=text.num_hidden_layers,
        batch_size=recipe.batch_size * (2 if recipe.method == "preference" else 1),
        # What is sampled comes after the prompt.
        max_length=recipe.max_length + (getattr(recipe, "max_tokens", 0) if recipe.draws(1) else 0),
        heads=text.num_attention_heads,
        activation_bytes=2 if dtype == "bfloat16" else 4,
        gradient_checkpointing=recipe.gradient_checkpointing,
        moments=0 if recipe.optimizer == "sgd" else 2,
    )
