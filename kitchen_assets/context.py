"""What a stage is given: the launch, and Dagster's log, tags and events."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from kitchen_assets.state import State, keep_files, kept_files
from kitchen_assets.tags import EXPECTED, RESUME_OF
from kitchen_resources.errors import ConfigError
from kitchen_resources.launch import Launch
from kitchen_resources.ports import Ports
from kitchen_resources.recipes.names import RESOURCE_KEYS
from kitchen_resources.recipes.recipe import Recipe

_objects: dict[tuple[str, str, str], Any] = {}
"""Objects that stages made once in this process, by launch, recipe and name."""


class StageContext:
    """The launch of a recipe as its stages see it.

    Attributes:
        launch: Recipe, ports, and what earlier stages of this launch noted.
        recipe: What to train.
        name: Name of the recipe.
        run_id: This Dagster run.
        job_name: The job that it runs; `__ASSET_JOB` for Materialize.
        state: JSON values that stages of this launch hand to each other.
        turns: What the turns are about that are going on, by the loops' names.
    """

    def __init__(
        self, context: Any, launch: Launch, partitions: str = "", stage: str = "", before: Sequence[str] = ()
    ) -> None:
        self.launch = launch
        self.recipe = launch.recipe
        self.name = launch.name
        self.run_id = launch.run_id
        self.job_name = str(context.run.job_name)
        self.state = State(launch, stage, before)
        self.turns: dict[str, Any] = {}
        self._context = context
        self._partitions = partitions

    @contextmanager
    def turn(self, loop: str, value: Any) -> Iterator[None]:
        """A turn of a loop is going on."""
        self.turns[loop] = value
        try:
            yield
        finally:
            del self.turns[loop]

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """An object of this process, made when it is first asked for: a session, a client. Another process makes its own.

        Args:
            name: Its name in this launch.
            make: Makes it; from `state`, where it was going on.
        """
        key = (self.launch.root_id, self.name, name)
        if key not in _objects:
            _objects[key] = make()
        return _objects[key]

    def forget(self, name: str) -> Any:
        """Take away an object that `once` made; None when there is none. For a `cleanup`, which closes it."""
        return _objects.pop((self.launch.root_id, self.name, name), None)

    def keep(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Put a folder's files into the store; what is returned can be put into `state`."""
        return keep_files(self.launch.content, folder)

    def kept(self, files: Mapping[str, Mapping[str, Any]], target: Path) -> Path:
        """Bring files that `keep` put into the store into a folder.

        Raises:
            CheckpointError: One is missing or damaged.
        """
        return kept_files(self.launch.content, files, target)

    def forget_objects(self) -> None:
        """Take away all objects that `once` made in this launch: what they hold isn't what the store says any more."""
        for key in [key for key in _objects if key[:2] == (self.launch.root_id, self.name)]:
            del _objects[key]

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


def stage_context(
    context: Any, recipe_name: str, partitions: str, stage: str = "", before: Sequence[str] = ()
) -> StageContext:
    """The context of a stage, from a Dagster op or asset context."""
    run = context.run
    root = run.tags.get(RESUME_OF) or run.root_run_id or run.run_id
    launch = open_launch(context.resources, recipe_name, run_id=run.run_id, root_id=root)
    return StageContext(context, launch, partitions, stage, before)


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
