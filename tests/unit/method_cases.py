"""The fields of preference, reinforcement and distillation recipes, each with another valid value."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from recipe_cases import NAMED, nested

from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.fields import FieldFacts, fields_with_facts
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.reinforcement import (
    EnvironmentConfig,
    GenerationConfig,
    ReinforcementRecipe,
    RewardConfig,
)

LEAST: dict[type[Recipe], dict[str, Any]] = {
    PreferenceRecipe: NAMED,
    ReinforcementRecipe: {"model": NAMED["model"], "environment": {"name": "arithmetic"}},
    DistillationRecipe: {**NAMED, "teacher": "path/to/teacher"},
}
"""The least that a recipe of each method needs."""

METHODS = list(LEAST)

BLOCKS: dict[str, type[BaseModel]] = {
    "environment": EnvironmentConfig,
    "rewards.0": RewardConfig,
    "generation": GenerationConfig,
}
"""Where a reinforcement recipe holds blocks of its own, and of which class."""

OTHER: dict[type[Recipe], dict[str, Any]] = {
    PreferenceRecipe: {
        "learning_rate": 3.0e-4,
        "beta": 0.3,
        "loss_type": ["ipo"],
        "loss_weights": [0.5],
        "label_smoothing": 0.1,
        "reference_model": "path/to/reference",
        "precompute_reference": True,
        "select_metric": "held_out/margin",
    },
    ReinforcementRecipe: {
        "dataset": "problems.jsonl",
        "learning_rate": 3.0e-4,
        "lr_schedule": "cosine",
        "batch_size": 16,
        "environment": {"name": "arithmetic", "max_turns": 5},
        "environment.name": "math",
        "environment.args": {"digits": 3},
        "environment.max_turns": 3,
        "environment.time_limit_s": 5.0,
        "environment.workers": 4,
        "environment.max_failed": 0.5,
        "rewards": [{"name": "length_penalty", "weight": 0.1}],
        "rewards.0.name": "contains",
        "rewards.0.weight": 0.25,
        "rewards.0.args": {"pattern": "a"},
        "group_size": 4,
        "groups_per_batch": 2,
        "steps_per_epoch": 10,
        "max_tokens": 64,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 11,
        "generation": {"engine": "vllm", "options": {"mode": "colocate"}},
        "generation.engine": "vllm",
        "generation.options": {"mode": "server"},
        "loss_type": "grpo",
        "clip_epsilon": 0.3,
        "clip_epsilon_high": 0.4,
        "importance_level": "sequence",
        "kl_coef": 0.1,
        "scale_rewards": "group",
        "ppo_epochs": 2,
        "pass_at": 8,
        "select_metric": "held_out/pass@1",
    },
    DistillationRecipe: {
        "teacher": "path/to/another",
        "mode": "on_policy",
        "train_on": "all_assistant_messages",
        "alpha": 0.9,
        "kd_temperature": 1.5,
        "divergence": 0.5,
        "max_tokens": 64,
        "temperature": 0.7,
    },
}
"""For each field that a method adds or changes another valid value than its default."""


def made(method: type[Recipe], values: Mapping[str, Any] | None = None, **definition: Any) -> Recipe:
    """A bound recipe of a method, with the least that it needs and the given values."""
    definition = {"name": "mine", **definition}
    return bind(method, {**LEAST[method], **(values or {})}, RecipeDefinition(**definition))


def own_paths(method: type[Recipe]) -> Iterator[tuple[str, FieldInfo, FieldFacts]]:
    """The fields that a method adds to those of every recipe, or changes, by dotted path; with those of its blocks."""
    common = {name: field for name, field, _ in fields_with_facts(Recipe)}
    for name, field, facts in fields_with_facts(method):
        if name not in common or (field.default, field.description) != told(common[name]):
            yield name, field, facts
    for prefix, block in BLOCKS.items() if method is ReinforcementRecipe else ():
        for name, field, facts in fields_with_facts(block):
            yield f"{prefix}.{name}", field, facts


def told(field: FieldInfo) -> tuple[Any, str | None]:
    """What is told of a field."""
    return field.default, field.description


def other(method: type[Recipe], path: str) -> dict[str, Any]:
    """The other value of a field, as a recipe file has it; a block keeps what it needs beside."""
    value = nested(path, OTHER[method][path])
    if path.startswith("environment."):
        value["environment"] = {"name": "arithmetic", **value["environment"]}
    if path.startswith("rewards.0."):
        value["rewards"] = [{name: item for name, item in value["rewards"][0].items() if name != "dataset"}]
    return value
