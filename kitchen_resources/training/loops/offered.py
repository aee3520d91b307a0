"""What of a recipe the kitchen's own loops do."""

from collections.abc import Mapping
from typing import Any

from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.loops.stages import replaceable
from kitchen_resources.training.own_code import find


def check_loops(recipe: Recipe) -> list[Problem]:
    """What of a recipe the kitchen's own loops don't do.

    Raises:
        ConfigError: Code of its own can't be imported, or takes the place of other code of its own.
    """
    problems: list[Problem] = []
    if recipe.definition.loss:
        find(recipe.definition.loss, "loss")
    stages = recipe.definition.batch_stages
    known = replaceable(recipe)
    for stage, reference in stages.items():
        if stage in known:
            find(reference, f"batch_stages.{stage}")
        else:
            problems.append((f"batch_stages.{stage}", "is no stage of this loop", f"one of {', '.join(known)}"))
    if recipe.definition.loss and "forward_backward" in stages:
        problems.append(
            ("loss", "is read by the forward_backward that batch_stages replaces", "remove one of the two")
        )
    for name in recipe.trainer_args:
        problems.append(
            (f"trainer_args.{name}", "is an argument of TRL, which this backend doesn't use", "remove it")
        )
    if recipe.optimizer != "adamw":
        problems.append(("optimizer", f"{recipe.optimizer} is not offered by this backend", "optimizer: adamw"))
    if isinstance(recipe, PreferenceRecipe) and recipe.loss_type != ["sigmoid"]:
        problems.append(("loss_type", "only sigmoid is offered by this backend", "loss_type: [sigmoid]"))
    if isinstance(recipe, ReinforcementRecipe):
        problems.extend(_check_reinforcement(recipe))
    if isinstance(recipe, DistillationRecipe):
        if recipe.mode == "logit":
            problems.append(
                (
                    "mode",
                    "logit needs the teacher's whole distribution, which primitives don't give",
                    "mode: on_policy",
                )
            )
        if recipe.mode == "on_policy" and recipe.divergence != 1.0:
            problems.append(("divergence", "only the reverse KL is offered by this backend", "divergence: 1.0"))
        if recipe.mode == "on_policy" and recipe.temperature != 1.0:
            problems.append(("temperature", "must be 1 on this backend", "temperature: 1.0"))
    return problems


def _check_reinforcement(recipe: ReinforcementRecipe) -> list[Problem]:
    problems: list[Problem] = []
    fixed: Mapping[str, tuple[Any, Any, str]] = {
        "top_p": (recipe.top_p, 1.0, "top_p: 1.0"),
        "top_k": (recipe.top_k, 0, "top_k: 0"),
        "temperature": (recipe.temperature, 1.0, "temperature: 1.0"),
        "importance_level": (recipe.importance_level, "token", "importance_level: token"),
        "generation.engine": (recipe.generation.engine, "transformers", "generation: {engine: transformers}"),
    }
    for path, (value, offered, fix) in fixed.items():
        if value != offered:
            problems.append((path, f"must be {offered} on this backend, got {value}", fix))
    if recipe.loss_type not in ("dapo", "cispo"):
        problems.append(("loss_type", f"{recipe.loss_type} is not offered by this backend", "loss_type: dapo"))
    if recipe.scale_rewards == "batch":
        problems.append(("scale_rewards", "batch is not offered by this backend", "scale_rewards: group"))
    return problems
