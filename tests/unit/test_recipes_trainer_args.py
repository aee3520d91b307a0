"""`trainer_args`: every field of TRL's config class can be passed on, or is refused by name with what to do instead."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from recipe_cases import recipe
from recipe_identities import plan, resolution

from kitchen_resources.datasets.sources import NoopDatasets
from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.rules import field_names
from kitchen_resources.training.preflight import preflight
from kitchen_resources.training.trl import supervised
from kitchen_resources.training.trl.arguments import (
    OPTIMIZERS,
    OWNED,
    OWNED_FIELDS,
    check_trainer_args,
    training_arguments,
)
from kitchen_resources.training.trl.backend import TrlTrainer
from tests.engine import Engine

WORKERS = {"dataloader_num_workers": 2}

PASSED_ON: dict[str, tuple[Any, list[Any]]] = {
    "activation_checkpointing_kwargs": ({"use_reentrant": False}, [3, ["a"]]),
    "activation_offloading": (True, ["yes", 1]),
    "dataloader_multiprocessing_context": ("spawn", ["thread", 3]),
    "dataloader_num_workers": (2, [-1, 1.5, True]),
    "dataloader_persistent_workers": (True, ["yes"]),
    "dataloader_pin_memory": (False, [0, "no"]),
    "dataloader_prefetch_factor": (4, [0, 1.5]),
    "label_smoothing_factor": (0.1, [-0.1, 1.0, "much"]),
    "loss_type": ("dft", ["chunked_nll", "other", 3]),
    "neftune_noise_alpha": (5.0, [0.0, "much", True]),
    "pad_to_multiple_of": (8, [0, "auto", 1.5]),
    "router_aux_loss_coef": (0.01, [-1.0, "much"]),
    "torch_empty_cache_steps": (10, [0, 1.5]),
}
"""What a recipe may add: a value that is accepted, and some that aren't. All of it keeps bits, rows and order."""

OLD_NAMES = {
    "evaluation_strategy": "eval_every",
    "group_by_length": "the kitchen owns the order of rows, and every row is trained once an epoch",
    "max_seq_length": "max_length",
    "warmup_ratio": "warmup_ratio",
}
"""Names that earlier versions of transformers and TRL had, and people still write."""

BREAKING = {
    "dataloader_drop_last": "every row once",
    "auto_find_batch_size": "every row once",
    "train_sampling_strategy": "row order",
    "dataloader_in_order": "row order",
    "accelerator_config": "row order",
    "ignore_data_skip": "exact resume",
    "torch_compile": "exact resume: kernels depend on the shapes that the process has seen",
    "torch_compile_backend": "exact resume",
    "torch_compile_mode": "exact resume",
    "tf32": "same fingerprint, same bits: a flag of the process",
    "use_liger_kernel": "same fingerprint, same bits: it replaces functions of the model's module",
    "liger_kernel_config": "same fingerprint, same bits",
    "average_tokens_across_devices": "one loss for all backends",
    "optim_args": "one optimiser for all backends",
    "optim_target_modules": "one optimiser for all backends",
    "full_determinism": "said by a field",
    "data_seed": "row order",
    "seed": "said by a field",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "resume_from_checkpoint": "safety: it may be unpickled",
    "trust_remote_code": "safety",
    "model_init_kwargs": "safety",
    "push_to_hub": "offline",
    "hub_token": "secrets are no fields",
    "report_to": "offline",
    "trackio_space_id": "offline",
    "eval_strategy": "bits: evaluation draws random numbers",
    "deepspeed": "where it runs",
    "fsdp": "where it runs",
    "ddp_find_unused_parameters": "where it runs",
}
"""Arguments that would break a promise of the kitchen, and which."""


def config_class() -> type:
    from trl import SFTConfig

    return SFTConfig


def names() -> set[str]:
    return {field.name for field in dataclasses.fields(config_class())}


def problems(**arguments: Any) -> list[tuple[str, str, str]]:
    return check_trainer_args(recipe({"trainer_args": arguments}), supervised)


def test_every_field_is_passed_on_or_refused_by_name() -> None:
    assert names() - set(OWNED) - set(OWNED_FIELDS) == set(PASSED_ON)


