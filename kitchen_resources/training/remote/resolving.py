"""What a recipe comes to that a service trains: the same from whichever machine it is launched."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import replace

from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.port import BaseModel, Resolution


def resolve_at_service(
    recipe: Recipe,
    base: BaseModel,
    models: Mapping[str, BaseModel],
    *,
    algorithm: Mapping[str, int],
    service_model: str,
    sdk: str,
) -> Resolution:
    """See `Trainer.resolve`.

    Args:
        recipe: What to train.
        base: The base model.
        models: Models besides it, by role.
        algorithm: See `Resolution`.
        service_model: The base, by the service's name of it.
        sdk: The package that speaks to the service.
    """
    from kitchen_resources.training.pytorch.machine import choose_device
    from kitchen_resources.training.pytorch.sizing import resolve_here

    # What is evaluated and exported is worked out on this machine, from the adapter that the service gives. Its
    # precision and kernels move no weight, and aren't to make another run of the same one: a CPU's are always there.
    here = resolve_here(
        recipe,
        base,
        models,
        device="cpu",
        threads=None,
        algorithm=algorithm,
        optimizer="adamw",
        frozen_copies=0,
    )
    return replace(
        here,
        # Whose kernels and which precision train there, nobody is told; the name is what is known.
        values={**here.values, "service_model": service_model},
        device=choose_device("auto"),
        environment={**here.environment, sdk: importlib.metadata.version(sdk)},
    )
