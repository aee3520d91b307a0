"""From a recipe to the arguments of a TRL config class, and which of them a user may add."""

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.plan import TrainingPlan
from kitchen_resources.training.port import Resolution

OPTIMIZERS = {"adamw": "adamw_torch", "adamw_fused": "adamw_torch_fused", "sgd": "sgd", "adafactor": "adafactor"}

OWNED_FIELDS = {
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "lr_schedule",
    "lr_scheduler_kwargs": "lr_schedule",
    "warmup_steps": "warmup_steps",
    "warmup_ratio": "warmup_ratio",
    "weight_decay": "weight_decay",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_eps",
    "max_grad_norm": "max_grad_norm",
    "optim": "optimizer",
    "optim_args": "optimizer",
    "optim_target_modules": "optimizer",
    "bf16": "precision",
    "fp16": "precision",
    "gradient_checkpointing": "gradient_checkpointing",
    "activation_checkpointing": "gradient_checkpointing",
    "gradient_checkpointing_kwargs": "trainer_args.activation_checkpointing_kwargs",
    "full_determinism": "deterministic",
    "seed": "seed",
    "data_seed": "seed",
    "max_length": "max_length",
    "max_seq_length": "max_length",
    "packing": "packing",
    "packing_strategy": "packing",
    "padding_free": "packing",
    "assistant_only_loss": "train_on",
    "completion_only_loss": "train_on",
    "chat_template_path": "chat_template",
    "save_steps": "checkpoint_steps",
    "eval_strategy": "eval_every",
    "evaluation_strategy": "eval_every",
    "eval_steps": "eval_every",
}
"""Arguments that the recipe says by a field of its own, and that field; old names of arguments too."""

_ORDER = "the kitchen owns the order of rows, and every row is trained once an epoch"
_STORE = "checkpoints and their place are the store's"
_RECORD = "telemetry records every step"
_SAFE = "nothing untrusted is loaded and nothing is sent to a hub by a training run"
_PROCESS = "it changes the whole process, and so the bits of evaluations and of other runs in it"
_PLACE = "where it runs is the trainer's, not the recipe's"
OWNED = {
    **dict.fromkeys(
        (
            "train_sampling_strategy",
            "group_by_length",
            "length_column_name",
            "shuffle_dataset",
            "dataloader_drop_last",
            "dataloader_in_order",
            "ignore_data_skip",
            "accelerator_config",
            "remove_unused_columns",
            "dataset_kwargs",
            "dataset_text_field",
            "dataset_num_proc",
            "truncation_mode",
            "eval_packing",
            "label_names",
            "auto_find_batch_size",
        ),
        _ORDER,
    ),
    **dict.fromkeys(
        (
            "output_dir",
            "save_strategy",
            "save_total_limit",
            "save_only_model",
            "save_on_each_node",
            "enable_jit_checkpoint",
            "resume_from_checkpoint",
            "load_best_model_at_end",
            "metric_for_best_model",
            "greater_is_better",
            "restore_callback_states_from_checkpoint",
        ),
        _STORE,
    ),
    **dict.fromkeys(
        (
            "logging_strategy",
            "logging_steps",
            "logging_first_step",
            "logging_nan_inf_filter",
            "log_on_each_node",
            "log_level",
            "log_level_replica",
            "report_to",
            "run_name",
            "project",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
            "disable_tqdm",
            "debug",
            "skip_memory_metrics",
            "include_num_input_tokens_seen",
        ),
        _RECORD,
    ),
    **dict.fromkeys(
        (
            "trust_remote_code",
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
            "model_init_kwargs",
        ),
        _SAFE,
    ),
    **dict.fromkeys(
        (
            "eval_delay",
            "eval_on_start",
            "per_device_eval_batch_size",
            "prediction_loss_only",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "include_for_metrics",
            "batch_eval_metrics",
            "bf16_full_eval",
            "fp16_full_eval",
            "do_train",
            "do_eval",
            "do_predict",
        ),
        "evaluation inside training would move its random numbers; it happens between epochs",
    ),
    **dict.fromkeys(
        (
            "use_cpu",
            "local_rank",
            "average_tokens_across_devices",
            "ddp_backend",
            "ddp_timeout",
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "deepspeed",
            "fsdp",
            "fsdp_config",
            "parallelism_config",
        ),
        _PLACE,
    ),
    # tf32 is a flag of torch; compiling sets environment variables and picks kernels by the shapes that the process
    # has seen so far; Liger replaces functions of the model's module.
    **dict.fromkeys(
        (
            "tf32",
            "torch_compile",
            "torch_compile_backend",
            "torch_compile_mode",
            "use_liger_kernel",
            "liger_kernel_config",
        ),
        _PROCESS,
    ),
    **dict.fromkeys(("eos_token", "pad_token"), "tokens are made before training, by the data stage"),
    "use_cache": "training reads no cache",
}
"""Arguments that can't be set at all, and why; old names of arguments too."""

NOISE = dict.fromkeys(
    ("label_smoothing_factor", "neftune_noise_alpha"), "it is not what this method's loss is defined by"
)
"""Arguments of the supervised loss that other methods would ignore, or let act on the reference too."""

