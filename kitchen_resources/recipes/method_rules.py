"""What a recipe's values must satisfy besides, by method."""

import math
from collections.abc import Callable, Iterator, Mapping

from kitchen_resources.environments.options import wrong_options, wrong_reward_options
from kitchen_resources.environments.registry import close_to, environment_names, reward_names
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import LOSSES, PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe

Problem = tuple[str, str, str]

_SMOOTHED = frozenset({"exo_pair", "robust", "aot", "aot_unpaired"})
"""Losses that read `label_smoothing`."""


def method_problems(recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with the values that only the recipe's method has."""
    if isinstance(recipe, PreferenceRecipe):
        yield from _preference(recipe)
    elif isinstance(recipe, ReinforcementRecipe):
        yield from _reinforcement(recipe)
    elif isinstance(recipe, DistillationRecipe):
        yield from _distillation(recipe)


def _preference(recipe: PreferenceRecipe) -> Iterator[Problem]:
    for index, name in enumerate(recipe.loss_type):
        if name not in LOSSES:
            yield f"loss_type.{index}", f"there is no loss {name!r}", f"one of {', '.join(LOSSES)}"
    if not recipe.loss_type or len(set(recipe.loss_type)) != len(recipe.loss_type):
        yield "loss_type", "names no loss, or one twice", "loss_type: [sigmoid]"
    weights = recipe.loss_weights
    if weights is not None and len(weights) != len(recipe.loss_type):
        yield (
            "loss_weights",
            f"has {len(weights)} weights for {len(recipe.loss_type)} losses",
            "one weight for each loss_type, or null",
        )
    if weights is not None and not all(0 <= weight < math.inf for weight in weights):
        yield "loss_weights", "has a weight that is below 0 or not finite", "loss_weights: numbers from 0"
    smoothed = _SMOOTHED.intersection(recipe.loss_type)
    if recipe.label_smoothing and not smoothed:
        yield (
            "label_smoothing",
            f"isn't read by {', '.join(recipe.loss_type)}",
            f"label_smoothing: 0, or a loss_type of {', '.join(sorted(_SMOOTHED))}",
        )
    if "exo_pair" in smoothed and recipe.label_smoothing == 0:
        yield "label_smoothing", "must be above 0 for exo_pair", "label_smoothing: 1.0e-3"
    if "robust" in smoothed and recipe.label_smoothing >= 0.5:
        yield "label_smoothing", "must be below 0.5 for robust", "label_smoothing: 0.1"
    if recipe.reference_model is not None and not recipe.reference_model.strip():
        yield "reference_model", "names no model", "reference_model: null for the run's own base"


def _reinforcement(recipe: ReinforcementRecipe) -> Iterator[Problem]:
    yield from _environment(recipe)
    yield from _numbers(recipe)
    if recipe.loss_type == "luspo" and recipe.importance_level != "sequence":
        yield "importance_level", "must be sequence for luspo", "importance_level: sequence"
    if recipe.loss_type == "vespo" and recipe.importance_level != "token":
        yield "importance_level", "must be token for vespo, which weighs sequences itself", "importance_level: token"
    if recipe.generation.options and recipe.generation.engine != "vllm":
        yield "generation.options", "are vllm's, and the engine is transformers", "generation: {engine: vllm}"
    for index, evaluation in enumerate(recipe.evaluations):
        if evaluation.dataset == "held_out" and evaluation.name != "held_out":
            yield (
                f"evaluations.{index}.dataset",
                "is held_out, whose problems the environment scores by itself (held_out/reward)",
                "a data set with answers; or name: held_out, which says how many problems are measured at a time",
            )


def _numbers(recipe: ReinforcementRecipe) -> Iterator[Problem]:
    """What must divide what; a number out of its bounds is told by them, and divides nothing."""
    completions = recipe.groups_per_batch * recipe.group_size
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    in_bounds = min(recipe.batch_size, recipe.gradient_accumulation_steps, recipe.groups_per_batch) >= 1
    if in_bounds and recipe.group_size >= 2 and rows != completions:
        yield (
            "batch_size",
            f"{recipe.batch_size} x gradient_accumulation_steps {recipe.gradient_accumulation_steps} is {rows} completions, "
            f"and groups_per_batch {recipe.groups_per_batch} x group_size {recipe.group_size} is {completions}",
            _nearest_batch(recipe),
        )
    if min(recipe.steps_per_epoch, recipe.ppo_epochs) >= 1 and recipe.steps_per_epoch % recipe.ppo_epochs:
        whole = max(1, round(recipe.steps_per_epoch / recipe.ppo_epochs)) * recipe.ppo_epochs
        yield (
            "steps_per_epoch",
            f"{recipe.steps_per_epoch} isn't divisible by ppo_epochs {recipe.ppo_epochs}",
            f"steps_per_epoch: {whole}",
        )


def _environment(recipe: ReinforcementRecipe) -> Iterator[Problem]:
    environment, known = recipe.environment, environment_names()
    if not environment.name:
        yield "environment.name", "no environment is named", f"environment: {{name: one of {', '.join(known)}}}"
    elif environment.name not in known:
        said = f"there is no environment {environment.name!r}"
        yield "environment.name", said, f"{close_to(environment.name, known)}; or register_environment(…) yours"
    else:
        wrong = wrong_options(environment.name, environment.args)
        if wrong is not None:
            yield "environment", wrong, f"environment: {{name: one of {', '.join(known)}, args: its own options}}"
    rewards = reward_names()
    named = [reward.name for reward in recipe.rewards]
    for name in sorted({name for name in named if named.count(name) > 1}):
        yield "rewards", f"the reward {name!r} is named twice", "each reward once, with the sum of the weights"
    for index, reward in enumerate(recipe.rewards):
        if reward.name not in rewards:
            said = f"there is no reward {reward.name!r}"
            yield f"rewards.{index}.name", said, f"{close_to(reward.name, rewards)}; or register_reward(…) yours"
            continue
        wrong = wrong_reward_options(reward.name, reward.args)
        if wrong is not None:
            yield f"rewards.{index}", wrong, f"name: one of {', '.join(rewards)}, args: its own options"


def _nearest_batch(recipe: ReinforcementRecipe) -> str:
    """The nearest numbers that fit, changing one field at a time."""
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    completions = recipe.groups_per_batch * recipe.group_size
    choices = []
    if completions % recipe.gradient_accumulation_steps == 0:
        choices.append(f"batch_size: {completions // recipe.gradient_accumulation_steps}")
    if completions % recipe.batch_size == 0:
        choices.append(f"gradient_accumulation_steps: {completions // recipe.batch_size}")
    if rows % recipe.group_size == 0:
        choices.append(f"groups_per_batch: {rows // recipe.group_size}")
    if rows % recipe.groups_per_batch == 0 and rows // recipe.groups_per_batch > 1:
        choices.append(f"group_size: {rows // recipe.groups_per_batch}")
    if not choices:
        groups = max(1, round(rows / recipe.group_size))
        choices.append(
            f"groups_per_batch: {groups}, batch_size: {groups * recipe.group_size}, gradient_accumulation_steps: 1"
        )
    return ", or ".join(choices)


def _distillation(recipe: DistillationRecipe) -> Iterator[Problem]:
    if not recipe.teacher.strip() and not recipe.definition.teacher_from:
        yield (
            "teacher",
            "no teacher is named",
            "teacher: a local folder or a hub id, or teacher_from: another recipe, in the recipe's file",
        )
    if recipe.mode == "on_policy" and recipe.temperature == 0:
        yield "temperature", "is 0, and on_policy samples", "temperature: 1.0"


def method_metrics(recipe: Recipe) -> list[str]:
    """The metrics that are measured of a recipe's held-out rows, by method."""
    return [f"held_out/{name}" for name in _METRICS.get(recipe.method, _of_rows)(recipe)]


def _of_rows(recipe: Recipe) -> list[str]:
    return ["loss", "perplexity"]


def _of_episodes(recipe: Recipe) -> list[str]:
    assert isinstance(recipe, ReinforcementRecipe)
    return ["reward", "pass@1", *([f"pass@{recipe.pass_at}"] if recipe.pass_at > 1 else [])]


_METRICS: Mapping[str, Callable[[Recipe], list[str]]] = {
    "preference": lambda recipe: ["loss", "accuracy", "margin", "chosen_reward", "rejected_reward"],
    "reinforcement": _of_episodes,
    "distillation": lambda recipe: ["loss", "perplexity", "teacher_kl"],
}
