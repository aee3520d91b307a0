"""From a recipe to the arguments of a TRL config class, and which of them a user may add."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.plan import TrainingPlan
from kitchen_resources.training.port import Resolution

OPTIMIZERS = {"adamw": "adamw_torch", "adamw_fused": "adamw_torch_fused", "sgd": "sgd", "adafactor": "adafactor"}

# Argument -> the recipe's field to use instead, or why it is the kitchen's own.
_FIELDS = {
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
    "bf16": "precision",
    "fp16": "precision",
    "gradient_checkpointing": "gradient_checkpointing",
    "activation_checkpointing": "gradient_checkpointing",
    "full_determinism": "deterministic",
    "seed": "seed",
    "data_seed": "seed",
    "max_length": "max_length",
    "packing": "packing",
    "packing_strategy": "packing",
    "padding_free": "packing",
    "assistant_only_loss": "train_on",
    "completion_only_loss": "train_on",
    "chat_template_path": "chat_template",
    "save_steps": "checkpoint_steps",
    "eval_strategy": "eval_every",
    "eval_steps": "eval_every",
}
_ORDER = "the kitchen owns the order of rows, and every row is trained once an epoch"
_STORE = "checkpoints and their place are the store's"
_RECORD = "telemetry records every step"
_SAFE = "nothing untrusted is loaded and nothing is sent to a hub by a training run"
_OWN = {
    **dict.fromkeys(
        (
            "train_sampling_strategy",
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
            "ddp_backend",
            "ddp_timeout",
            "deepspeed",
            "fsdp",
            "fsdp_config",
            "parallelism_config",
        ),
        "where it runs is the trainer's, not the recipe's",
    ),
    **dict.fromkeys(("eos_token", "pad_token"), "tokens are made before training, by the data stage"),
}


def check_trainer_args(recipe: Recipe, config_class: type) -> list[str]:
    """What is wrong with a recipe's `trainer_args`, one line each."""
    known = {field.name for field in dataclasses.fields(config_class)}
    problems = []
    for name in recipe.trainer_args:
        if name in _FIELDS:
            problems.append(f"trainer_args.{name}: is the recipe's own field; write {_FIELDS[name]}: … instead")
        elif name in _OWN:
            problems.append(f"trainer_args.{name}: can't be set, because {_OWN[name]}; remove it")
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            problems.append(f"trainer_args.{name}: {config_class.__name__} has no such field{hint}")
    return problems


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
    values: dict[str, Any] = {
        "output_dir": str(scratch),
        "num_train_epochs": plan.epochs,
        "max_steps": plan.total_steps if plan.total_steps < plan.epochs * plan.steps_per_epoch else -1,
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
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
        **method_arguments,
        **recipe.trainer_args,
    }
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{config_class.__name__} refuses a value: {error}", where="trainer_args", fix="correct that argument"
        ) from error
