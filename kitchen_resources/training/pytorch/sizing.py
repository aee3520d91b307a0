"""How large a model is, and what training it takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kitchen_resources.errors import CapabilityError, ConfigError
from kitchen_resources.formulas.memory import state_bytes, training_bytes
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.port import BaseModel, Resolution, TrainingJob
from kitchen_resources.training.pytorch import machine
from kitchen_resources.training.pytorch.importing import import_libraries
from kitchen_resources.training.pytorch.models import require_quantization, weight_dtype


def resolve_here(
    recipe: Recipe,
    base: BaseModel,
    models: Mapping[str, BaseModel],
    *,
    device: str,
    threads: int | None,
    algorithm: Mapping[str, int],
    optimizer: str,
    frozen_copies: int,
    processes: int = 1,
    elsewhere: str = "",
) -> Resolution:
    """What a recipe comes to on this machine; see `Trainer.resolve`.

    Args:
        recipe: What to train.
        base: The base model.
        models: Models besides it, by role.
        device: As asked for: auto, cpu or cuda.
        threads: As asked for.
        algorithm: See `Resolution`.
        optimizer: Its name in this backend.
        frozen_copies: Copies of the base that are in memory beside the one that is trained.
        processes: Processes that train together; each has threads of its own.
        elsewhere: Whose machine trains, when it isn't this one; what it has is taken on trust.

    Raises:
        CapabilityError: It needs something this machine lacks.
    """
    import_libraries()
    if base.folder is None:
        raise CapabilityError("a simulated model can't be trained", where="model", fix="name a model with weights")
    require_quantization(recipe.quantization)
    config = model_config(base.folder)
    chosen = machine.device_elsewhere(device) if elsewhere else machine.choose_device(device)
    count = machine.choose_threads(threads, base.parameters)
    if threads is None:
        count = max(1, count // processes)
    precision = machine.choose_precision(recipe, chosen, elsewhere=bool(elsewhere))
    dtype = weight_dtype(recipe, precision)
    attention = machine.choose_attention(recipe, config, chosen, elsewhere=bool(elsewhere))
    trained = trained_parameters(recipe, config, base.parameters)
    frozen = frozen_copies * base.parameters + sum(model.parameters for model in models.values())
    return Resolution(
        algorithm=algorithm,
        values={
            "precision": precision,
            "weight_dtype": dtype,
            "attention": attention,
            "optimizer": optimizer,
            "world_size": processes,
        },
        threads=count,
        device=chosen,
        environment=machine.environment(chosen, count, elsewhere=elsewhere),
        memory_bytes=memory_bytes(recipe, config, base.parameters, trained, dtype, precision, attention)
        + frozen * (2 if precision == "bf16" else 4),
        state_bytes=state_bytes(
            trained_parameters=trained, stored_weight_bytes=4, moments=0 if recipe.optimizer == "sgd" else 2
        ),
        elsewhere=bool(elsewhere),
    )


def longest_prompt(job: TrainingJob) -> int | None:
    """Tokens of a prompt behind which the model can write a whole completion; None where its config sets no limit."""
    assert job.base.folder is not None
    positions = getattr(model_config(job.base.folder).get_text_config(), "max_position_embeddings", None)
    return positions - getattr(job.recipe, "max_tokens", 0) if isinstance(positions, int) else None


def model_config(folder: Path) -> Any:
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


def trained_parameters(recipe: Recipe, config: Any, parameters: int) -> int:
    """Trained weights: all, or about what a LoRA on every linear layer of such a model has."""
    if recipe.lora is None:
        return parameters
    text = config.get_text_config()
    hidden, layers = text.hidden_size, text.num_hidden_layers
    inner = _inner(text)
    per_layer = 4 * 2 * hidden + 3 * (hidden + inner)
    return int(recipe.lora.rank * layers * per_layer)


def memory_bytes(
    recipe: Recipe, config: Any, parameters: int, trained: int, dtype: str, precision: str, attention: str
) -> int:
    """Estimate of the peak memory of training, without frozen models beside it.

    Args:
        recipe: What to train.
        config: The model's.
        parameters: Its weights.
        trained: Those of them, or beside them, that are trained.
        dtype: What weights are held in.
        precision: What is computed in.
        attention: Name of the kernel.
    """
    text = config.get_text_config()
    weight_bytes = {"none": 2 if dtype == "bfloat16" else 4, "8bit": 1, "4bit": 0.5}[recipe.quantization]
    return training_bytes(
        parameters=parameters,
        trained_parameters=trained,
        weight_bytes=weight_bytes,
        hidden_size=text.hidden_size,
        intermediate_size=_inner(text),
        layers=text.num_hidden_layers,
        batch_size=recipe.batch_size * (2 if recipe.method == "preference" else 1),
        # What is sampled comes after the prompt.
        max_length=recipe.max_length + (getattr(recipe, "max_tokens", 0) if recipe.draws(1) else 0),
        heads=text.num_attention_heads,
        attention_scores=attention == "eager",
        activation_bytes=2 if precision == "bf16" else 4,
        gradient_checkpointing=recipe.gradient_checkpointing,
        moments=0 if recipe.optimizer == "sgd" else 2,
    )


def _inner(text: Any) -> int:
    """Width of the feed-forward block; GPT-2 and its like don't name it."""
    return int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
