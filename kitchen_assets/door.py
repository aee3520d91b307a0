"""The Python door: run a workflow from a script or notebook, as Dagster would."""

import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg

from kitchen_assets.context import open_launch
from kitchen_assets.execution import KitchenFailure
from kitchen_assets.kitchen import Kitchen, built_in, named_ports, upstream_recipes
from kitchen_assets.performing import asset_steps
from kitchen_assets.quiet import undisturbed
from kitchen_assets.recovery import worker_tag
from kitchen_assets.results import RunResult, collect
from kitchen_assets.tags import IN_PROCESS
from kitchen_resources.blobs.resource import default_store, store_is_chosen
from kitchen_resources.errors import ConfigError, DataError
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.binding import bind, with_text_share
from kitchen_resources.recipes.names import RESOURCE_KEYS
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import field_names
from kitchen_resources.training.preflight import PreflightReport
from kitchen_resources.training.upstream import checked

Target = str | Recipe


def workflows(location: Kitchen | None = None) -> list[str]:
    """Names of the workflows of a location, by default the built-in one."""
    return sorted((location or built_in()).known_workflows())


def recipes(location: Kitchen | None = None) -> list[str]:
    """Names of a location's recipes; by default the built-in ones, and those in `KITCHEN_RECIPES`."""
    return sorted((location or built_in()).recipes)


def describe(name: str, location: Kitchen | None = None) -> dict[str, Any]:
    """What a recipe or workflow is: description, stages, ports, and every field with its default.

    Args:
        name: Name of the recipe or workflow.
        location: Where it is; by default the built-in location.

    Raises:
        ConfigError: There is none of that name.
    """
    kitchen, recipe = _find(name, location)
    workflow = kitchen.known_workflows()[recipe.workflow]
    fields = type(recipe).model_fields
    return {
        "name": recipe.definition.name,
        "workflow": workflow.name,
        "description": recipe.definition.description or workflow.description,
        "stages": [step.name for step, _ in asset_steps(workflow.stages)],
        "promotion": [step.name for step in workflow.promotion],
        "required_ports": named_ports(RESOURCE_KEYS, workflow.required_ports, recipe.definition.required_ports),
        "optional_ports": named_ports(workflow.optional_ports, recipe.definition.optional_ports),
        "fields": {
            field: {"default": getattr(recipe, field), "description": fields[field].description}
            for field in field_names(type(recipe))
        },
    }


def noop() -> dict[str, Any]:
    """Every port without a backend behind it: `run(target, config, kitchen.noop())` walks through a whole workflow.

    Nothing is learned, read or measured, and nothing is left when the process ends: rows are simulated, the store and
    the registry are in memory. Each call has a store of its own.
    """
    return {
        "trainer": {"backend": {"noop": {}}},
        "blobs": {"store": {"memory": {"name": f"noop-{uuid.uuid4().hex}"}}},
        "datasets": {"source": {"noop": {}}},
        "evaluator": {"evaluator": {"noop": {}}},
        "registry": {"registry": {"noop": {}}},
        "telemetry": {"console": False},
    }


def validate(
    target: Target,
    config: Mapping[str, Any] | None = None,
    resources: Mapping[str, Any] | None = None,
    *,
    location: Kitchen | None = None,
) -> PreflightReport:
    """Check a launch without starting it: values, backend, model, data, disk.

    Args:
        target: As in `run`.
        config: As in `run`.
        resources: As in `run`.
        location: As in `run`.

    Raises:
        KitchenError: It would be refused; the message says why and what to write instead.
    """
    kitchen, recipe, run_config = _prepare(target, config, resources, location)
    with _launch(kitchen, recipe, run_config, run_id="validate") as launch:
        return checked(launch)


