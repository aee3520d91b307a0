"""The events of single methods, from what their steps measured."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.training.port import StepMetrics

MethodEvent = tuple[str, dict[str, float], dict[str, Any]]
"""Name, measurements, metadata."""

_OF_PAIRS = ("accuracy", "chosen_reward", "rejected_reward", "margin")
_OF_EPISODES = {"reward_std": "reward_std", "kl": "kl_divergence", "entropy": "entropy", "solved": "solved"}
_OF_ANSWERS = ("reverse_kl", "kl")


def step_events(
    recipe: Recipe, metrics: StepMetrics, about: Mapping[str, Any], *, rows: int, steps_before: int
) -> Iterator[MethodEvent]:
    """What a step says in the terms of its method; nothing in supervised learning.

    Args:
        recipe: What is trained.
        metrics: Of the step.
        about: Metadata of `training.step`.
        rows: Rows that the step received.
        steps_before: Steps of its epoch before it.
    """
    measured = metrics.extra
    if isinstance(recipe, PreferenceRecipe):
        found = {name: measured[name] for name in _OF_PAIRS if name in measured}
        yield "dpo.step", {"loss": metrics.loss, **found}, {**about, "beta": recipe.beta, "num_pairs": rows}
    elif isinstance(recipe, ReinforcementRecipe):
        yield from _of_episodes(recipe, metrics, about, steps_before)
    elif recipe.method == "distillation":
        found = {name: measured[name] for name in _OF_ANSWERS if name in measured}
        yield "distillation.step", {"loss": metrics.loss, "num_sequences": rows, **found}, dict(about)


def _of_episodes(
    recipe: ReinforcementRecipe, metrics: StepMetrics, about: Mapping[str, Any], steps_before: int
) -> Iterator[MethodEvent]:
    draws = recipe.draws(0)
    found = {ours: metrics.extra[name] for name, ours in _OF_EPISODES.items() if name in metrics.extra}
    if "reward" in metrics.extra:
        found["reward_mean"] = metrics.extra["reward"]
    found["num_trajectories"] = recipe.groups_per_batch * recipe.group_size
    index = (metrics.epoch - 1) * draws.count + steps_before // draws.steps_per_draw
    if steps_before % draws.steps_per_draw == 0:
        where = {name: about[name] for name in ("recipe", "fingerprint", "epoch")}
        yield "rl.rollout_complete", found, {**where, "rollout_index": index}
    yield "rl.step", {"policy_loss": metrics.loss, **found}, {**about, "rollout_index": index}


def dataset_events(recipe: Recipe, rows: int, digest: str) -> Iterator[MethodEvent]:
    """What prepared rows are in the terms of the method; nothing in supervised learning.

    Args:
        recipe: What is to be trained.
        rows: Prepared rows, from which batches are made.
        digest: Of these rows.
    """
    name = recipe.definition.name
    if isinstance(recipe, PreferenceRecipe):
        batches = math.ceil(rows / (recipe.batch_size * recipe.gradient_accumulation_steps))
        yield "dpo.dataset_built", {"num_pairs": rows, "num_batches": batches}, {"recipe": name, "digest": digest}
    elif isinstance(recipe, ReinforcementRecipe):
        sizes = {"group_size": float(recipe.group_size), "groups_per_batch": float(recipe.groups_per_batch)}
        yield "rl.env_group_built", sizes, {"recipe": name, "env_type": recipe.environment.name}
