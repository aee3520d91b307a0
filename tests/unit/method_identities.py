"""Identities of preference, reinforcement and distillation recipes with everything around them fixed.

They are committed with those of the supervised recipe: see `recipe_identities.py`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from method_cases import made
from recipe_identities import BASE, identity, resolution

from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.identity import Identity
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe

REFERENCE, TEACHER = "1" * 64, "2" * 64
ENVIRONMENT: dict[str, Any] = {
    "name": "arithmetic",
    "version": 1,
    "args": {"count": 1000, "maximum": 99},
    "source": "3" * 64,
    "rewards": [],
}

VARIANTS: dict[str, tuple[type[Recipe], dict[str, Any]]] = {
    "preference": (PreferenceRecipe, {}),
    "preference, two losses": (
        PreferenceRecipe,
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "beta": 0.3},
    ),
    "preference, smoothed": (PreferenceRecipe, {"loss_type": ["robust"], "label_smoothing": 0.1}),
    "preference, precomputed LoRA": (PreferenceRecipe, {"precompute_reference": True, "lora": {"rank": 8}}),
    "preference, another reference": (PreferenceRecipe, {"reference_model": "path/to/reference"}),
    "reinforcement": (ReinforcementRecipe, {}),
    "reinforcement, PPO": (ReinforcementRecipe, {"ppo_epochs": 4, "clip_epsilon_high": 0.28, "kl_coef": 0.05}),
    "reinforcement, sequences": (ReinforcementRecipe, {"loss_type": "luspo", "importance_level": "sequence"}),
    "reinforcement, other sampling": (ReinforcementRecipe, {"temperature": 0.7, "top_p": 0.9, "top_k": 50}),
    "reinforcement, rewards": (
        ReinforcementRecipe,
        {"rewards": [{"name": "ended", "weight": 0.5}, {"name": "format", "args": {"pattern": "[0-9]+"}}]},
    ),
    "reinforcement, vllm": (
        ReinforcementRecipe,
        {"generation": {"engine": "vllm", "options": {"gpu_memory_utilization": 0.3}}, "scale_rewards": "group"},
    ),
    "distillation": (DistillationRecipe, {}),
    "distillation, sequence": (DistillationRecipe, {"mode": "sequence", "temperature": 0.0, "max_tokens": 512}),
    "distillation, logits": (DistillationRecipe, {"alpha": 0.9, "kd_temperature": 1.5}),
    "distillation, on policy": (DistillationRecipe, {"mode": "on_policy", "divergence": 0.5}),
}
"""By name: the method, and what differs from its defaults."""


def besides(recipe: Recipe) -> dict[str, Any]:
    """What a launch puts beside recipe, base and data, with all digests fixed."""
    if isinstance(recipe, ReinforcementRecipe):
        rewards = [
            {"name": r.name, "version": 1, "args": dict(r.args), "source": "4" * 64, "weight": r.weight}
            for r in recipe.environment_spec().rewards
        ]
        return {"environment": {**ENVIRONMENT, "rewards": rewards}}
    if isinstance(recipe, DistillationRecipe):
        return {"teacher": TEACHER}
    return {"reference": REFERENCE} if "reference" in recipe.companions() else {}


def method_identity(method: type[Recipe], values: Mapping[str, Any] | None = None, **others: Any) -> Identity:
    """The identity of a recipe of a method; `others` as in `recipe_identities.identity`."""
    recipe = made(method, values)
    given = {"besides": besides(recipe), "resolution": of_method(recipe), "base": BASE, **others}
    return identity(recipe, **given)


def of_method(recipe: Recipe) -> Any:
    """The resolution of a recipe, with the version of its method's arithmetic."""
    from kitchen_resources.training.trl.session import METHODS

    fixed = resolution(recipe)
    named = {f"trl.{recipe.method}": METHODS[recipe.method].ALGORITHM_VERSION}
    return replace(fixed, algorithm={"trl": fixed.algorithm["trl"], **named})


def committed() -> dict[str, Identity]:
    """The identities that are committed, by name."""
    return {name: method_identity(*VARIANTS[name]) for name in VARIANTS}