def run(
    target: Target,
    config: Mapping[str, Any] | None = None,
    resources: Mapping[str, Any] | None = None,
    *,
    dry_run: bool = False,
    location: Kitchen | None = None,
    instance: dg.DagsterInstance | None = None,
    tags: Mapping[str, str] | None = None,
) -> RunResult:
    """Run a recipe to its registered model, in this process.

    The same call again is a resume: it trains what is missing, and nothing when the recipe is finished. The caller's
    random states, threads, logging and progress bars are as before when it returns.

    Args:
        target: Name of a recipe or workflow, or a recipe object.
        config: The recipe's overrides, flat: `{"epochs": 5}`.
        resources: Adapters by resource key: an object that fulfils the port's contract, or a Dagster resource, is bound;
            a mapping becomes run config, such as `{"trainer": {"backend": {"noop": {}}}}`.
        dry_run: Only check, as `validate` does.
        location: Where recipes, workflows and resources are from; by default the built-in location.
        instance: Dagster instance to record the run in; by default that of `DAGSTER_HOME`, else of `./dagster_home`
            where it holds a dagster.yaml, else one that is forgotten.
        tags: Further tags of the run.

    Raises:
        KitchenError: Of the kind that stopped the run.
        KeyboardInterrupt: Ctrl-C or SIGTERM did. The step under way is done then, and published where a run can go on
            from it exactly; a second Ctrl-C ends it at once.
    """
    started = time.monotonic()
    kitchen, recipe, run_config = _prepare(target, config, resources, location)
    name = recipe.definition.name
    if dry_run:
        with undisturbed(), _launch(kitchen, recipe, run_config, run_id="dry-run") as launch:
            return RunResult(notes=tuple(checked(launch).lines()), duration_s=time.monotonic() - started)
    if not store_is_chosen() and "blobs" not in (resources or {}):
        print(f"kitchen: the store is {default_store()}; KITCHEN_STORE names another")  # noqa: T201
    run_id = str(uuid.uuid4())
    job = kitchen.definitions().resolve_job_def(name)
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with undisturbed(), _instance(instance) as used:
        try:
            job.execute_in_process(
                run_config={**run_config, **quiet},
                instance=used,
                run_id=run_id,
                tags={**(tags or {}), **worker_tag(run_id), **_in_process(target, resources)},
            )
        except KitchenFailure as failure:
            raise failure.error from None
        except dg.DagsterExecutionInterruptedError:
            # What Python programs expect of Ctrl-C.
            raise KeyboardInterrupt from None
        except dg.DagsterError as error:
            raise _failed_checks(used, run_id) or error from None
        with _launch(kitchen, recipe, run_config, run_id=run_id) as launch:
            return collect(launch, time.monotonic() - started)


def _in_process(target: Target, resources: Mapping[str, Any] | None) -> dict[str, str]:
    """The tag of a run that was given objects: a sensor in another process has none of them to run it again with."""
    given = [f"the recipe object {target.definition.name or target.method}"] if isinstance(target, Recipe) else []
    given += [key for key, value in (resources or {}).items() if not isinstance(value, Mapping)]
    return {IN_PROCESS: ", ".join(given)} if given else {}