_WORKERS = ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context")
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "label_smoothing_factor": (lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    "neftune_noise_alpha": (lambda value: value > 0, "greater than 0"),
    "torch_empty_cache_steps": (lambda value: value >= 1, "at least 1"),
    "dataloader_num_workers": (lambda value: value >= 0, "at least 0"),
    "dataloader_prefetch_factor": (lambda value: value >= 1, "at least 1"),
    "dataloader_multiprocessing_context": (
        lambda value: value in ("fork", "spawn", "forkserver"),
        "fork, spawn or forkserver",
    ),
    "router_aux_loss_coef": (lambda value: value >= 0, "at least 0"),
    "pad_to_multiple_of": (lambda value: isinstance(value, int) and value >= 1, "a whole number from 1"),
}


_DISTRIBUTED = {
    # Else the last batches of an epoch are filled up with rows that were trained already.
    "accelerator_config": {"even_batches": False},
    "average_tokens_across_devices": True,
    "ddp_find_unused_parameters": False,
}


def check_trainer_args(recipe: Recipe, method: Any) -> list[Problem]:
    """What is wrong with a recipe's `trainer_args`: what the kitchen owns, unknown names, values that can't be.

    Args:
        recipe: The recipe.
        method: The module of its method.
    """
    config_class = method.config_class(recipe)
    types = typing.get_type_hints(config_class)
    known = {field.name for field in dataclasses.fields(config_class)}
    fields = {
        **{name: field for name, field in OWNED_FIELDS.items() if name not in method.OWNED},
        **method.OWNED_FIELDS,
    }
    owned = {**OWNED, **method.OWNED}
    arguments = recipe.trainer_args
    problems: list[Problem] = []
    for name, value in arguments.items():
        path = f"trainer_args.{name}"
        if name in fields:
            problems.append((path, "is said by another field of the recipe", f"{fields[name]}: …"))
        elif name in owned or name.startswith("vllm_"):
            reason = owned.get(name, "generation.options says it")
            problems.append((path, f"can't be set, because {reason}", f"nothing: remove {name}"))
        elif name not in known:
            close = difflib.get_close_matches(name, known - {*owned, *fields}, n=1)
            fix = f"{close[0]}: {value}, if that was meant" if close else f"nothing: remove {name}"
            problems.append((path, f"{config_class.__name__} has no such field", fix))
        else:
            problems.extend(_wrong_value(name, value, types[name], arguments, {**_VALUES, **method.VALUES}))
    return problems


def _wrong_value(
    name: str,
    value: Any,
    wanted: Any,
    arguments: dict[str, Any],
    values: Mapping[str, tuple[Callable[[Any], bool], str]],
) -> Iterator[Problem]:
    """What is wrong with a value; the config class itself checks few types, and those only when training starts."""
    path = f"trainer_args.{name}"
    try:
        TypeAdapter(wanted).validate_python(value, strict=True)
    except ValidationError:
        said = getattr(wanted, "__name__", None) or str(wanted).replace("typing.", "")
        yield path, f"must be {said}, got {value!r}", f"{name}: a value of that type"
        return
    if name in _WORKERS and not arguments.get("dataloader_num_workers"):
        yield path, "means something only with workers", "dataloader_num_workers: 1 beside it"
    if value is None or name not in values:
        return
    is_valid, bound = values[name]
    if not is_valid(value):
        yield path, f"must be {bound}, got {value!r}", f"{name}: a value within that"


def training_arguments(
    config_class: type,
    recipe: Recipe,
    resolution: Resolution,
    plan: TrainingPlan,
    scratch: Path,
    method_arguments: dict[str, Any],
) -> Any:
    """The TRL config of a run. Every value that moves weights is given, so that no library default can.

    Args:
        config_class: TRL's config class of the method.
        recipe: What to train.
        resolution: What it comes to here.
        plan: Its steps.
        scratch: Folder for what the trainer writes.
        method_arguments: Further arguments of the method.

    Raises:
        ConfigError: The config class refuses a value.
    """
    on_cpu = resolution.device == "cpu"
    processes = resolution.values["world_size"]
    values: dict[str, Any] = {
        "output_dir": str(scratch),
        "num_train_epochs": plan.epochs,
        "max_steps": plan.total_steps if plan.total_steps < plan.epochs * plan.steps_per_epoch else -1,
        "per_device_train_batch_size": recipe.batch_size,
        # The passes of an optimiser step are shared out, so that it receives the same rows on any number of processes.
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps // processes,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": plan.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "adam_beta1": recipe.adam_beta1,
        "adam_beta2": recipe.adam_beta2,
        "adam_epsilon": recipe.adam_eps,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": OPTIMIZERS[recipe.optimizer],
        "bf16": resolution.values["precision"] == "bf16",
        "fp16": False,
        "activation_checkpointing": recipe.gradient_checkpointing,
        "full_determinism": recipe.deterministic,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        **(_DISTRIBUTED if processes > 1 else {}),
        **_sharded(resolution),
        **method_arguments,
        **recipe.trainer_args,
    }
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{config_class.__name__} refuses a value: {error}", where="trainer_args", fix="correct that argument"
        ) from error


def _sharded(resolution: Resolution) -> dict[str, Any]:
    """Arguments by which weights are shared out among the processes."""
    settings = resolution.values.get("fsdp")
    # transformers changes what it is given.
    return {} if settings is None else {"fsdp": True, "fsdp_config": dict(settings)}
