"""What a stage is given: the launch, and Dagster's log, tags and events."""

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from kitchen_assets.tags import EXPECTED, RESUME_OF
from kitchen_resources.errors import ConfigError
from kitchen_resources.launch import Launch
from kitchen_resources.ports import Ports
from kitchen_resources.recipes.names import RESOURCE_KEYS
from kitchen_resources.recipes.recipe import Recipe


class StageContext:
    """The launch of a recipe as its stages see it.

    Attributes:
        launch: Recipe, ports, and what earlier stages of this launch noted.
        recipe: What to train.
        name: Name of the recipe.
        run_id: This Dagster run.
        job_name: The job that it runs; `__ASSET_JOB` for Materialize.
    """

    def __init__(self, context: Any, launch: Launch, partitions: str = "") -> None:
        self.launch = launch
        self.recipe = launch.recipe
        self.name = launch.name
        self.run_id = launch.run_id
        self.job_name = str(context.run.job_name)
        self._context = context
        self._partitions = partitions

    def port(self, key: str) -> Any:
        """A resource of the location that the workflow or the recipe names among its ports.

        Args:
            key: Its key.

        Returns:
            What its `adapter()` gives, or the resource itself where it has none.

        Raises:
            ConfigError: The location has none, or neither workflow nor recipe names it.
        """
        found = getattr(self._context.resources, key, None)
        if found is None:
            raise ConfigError(
                f"there is no port {key!r} here",
                where=f"recipe {self.name}",
                fix=f"name it in required_ports of the workflow or recipe, and pass Kitchen(resources={{{key!r}: …}})",
            )
        adapter = getattr(found, "adapter", None)
        return adapter() if callable(adapter) else found

    def has_port(self, key: str) -> bool:
        """Whether `port` finds it: for optional ones."""
        return getattr(self._context.resources, key, None) is not None

    def partitions(self) -> str:
        """Name of the dynamic partitions of the recipe's checkpoints."""
        return self._partitions

    def say(self, message: str) -> None:
        """A sentence in the run's log."""
        self._context.log.info(message)

    def warn(self, message: str) -> None:
        """A sentence in the run's log that should be seen."""
        self._context.log.warning(message)

    @property
    def expected(self) -> str:
        """Fingerprint that this run was asked to go on with; "" when it may train what its recipe says."""
        run = self._context.run
        # Whoever executes a resumed run again may have changed it on purpose.
        return str(run.tags.get(EXPECTED, "")) if run.parent_run_id is None else ""

    def tag(self, tags: Mapping[str, str]) -> None:
        """Tag the run."""
        self._context.instance.add_run_tags(self.run_id, dict(tags))

    def makes(self, recipes: Iterable[str]) -> bool:
        """Whether this run also makes the registered models of all these recipes."""
        # A run names what it makes only where that is part of a job.
        selected = self._context.run.asset_selection or self._context.job_def.asset_layer.selected_asset_keys
        names = (name.partition("@")[0] for name in recipes)
        return all(dg.AssetKey([name, "registered_model"]) in selected for name in names)

    def log_event(self, event: dg.AssetMaterialization) -> None:
        """Report a materialization that happened on the way."""
        self._context.log_event(event)

    @property
    def instance(self) -> dg.DagsterInstance:
        """The Dagster instance."""
        instance: dg.DagsterInstance = self._context.instance
        return instance


def stage_context(context: Any, recipe_name: str, partitions: str) -> StageContext:
    """The context of a stage, from a Dagster op or asset context."""
    run = context.run
    root = run.tags.get(RESUME_OF) or run.root_run_id or run.run_id
    launch = open_launch(context.resources, recipe_name, run_id=run.run_id, root_id=root)
    return StageContext(context, launch, partitions)


def open_launch(resources: Any, recipe_name: str, *, run_id: str, root_id: str) -> Launch:
    """A launch of a recipe with Dagster's resources.

    Args:
        resources: Resources by key, as Dagster gives them.
        recipe_name: Resource key of the recipe.
        run_id: The Dagster run.
        root_id: The run that it re-executes, or itself.
    """
    blobs = resources.blobs.adapter()
    ports = Ports(
        trainer=resources.trainer.live(),
        blobs=blobs,
        datasets=resources.datasets.adapter(),
        evaluator=resources.evaluator.adapter(),
        registry=resources.registry.adapter(blobs),
        telemetry=resources.telemetry.adapter(),
    )

    def opened(recipe: Recipe) -> Launch:
        return Launch(
            recipe,
            ports,
            run_id=run_id,
            root_id=root_id,
            upstream=lambda name: opened(getattr(resources, name)),
        )

    return opened(getattr(resources, recipe_name))


def resource_keys(*recipe_names: str) -> set[str]:
    """The resources that a stage needs: its recipe, those that it builds on, and the ports."""
    return {*recipe_names, *RESOURCE_KEYS}
