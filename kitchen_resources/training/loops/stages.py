"""The stages of an optimiser step: the data of a batch, its gradients, the step. A recipe may name others.

They are functions that a loop calls, and no steps of Dagster: one of those costs more than an optimiser step
(docs/decisions/0024). Each replacement is called as the loop's own one is, which it can import and call.
"""

from collections.abc import Callable, Mapping
from typing import Any

from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.own_code import check_reference, find

SAMPLED = ("forward_backward", "optim_step")
BATCH_STAGES = ("get_batch", *SAMPLED)
"""Their names. Where a method samples, a batch is what an environment or the student made of it, and isn't replaced."""


def check_batch_stages(value: Any, method: str, *, where: Callable[[str], str]) -> dict[str, str]:
    """Stages as a recipe file names them, when they have the form of functions; nothing is imported.

    Args:
        value: What the file says.
        method: The recipe's.
        where: Gives the place of a dotted path.

    Raises:
        ConfigError: It isn't a mapping, or names a stage that there isn't, or no function.
    """
    known = SAMPLED if method == "reinforcement" else BATCH_STAGES
    fix = "batch_stages: {optim_step: package.module:function}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be a mapping, got {value!r}", where=where("batch_stages"), fix=fix)
    for name, reference in value.items():
        place = where(f"batch_stages.{name}")
        if name not in known:
            raise ConfigError(f"there is no stage {name!r}", where=place, fix=f"one of {', '.join(known)}")
        if not isinstance(reference, str) or not reference:
            raise ConfigError(f"{reference!r} names no function", where=place, fix=fix)
        check_reference(reference, "batch_stages", where=place)
    return {str(name): str(reference) for name, reference in value.items()}


def replaceable(recipe: Recipe) -> tuple[str, ...]:
    """The stages that a recipe may name others for: none that make the batch where a method samples it."""
    sampled = recipe.method == "reinforcement" or getattr(recipe, "mode", "") == "on_policy"
    return SAMPLED if sampled else BATCH_STAGES


def batch_stages(named: Mapping[str, str], *own: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The stages of a loop, or those that a recipe names in their places.

    Args:
        named: `module:function` by stage.
        own: The loop's functions, named as the stages.

    Raises:
        ConfigError: One can't be imported, or is no function.
    """
    return [
        find(named[stage.__name__], f"batch_stages.{stage.__name__}") if stage.__name__ in named else stage
        for stage in own
    ]
