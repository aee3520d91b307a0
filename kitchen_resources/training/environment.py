"""The environment that a run was started in, and what has drifted since."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kitchen_resources.checkpoints.head import Head
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.errors import CheckpointError
from kitchen_resources.recipes.identity import changes
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.port import Resolution


def first_environment(store: CheckpointStore, head: Head) -> dict[str, Any] | None:
    """The environment of a run's first checkpoint that can be read; None before there is one."""
    for entry in head.checkpoints:
        try:
            return dict(store.manifest(entry).environment)
        except CheckpointError:
            # Damaged; found and quarantined where the checkpoint itself is wanted.
            continue
    return None


def as_started(resolution: Resolution, first: Mapping[str, Any] | None) -> Resolution:
    """The resolution, with the thread count that the run was started with: it moves bits where there is dropout."""
    threads = first.get("threads") if first else None
    if isinstance(threads, int) and threads != resolution.threads:
        environment = {**resolution.environment, "threads": threads}
        return replace(resolution, threads=threads, environment=environment)
    return resolution


def drift(first: Mapping[str, Any] | None, resolution: Resolution) -> str | None:
    """What a person should know when this environment isn't the one that the run was started in."""
    moved = changes(first, resolution.environment) if first is not None else []
    if not moved:
        return None
    return f"this run was started in another environment ({'; '.join(moved)}); its bits may differ from one go"


def drift_of(recipe: Recipe, fingerprint: str, first: Mapping[str, Any] | None, resolution: Resolution) -> str:
    """See `drift`; "" where there is none.

    Raises:
        CheckpointError: There is one, and the recipe goes on with none.
    """
    said = drift(first, resolution)
    if said is not None and recipe.on_drift == "refuse":
        raise CheckpointError(said, where=f"run {fingerprint[:12]}", fix="restore it, or set on_drift: warn")
    return said or ""
