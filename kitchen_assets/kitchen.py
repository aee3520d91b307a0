"""A code location in one call: recipes, resources and workflows become Dagster definitions."""

import difflib
import gc
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg
from dagster._core.execution.build_resources import wrap_resources_for_execution

from kitchen_assets.compiler import RecipeAssets
from kitchen_assets.composition import Workflow
from kitchen_assets.executor import kitchen_executor
from kitchen_assets.maintenance import storage_cleanup, storage_cleanup_schedule
from kitchen_assets.narrowing import narrowed
from kitchen_assets.new_data import new_data_sensors
from kitchen_assets.promoting import promotion_sensors
from kitchen_assets.publishing import hub_push, production_rollback
from kitchen_assets.references import epoch_references
from kitchen_assets.sensors import run_sensors
from kitchen_assets.workflows import WORKFLOWS
from kitchen_resources.blobs.resource import BlobsResource
from kitchen_resources.datasets.resource import DatasetsResource
from kitchen_resources.errors import ConfigError
from kitchen_resources.evaluation.resource import EvaluatorResource
from kitchen_resources.given import as_resource
from kitchen_resources.recipes.binding import rebind
from kitchen_resources.recipes.files import load_recipes, recipe_folder
from kitchen_resources.recipes.names import RESOURCE_KEYS, check_name
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


@dataclass(frozen=True, init=False)
class Kitchen:
    """A code location in one call: `defs = Kitchen(recipes="recipes", resources={…}, workflows=[…]).definitions()`.

    Attributes:
        recipes: Recipes by name; their workflow is that of their class.
        resources: Adapters by resource key, in place of the default ones; and further ports of workflows and recipes.
        workflows: Workflows beside the built-in ones.
        name: Name of the location.
    """

    recipes: Mapping[str, Recipe]
    resources: Mapping[str, Any]
    workflows: Sequence[Workflow]
    name: str

    def __init__(
        self,
        recipes: Mapping[str, Recipe] | str | Path = MappingProxyType({}),
        resources: Mapping[str, Any] = MappingProxyType({}),
        workflows: Sequence[Workflow] = (),
        name: str = "kitchen",
    ) -> None:
        """Put a location together.

        Args:
            recipes: Recipes by name, or a folder of recipe files; these may extend the built-in recipes.
            resources: By key: Dagster resources, or objects that fulfil a port's contract.
            workflows: Workflows beside the built-in ones.
            name: Name of the location; what an instance shares between locations carries it.

        Raises:
            ConfigError: The folder isn't there, a recipe file is malformed, two workflows have one name, or an object
                doesn't fulfil its port.
        """
        with _collections_paused():
            self._put_together(recipes, resources, workflows, name)

    def _put_together(
        self,
        recipes: Mapping[str, Recipe] | str | Path,
        resources: Mapping[str, Any],
        workflows: Sequence[Workflow],
        name: str,
    ) -> None:
        known = dict(WORKFLOWS)
        for workflow in workflows:
            if workflow.name in known:
                raise ConfigError(
                    f"there is another workflow {workflow.name!r}",
                    where="Kitchen(workflows=[…])",
                    fix="give it a name of its own",
                )
            known[workflow.name] = workflow
        object.__setattr__(self, "workflows", tuple(workflows))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "resources", {key: as_resource(key, value) for key, value in resources.items()})
        if isinstance(recipes, (str, Path)):
            recipes = _recipes_in(Path(recipes), known)
        object.__setattr__(self, "recipes", dict(recipes))

    def known_workflows(self) -> dict[str, Workflow]:
        """Built-in and own workflows, by name."""
        return {**WORKFLOWS, **{workflow.name: workflow for workflow in self.workflows}}

    def all_resources(self) -> dict[str, Any]:
        """The ports with the adapters of this location."""
        return {**default_resources(), **self.resources}

    def bound_recipes(self) -> dict[str, Recipe]:
        """The recipes as bound resources, which keep their values when a launch overrides some of them.

        Raises:
            ConfigError: A name is reserved, not a plain one, or that of a resource.
        """
        found = {}
        for name, recipe in self.recipes.items():
            where = recipe.definition.source or f"Kitchen(recipes={{{name!r}: …}})"
            if name in self.resources:
                raise ConfigError(f"{name!r} is the key of a resource", where=where, fix="rename one of the two")
            found[check_name(name, where=where)] = rebind(recipe, name=name)
        return found

    def recipe_assets(self) -> list[RecipeAssets]:
        """Every recipe with the workflow that trains it.

        Raises:
            ConfigError: A recipe's workflow isn't there, or a port that it needs; or no recipe uses one that is.
        """
        workflows = self.known_workflows()
        made = []
        bound = self.bound_recipes()
        there = self.all_resources().keys()
        for name, recipe in bound.items():
            if recipe.workflow not in workflows:
                known = ", ".join(sorted(workflows))
                raise ConfigError(
                    f"there is no workflow {recipe.workflow!r}",
                    where=f"recipe {name}",
                    fix=f"one of {known}, or pass yours",
                )
            workflow = workflows[recipe.workflow]
            upstream = upstream_recipes(name, bound)
            made.append(RecipeAssets(workflow, recipe, self.name, upstream, ports_of(workflow, recipe, there)))
        return made

    def definitions(self) -> dg.Definitions:
        """The Dagster definitions of the location.

        Raises:
            ConfigError: As `recipe_assets`; or there are no recipes.
        """
        if not self.recipes:
            raise ConfigError(
                "there are no recipes", where="Kitchen(recipes=…)", fix="a folder of recipe files, or recipes by name"
            )
        with _collections_paused():
            return self._compiled()

    def _compiled(self) -> dg.Definitions:
        compiled = self.recipe_assets()
        self._require_used(compiled)
        resources = wrap_resources_for_execution(
            {
                **self.all_resources(),
                "epoch_references": epoch_references,
                **{recipe.name: recipe.recipe for recipe in compiled},
            }
        )
        made = [job for recipe in compiled for job in (*recipe.jobs(), *recipe.chain(), *recipe.checkpoint_jobs())]
        recipes = {recipe.name for recipe in compiled}
        jobs = narrowed(made, resources, recipes)
        return dg.Definitions(
            assets=[asset for recipe in compiled for asset in recipe.assets()],
            asset_checks=[check for recipe in compiled for check in recipe.checks()],
            jobs=[*jobs, *narrowed([storage_cleanup, hub_push, production_rollback], resources, recipes)],
            schedules=[
                *(schedule for recipe in compiled for schedule in recipe.schedules()),
                storage_cleanup_schedule,
            ],
            sensors=[
                *run_sensors(jobs, {recipe.name: recipe.recipe for recipe in compiled}),
                *new_data_sensors([recipe.recipe for recipe in compiled]),
                *promotion_sensors(jobs, [recipe.recipe for recipe in compiled]),
            ],
            resources=resources,
            executor=kitchen_executor,
        )

    def _require_used(self, compiled: Sequence[RecipeAssets]) -> None:
        """Refuse resources that nobody asks for: a mistyped key would leave the default adapter in place."""
        known = {"io_manager", *RESOURCE_KEYS}
        for recipe in compiled:
            known |= {*recipe.workflow.required_ports, *recipe.workflow.optional_ports}
            known |= {*recipe.recipe.definition.required_ports, *recipe.recipe.definition.optional_ports}
        for key in self.resources:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(
                    f"no workflow and no recipe names the port {key!r}{hint}",
                    where="Kitchen(resources={…})",
                    fix=f"required_ports: [{key}] in the recipe, or remove it",
                )


