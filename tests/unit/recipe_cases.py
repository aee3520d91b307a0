"""Every field of the supervised recipe with another valid value, and recipes made of such values."""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.blocks import EvaluationConfig, LoraConfig, RowLimits
from kitchen_resources.recipes.fields import FieldFacts, fields_with_facts
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe

NAMED: dict[str, Any] = {"model": "path/to/model", "dataset": "rows.jsonl"}
"""The least that a recipe needs."""

BLOCKS: dict[str, type[BaseModel]] = {
    "lora": LoraConfig,
    "row_limits": RowLimits,
    "evaluations.0": EvaluationConfig,
}
"""Where the recipe holds blocks, and of which class."""

OTHER: dict[str, Any] = {
    "model": "path/to/other",
    "chat_template": "chatml",
    "dataset": "others.jsonl",
    "split": "validation",
    "max_rows": 100,
    "columns": {"prompt": "question"},
    "held_out": "0.2",
    "max_length": 512,
    "row_limits": {"truncated": 0.3},
    "row_limits.invalid": 0.5,
    "row_limits.untrained": 0.25,
    "row_limits.truncated": 0.75,
    "row_limits.duplicates": 0.125,
    "row_limits.overlap": 0.5,
    "row_limits.near_duplicates": 0.25,
    "row_limits.contaminated": 0.5,
    "row_limits.template_drift": 0.25,
    "epochs": 5,
    "max_steps": 10,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "optimizer": "sgd",
    "learning_rate": 3.0e-4,
    "lr_schedule": "cosine",
    "lr_final": 1.0e-6,
    "lr_power": 2.0,
    "lr_decay_rate": 0.5,
    "lr_cycles": 1.5,
    "warmup_ratio": 0.25,
    "warmup_steps": 7,
    "weight_decay": 0.01,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_eps": 1.0e-6,
    "max_grad_norm": 0.5,
    "lora": {"rank": 8},
    "lora.rank": 4,
    "lora.alpha": 64,
    "lora.dropout": 0.1,
    "lora.target_modules": ["q_proj", "v_proj"],
    "lora.rslora": True,
    "quantization": "4bit",
    "precision": "bf16",
    "gradient_checkpointing": True,
    "attention": "eager",
    "seed": 17,
    "deterministic": True,
    "trainer_args": {"neftune_noise_alpha": 5.0},
    "checkpoint_steps": 50,
    "checkpoint_minutes": 30.0,
    "keep_last": 3,
    "keep_best": 2,
    "eval_every": 2,
    "evaluations": [{"name": "other", "dataset": "others.jsonl"}],
    "evaluations.0.name": "renamed",
    "evaluations.0.dataset": "third.jsonl",
    "evaluations.0.split": "test",
    "evaluations.0.columns": {"completion": "answer"},
    "evaluations.0.scorer": "contains",
    "evaluations.0.scorer_args": {"case_sensitive": False},
    "evaluations.0.samples": 10,
    "evaluations.0.max_tokens": 32,
    "evaluations.0.batch_size": 16,
    "select": "best",
    "select_metric": "held_out/perplexity",
    "early_stop_patience": 2,
    "export": "adapter",
    "continue_from": "0123abcd",
    "carry": "weights",
    "on_drift": "refuse",
    "lease_wait_s": 60.0,
    "train_on": "all_messages",
    "packing": True,
}
"""For each field another valid value than its default; a field without one fails the tests that walk over them."""


def paths() -> Iterator[tuple[str, FieldInfo, FieldFacts]]:
    """Every field by dotted path: the recipe's own, and those of its blocks."""
    yield from fields_with_facts(SupervisedRecipe)
    for prefix, block in BLOCKS.items():
        for name, field, facts in fields_with_facts(block):
            yield f"{prefix}.{name}", field, facts


def nested(path: str, value: Any) -> dict[str, Any]:
    """A value at a dotted path, as a recipe file has it: `evaluations.0.name` is the first of a list."""
    first, _, rest = path.partition(".")
    if not rest:
        return {first: value}
    if rest.startswith("0."):
        start = {"name": "first", "dataset": "others.jsonl"}
        return {first: [{**start, **nested(rest.removeprefix("0."), value)}]}
    return {first: nested(rest, value)}


def value_at(recipe: BaseModel, path: str) -> Any:
    """What a recipe has at a dotted path."""
    value: Any = recipe
    for part in path.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    return value


_made: dict[str, SupervisedRecipe] = {}


def recipe(values: Mapping[str, Any] | None = None, *, name: str = "mine", **definition: Any) -> SupervisedRecipe:
    """A bound recipe with a model, a data set and the given values. It is frozen, and takes Dagster some time to make."""
    key = repr((values, name, definition))
    if key not in _made:
        made = bind(SupervisedRecipe, {**NAMED, **(values or {})}, RecipeDefinition(name=name, **definition))
        assert isinstance(made, SupervisedRecipe)
        _made[key] = made
    return _made[key]


def launched(recipes: Mapping[str, Recipe], configs: Mapping[str, Any]) -> dict[str, Any]:
    """The recipes as the ops of one real run receive them."""
    seen: dict[str, Any] = {}

    def reader(name: str) -> dg.OpDefinition:
        @dg.op(name=f"read_{name}", required_resource_keys={name})
        def read(context: dg.OpExecutionContext) -> None:
            seen[name] = getattr(context.resources, name)

        return read

    ops = [reader(name) for name in recipes]

    @dg.job(resource_defs=dict(recipes))
    def job() -> None:
        for read in ops:
            read()

    job.execute_in_process(
        run_config={
            "resources": {name: {"config": config} for name, config in configs.items()},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        }
    )
    return seen


def launch(made: Recipe, config: Mapping[str, Any]) -> Any:
    """One recipe as an op receives it under the given run config."""
    return launched({"mine": made}, {"mine": config})["mine"]