def test_no_name_is_refused_that_never_was_one() -> None:
    assert ({*OWNED, *OWNED_FIELDS}) - names() == set(OLD_NAMES)
    assert set(OWNED) & set(OWNED_FIELDS) == set()


def test_what_would_break_a_promise_is_refused() -> None:
    assert set(BREAKING) <= {*OWNED, *OWNED_FIELDS}


@pytest.mark.parametrize("name", OWNED_FIELDS)
def test_a_field_of_the_recipe_is_named_instead(name: str) -> None:
    field = OWNED_FIELDS[name]
    assert problems(**{name: 1}) == [
        (f"trainer_args.{name}", "is said by another field of the recipe", f"{field}: …")
    ]
    if field.startswith("trainer_args."):
        assert field.removeprefix("trainer_args.") in PASSED_ON
    else:
        assert field in field_names(type(recipe()))


@pytest.mark.parametrize("name", OWNED)
def test_what_can_not_be_set_is_refused_with_the_reason(name: str) -> None:
    ((path, said, fix),) = problems(**{name: 1})
    assert (path, fix) == (f"trainer_args.{name}", f"nothing: remove {name}")
    assert said == f"can't be set, because {OWNED[name]}"
    assert len(OWNED[name].split()) > 3


@pytest.mark.parametrize("name", OLD_NAMES)
def test_an_old_name_is_known(name: str) -> None:
    assert OLD_NAMES[name] == OWNED_FIELDS.get(name, OWNED.get(name))


@pytest.mark.parametrize("name", PASSED_ON)
def test_a_good_value_is_accepted(name: str) -> None:
    assert problems(**{**WORKERS, name: PASSED_ON[name][0]}) == []


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, wrong) in PASSED_ON.items() for value in wrong]
)
def test_a_wrong_value_is_refused_by_name(name: str, value: Any) -> None:
    ((path, said, fix),) = problems(**{**WORKERS, name: value})
    assert path == f"trainer_args.{name}"
    assert said.startswith("must be ")
    assert said.endswith(f", got {value!r}")
    assert fix.startswith(f"{name}: a value ")


def test_the_words_on_a_wrong_value() -> None:
    assert problems(neftune_noise_alpha="much", label_smoothing_factor=1.0, loss_type="kl") == [
        (
            "trainer_args.neftune_noise_alpha",
            "must be float | None, got 'much'",
            "neftune_noise_alpha: a value of that type",
        ),
        (
            "trainer_args.label_smoothing_factor",
            "must be at least 0 and less than 1, got 1.0",
            "label_smoothing_factor: a value within that",
        ),
        ("trainer_args.loss_type", "must be nll or dft, got 'kl'", "loss_type: a value within that"),
    ]


def test_a_whole_number_is_a_float_too_and_null_where_the_class_takes_it() -> None:
    assert problems(neftune_noise_alpha=5, label_smoothing_factor=0) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataloader_prefetch_factor", 2),
        ("dataloader_persistent_workers", True),
        ("dataloader_multiprocessing_context", "fork"),
    ],
)
def test_what_is_about_workers_needs_some(name: str, value: Any) -> None:
    said = [(f"trainer_args.{name}", "means something only with workers", "dataloader_num_workers: 1 beside it")]
    assert problems(**{name: value}) == said
    assert problems(**{name: value, "dataloader_num_workers": 0}) == said
    assert problems(**{name: value, "dataloader_num_workers": 1}) == []


def test_a_name_that_is_none_is_told_with_the_nearest_that_may_be_set() -> None:
    assert problems(neftune_noise_alfa=5.0) == [
        (
            "trainer_args.neftune_noise_alfa",
            "SFTConfig has no such field",
            "neftune_noise_alpha: 5.0, if that was meant",
        )
    ]
    assert problems(zzz=1) == [("trainer_args.zzz", "SFTConfig has no such field", "nothing: remove zzz")]
    ((_, _, fix),) = problems(learning_rates=1)
    assert "learning_rate:" not in fix