def ports_of(workflow: Workflow, recipe: Recipe, there: Container[str]) -> list[str]:
    """Keys of the resources that a recipe's stages may ask for, besides the kitchen's own.

    Args:
        workflow: The recipe's workflow.
        recipe: The recipe.
        there: Keys of the location's resources.

    Raises:
        ConfigError: One that it needs isn't in the location.
    """
    needed = named_ports(workflow.required_ports, recipe.definition.required_ports)
    for key in needed:
        if key not in there:
            raise ConfigError(
                f"needs the port {key!r}, which the location doesn't have",
                where=recipe.definition.source or f"recipe {recipe.definition.name}",
                fix=f"Kitchen(resources={{{key!r}: …}})",
            )
    used = named_ports(workflow.optional_ports, recipe.definition.optional_ports)
    return named_ports(needed, [key for key in used if key in there])


def named_ports(*given: Sequence[str]) -> list[str]:
    """Keys of several lists, each once."""
    return list(dict.fromkeys(key for keys in given for key in keys))


@contextmanager
def _collections_paused() -> Iterator[None]:
    """Without garbage collections: what is made here stays, and they take a tenth of the time looking at it."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _recipes_in(folder: Path, workflows: Mapping[str, Workflow]) -> dict[str, Recipe]:
    methods = {name: workflow.recipe for name, workflow in workflows.items()}
    if not folder.is_dir():
        raise ConfigError(
            "there is no such folder", where=str(folder), fix='recipes=Path(__file__).parent / "recipes"'
        )
    found = load_recipes(folder, methods, load_recipes(BUILT_IN_RECIPES, methods))
    return {recipe.definition.name: recipe for recipe in found}


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
        for recipe in load_recipes(folder, methods, found):
            for other in found:
                if other.definition.name == recipe.definition.name:
                    raise ConfigError(
                        f"recipe {recipe.definition.name!r} is also defined in {other.definition.source}",
                        where=recipe.definition.source,
                        fix="rename it (`name: …`)",
                    )
            found.append(recipe)
    return Kitchen(recipes={recipe.definition.name: recipe for recipe in found})
