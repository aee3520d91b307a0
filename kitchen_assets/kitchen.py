"""A code location in one call: recipes, resources and workflows become Dagster definitions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from kitchen_assets.compiler import RecipeAssets
from kitchen_assets.composition import Workflow
from kitchen_assets.executor import kitchen_executor
from kitchen_assets.maintenance import storage_cleanup, storage_cleanup_schedule
from kitchen_assets.publishing import hub_push
from kitchen_assets.references import epoch_references
from kitchen_assets.sensors import run_sensors
from kitchen_assets.workflows import WORKFLOWS
from kitchen_resources.blobs.resource import BlobsResource
from kitchen_resources.datasets.resource import DatasetsResource
from kitchen_resources.errors import ConfigError
from kitchen_resources.evaluation.resource import EvaluatorResource
from kitchen_resources.recipes.binding import rebind
from kitchen_resources.recipes.files import load_recipes, recipe_folder
from kitchen_resources.recipes.names import check_name
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.registry.resource import RegistryResource
from kitchen_resources.telemetry.resource import TelemetryResource
from kitchen_resources.training.resource import TrainerResource

BUILT_IN_RECIPES = Path(__file__).parent / "recipes"


def default_resources() -> dict[str, Any]:
    """The ports with their default adapters."""
    return {
        "trainer": TrainerResource(),
        "blobs": BlobsResource(),
        "datasets": DatasetsResource(),
        "evaluator": EvaluatorResource(),
        "registry": RegistryResource(),
        "telemetry": TelemetryResource(),
    }


@dataclass(frozen=True)
class Kitchen:
    """A code location.

    Attributes:
        recipes: Recipes by name; their workflow is that of their class.
        resources: Adapters that replace the default ones, by resource key.
        workflows: Workflows beside the built-in ones.
        name: Name of the location.
    """

    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    workflows: Sequence[Workflow] = ()
    name: str = "kitchen"

    def known_workflows(self) -> dict[str, Workflow]:
        """Built-in and own workflows, by name."""
        return {**WORKFLOWS, **{workflow.name: workflow for workflow in self.workflows}}

    def bound_recipes(self) -> dict[str, Recipe]:
        """The recipes as bound resources, which keep their values when a launch overrides some of them.

        Raises:
            ConfigError: A name is reserved, or not a plain one.
        """
        return {
            check_name(name, where=f"Kitchen(recipes={{{name!r}: …}})"): rebind(recipe, name=name)
            for name, recipe in self.recipes.items()
        }

    def recipe_assets(self) -> list[RecipeAssets]:
        """Every recipe with the workflow that trains it."""
        workflows = self.known_workflows()
        made = []
        bound = self.bound_recipes()
        for name, recipe in bound.items():
            if recipe.method not in workflows:
                known = ", ".join(sorted(workflows))
                raise ConfigError(
                    f"there is no workflow {recipe.method!r}",
                    where=f"recipe {name}",
                    fix=f"one of {known}, or pass yours",
                )
            made.append(RecipeAssets(workflows[recipe.method], recipe, self.name, upstream_recipes(name, bound)))
        return made

    def definitions(self) -> dg.Definitions:
        """The Dagster definitions of the location."""
        compiled = self.recipe_assets()
        jobs = [job for recipe in compiled for job in (*recipe.jobs(), *recipe.chain(), *recipe.checkpoint_jobs())]
        return dg.Definitions(
            assets=[asset for recipe in compiled for asset in recipe.assets()],
            asset_checks=[check for recipe in compiled for check in recipe.checks()],
            jobs=[*jobs, storage_cleanup, hub_push],
            schedules=[
                *(schedule for recipe in compiled for schedule in recipe.schedules()),
                storage_cleanup_schedule,
            ],
            sensors=run_sensors(jobs, {recipe.name: recipe.recipe for recipe in compiled}),
            resources={
                **default_resources(),
                **self.resources,
                "epoch_references": epoch_references,
                **{recipe.name: recipe.recipe for recipe in compiled},
            },
            executor=kitchen_executor,
        )


def upstream_recipes(name: str, recipes: Mapping[str, Recipe]) -> list[str]:
    """The recipes that one builds on, and those that they build on, nearest first.

    Raises:
        ConfigError: It names one that isn't there, or a recipe builds on itself.
    """
    found: list[str] = []
    waiting: list[tuple[str, tuple[str, ...]]] = [(name, (name,))]
    while waiting:
        current, path = waiting.pop(0)
        for role, named in (
            ("base_from", recipes[current].definition.base_from),
            ("teacher_from", recipes[current].definition.teacher_from),
        ):
            other = named.partition("@")[0]
            if not other:
                continue
            where = recipes[current].definition.source or f"recipe {current}"
            if other not in recipes:
                raise ConfigError(
                    f"{role} names the recipe {other!r}, which isn't there",
                    where=where,
                    fix=f"one of {', '.join(sorted(recipes))}",
                )
            if other in path:
                raise ConfigError(
                    f"builds on itself: {' <- '.join((*path, other))}", where=where, fix=f"remove {role}"
                )
            if other not in found:
                found.append(other)
            waiting.append((other, (*path, other)))
    return found


def built_in() -> Kitchen:
    """The location that ships with the kitchen: its own recipes, and those in `KITCHEN_RECIPES`.

    Raises:
        ConfigError: A recipe file is malformed, or takes the name of another recipe.
    """
    methods = {workflow.name: workflow.recipe for workflow in WORKFLOWS.values()}
    found = load_recipes(BUILT_IN_RECIPES, methods)
    folder = recipe_folder()
    if folder is not None:
        for recipe in load_recipes(folder, methods):
            for other in found:
                if other.definition.name == recipe.definition.name:
                    raise ConfigError(
                        f"recipe {recipe.definition.name!r} is also defined in {other.definition.source}",
                        where=recipe.definition.source,
                        fix="rename it (`name: …`)",
                    )
            found.append(recipe)
    return Kitchen(recipes={recipe.definition.name: recipe for recipe in found})