def test_all_arguments_are_looked_at() -> None:
    found = problems(seed=1, zzz=1, output_dir="x", loss_type="kl", neftune_noise_alpha=5.0)
    assert [path.removeprefix("trainer_args.") for path, _, _ in found] == ["seed", "zzz", "output_dir", "loss_type"]


def test_preflight_refuses_them_before_any_data_are_opened() -> None:
    class Closed(NoopDatasets):
        def open(self, reference: str, *, split: str = "train") -> Any:
            raise AssertionError("opened")

    engine = Engine(adapter=TrlTrainer(device="cpu"), datasets=Closed())
    with pytest.raises(ConfigError) as refused:
        preflight(engine.launch(trainer_args={"warmup_steps": 3, "push_to_hub": True, "neftune_noise_alfa": 5.0}))
    assert str(refused.value) == (
        "recipe supervised: the recipe can't be trained as it is\n"
        "  trainer_args.warmup_steps: is said by another field of the recipe\n"
        "    write: warmup_steps: …\n"
        "  trainer_args.push_to_hub: can't be set, because nothing untrusted is loaded and nothing is sent to a hub by "
        "a training run\n"
        "    write: nothing: remove push_to_hub\n"
        "  trainer_args.neftune_noise_alfa: SFTConfig has no such field\n"
        "    write: neftune_noise_alpha: 5.0, if that was meant"
    )


# What reaches TRL.


def built(values: dict[str, Any], **arguments: Any) -> Any:
    made = recipe(values)
    return training_arguments(config_class(), made, resolution(made), plan(made), Path("scratch"), arguments)


def test_what_is_passed_on_reaches_the_config() -> None:
    passed = {name: value for name, (value, _) in PASSED_ON.items()}
    made = built({"trainer_args": passed})
    assert {name: getattr(made, name) for name in passed} == passed


def test_every_field_of_the_recipe_reaches_the_config() -> None:
    made = built(
        {
            "epochs": 5,
            "batch_size": 4,
            "gradient_accumulation_steps": 3,
            "learning_rate": 3.0e-4,
            "warmup_ratio": 0.1,
            "weight_decay": 0.01,
            "adam_beta1": 0.8,
            "adam_beta2": 0.95,
            "adam_eps": 1.0e-6,
            "max_grad_norm": 0.5,
            "optimizer": "adafactor",
            "precision": "bf16",
            "gradient_checkpointing": True,
            "seed": 17,
        },
        padding_free=True,
        max_length=None,
    )
    # 198 rows in steps of 12 are 17 steps an epoch and 85 in all, of which a tenth, rounded, is 9.
    wanted = {
        "num_train_epochs": 5,
        "max_steps": -1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "learning_rate": 3.0e-4,
        "warmup_steps": 9,
        "weight_decay": 0.01,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "adam_epsilon": 1.0e-6,
        "max_grad_norm": 0.5,
        "optim": "adafactor",
        "bf16": True,
        "fp16": False,
        "activation_checkpointing": True,
        "full_determinism": False,
        "seed": 17,
        "data_seed": 17,
        "padding_free": True,
        "max_length": None,
        "output_dir": "scratch",
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
    }
    assert {name: getattr(made, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("max_steps", "passed"), [(None, -1), (39, -1), (1000, -1), (38, 38), (20, 20), (13, -1), (12, 12)]
)
def test_a_run_that_is_cut_short_says_so_and_no_other(max_steps: int | None, passed: int) -> None:
    made = built({"batch_size": 16, "max_steps": max_steps})
    assert (made.max_steps, made.num_train_epochs) == (passed, min(3, -(-(max_steps or 39) // 13)))


def test_every_optimiser_is_one_that_transformers_knows() -> None:
    from transformers.training_args import OptimizerNames

    assert {OPTIMIZERS[name] for name in OPTIMIZERS} <= {item.value for item in OptimizerNames}
    for name in OPTIMIZERS:
        assert built({"optimizer": name}).optim.value == OPTIMIZERS[name]


def test_what_the_config_class_refuses_is_an_error_of_the_kitchen() -> None:
    with pytest.raises(ConfigError) as refused:
        built({"trainer_args": {"pad_to_multiple_of": "x"}})
    assert str(refused.value).startswith("trainer_args: SFTConfig refuses a value: invalid literal for int()")