def _failed_checks(instance: dg.DagsterInstance, run_id: str) -> DataError | None:
    """What blocking checks of the run said, as an error; None when all passed."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    said = []
    for record in records:
        event = record.event_log_entry.dagster_event
        if event is not None and not event.asset_check_evaluation_data.passed:
            evaluation = event.asset_check_evaluation_data
            said.append(f"{evaluation.check_name}: {evaluation.description}")
    if not said:
        return None
    return DataError(
        "\n".join(said), where="dataset", fix="correct those rows, or accept them: row_limits: {<finding>: SHARE}"
    )


def _find(target: Target, location: Kitchen | None) -> tuple[Kitchen, Recipe]:
    if isinstance(target, Recipe):
        name = target.definition.name or target.method
        around = location or Kitchen()
        kitchen = Kitchen({name: target}, around.resources, around.workflows, around.name)
        return kitchen, kitchen.bound_recipes()[name]
    kitchen = location or built_in()
    found = kitchen.bound_recipes().get(target)
    if found is None:
        raise ConfigError(
            f"there is no recipe or workflow {target!r}",
            where="target",
            fix=f"one of {', '.join(sorted(kitchen.recipes))}",
        )
    return kitchen, found


def _prepare(
    target: Target,
    config: Mapping[str, Any] | None,
    resources: Mapping[str, Any] | None,
    location: Kitchen | None,
) -> tuple[Kitchen, Recipe, dict[str, Any]]:
    """The location with objects bound, and the run config of all else."""
    kitchen, recipe = _find(target, location)
    name = recipe.definition.name
    bound: dict[str, Any] = {}
    overrides = with_text_share(config or {})
    # Dagster's word on an unknown field lists them all and suggests none.
    bind(type(recipe), overrides, recipe.definition)
    configured: dict[str, Any] = {name: {"config": overrides}} if overrides else {}
    for key, value in (resources or {}).items():
        if key == name:
            raise ConfigError(
                "the recipe's overrides go into `config`", where=f"resources[{key!r}]", fix="run(target, {…})"
            )
        if key not in (known_keys := _ports_of(kitchen, [recipe])):
            raise ConfigError(
                f"there is no resource {key!r}", where="resources", fix=f"one of {', '.join(known_keys)}"
            )
        if isinstance(value, Mapping):
            configured[key] = {"config": dict(value)}
        else:
            bound[key] = value
    known = {**(location or built_in()).bound_recipes(), **kitchen.bound_recipes(), name: recipe}
    needed = {each: known[each] for each in [name, *upstream_recipes(name, known)]}
    there = {**kitchen.resources, **bound}
    asked = _ports_of(kitchen, list(needed.values()))
    kitchen = replace(kitchen, recipes=needed, resources={key: there[key] for key in asked if key in there})
    run_config = {"resources": configured} if configured else {}
    _require_valid(kitchen, name, run_config)
    return kitchen, recipe, run_config


def _ports_of(kitchen: Kitchen, recipes: Sequence[Recipe]) -> list[str]:
    """Keys of all resources that recipes may ask for."""
    workflows = kitchen.known_workflows()
    named = [
        named_ports(workflow.required_ports, workflow.optional_ports, given.required_ports, given.optional_ports)
        for workflow, given in ((workflows.get(recipe.workflow), recipe.definition) for recipe in recipes)
        if workflow is not None
    ]
    return named_ports(RESOURCE_KEYS, *named)


def _require_valid(kitchen: Kitchen, name: str, run_config: Mapping[str, Any]) -> None:
    try:
        dg.validate_run_config(kitchen.definitions().resolve_job_def(name), dict(run_config))
    except dg.DagsterInvalidConfigError as error:
        lines = [item.message for item in error.errors]
        raise ConfigError(
            "\n".join(lines), where=f"recipe {name}", fix="docs/recipes.md lists every field"
        ) from error


@contextmanager
def _launch(kitchen: Kitchen, recipe: Recipe, run_config: Mapping[str, Any], *, run_id: str) -> Iterator[Launch]:
    """A launch outside Dagster's execution, with the same resources and config."""
    name = recipe.definition.name
    definitions = {**kitchen.all_resources(), **kitchen.bound_recipes(), name: recipe}
    with dg.build_resources(definitions, resource_config=dict(run_config.get("resources", {}))) as resources:
        yield open_launch(resources, name, run_id=run_id, root_id=run_id)


@contextmanager
def _instance(given: dg.DagsterInstance | None) -> Iterator[dg.DagsterInstance]:
    if given is not None:
        yield given
    elif os.environ.get("DAGSTER_HOME"):
        with dg.DagsterInstance.get() as instance:
            yield instance
    elif Path("dagster_home/dagster.yaml").is_file():
        with dg.DagsterInstance.from_config(str(Path("dagster_home").resolve())) as instance:
            yield instance
    else:
        with dg.DagsterInstance.ephemeral() as instance:
            yield instance
