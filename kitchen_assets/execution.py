"""Around every stage: preflight, telemetry, and errors that a person can act on."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import dagster as dg

from kitchen_assets.canceling import canceled_by_interrupts
from kitchen_assets.composition import CheckOutcome
from kitchen_assets.context import StageContext, stage_context
from kitchen_assets.tags import BACKEND, ERROR, MENDABLE, RECIPE, REFUSED
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.dagster_context import stage_running
from kitchen_resources.errors import ConfigError, EarlierFailure, KitchenError
from kitchen_resources.registry.port import ModelRegistry
from kitchen_resources.training.preflight import check_recipe, preflight
from kitchen_resources.training.upstream import missing_upstreams, require_known, require_upstreams

T = TypeVar("T")


def run_stage(
    context: Any,
    recipe_name: str,
    partitions: str,
    workflow: str,
    stage: str,
    *,
    ends: Sequence[str],
    needs_preflight: bool,
    reads_models: bool,
    steps: Sequence[str],
    work: Callable[[StageContext], T],
) -> T:
    """Run one stage of a launch.

    Args:
        context: Of the Dagster op or asset.
        recipe_name: Resource key of the recipe.
        partitions: Name of the dynamic partitions of its checkpoints.
        workflow: Name of the workflow.
        stage: Name of the stage.
        ends: Names of the stages with which the run is over, once all of them are done.
        needs_preflight: Whether the launch must pass preflight first; a promotion trains nothing.
        reads_models: Whether it reads base, reference or teacher; else a recipe that this one builds on may be trained
            after it.
        steps: Names of the workflow's steps that are done before it, in order.
        work: The stage.

    Raises:
        dagster.Failure: With the kitchen's message, caused by the kitchen's error.
    """
    with canceled_by_interrupts(context.instance, context.run.run_id):
        try:
            refuse_environment(context.run.run_config)
            kitchen = stage_context(context, recipe_name, partitions, stage, steps)
        except KitchenError as error:
            if not error.mendable:
                context.instance.add_run_tags(context.run.run_id, {REFUSED: type(error).__name__})
            raise told_failure(context.instance, context.run.run_id, error) from None
        try:
            with _reported(kitchen, workflow, stage) as report:
                if needs_preflight:
                    _preflight_once(kitchen, context.run.run_config, reads_models=reads_models)
                with stage_running(context):
                    try:
                        result = work(kitchen)
                    except BaseException:
                        kitchen.forget_objects()
                        raise
                    report.ends_run = _all_done(kitchen, stage, ends)
                    if report.ends_run:
                        kitchen.forget_objects()
                kitchen.state.save()
                report.blocked.extend(_failed_checks(result))
                return result
        except KitchenError as error:
            # Of the stage, or of telling of it: the store may be away from the first request on.
            raise told_failure(context.instance, context.run.run_id, error) from None


def on_the_store(context: Any, work: Callable[[BlobStore, ModelRegistry], T]) -> T:
    """Do something with the store and the registry, in a job of its own that trains nothing.

    Args:
        context: Of an op that requires `blobs` and `registry`.
        work: What to do.

    Raises:
        dagster.Failure: With the kitchen's message, caused by the kitchen's error.
    """
    try:
        refuse_environment(context.run.run_config)
        blobs = context.resources.blobs.adapter()
        return work(blobs, context.resources.registry.adapter(blobs))
    except KitchenError as error:
        raise KitchenFailure(error) from None


def _failed_checks(result: Any) -> list[str]:
    """What the checks say that let nothing downstream of a stage run."""
    outcomes = [result] if isinstance(result, CheckOutcome) else getattr(result, "checks", ())
    failed = (outcome for outcome in outcomes if outcome.blocking and not outcome.passed)
    return [f"{outcome.name}: {outcome.description}" for outcome in failed]


def refuse_environment(run_config: Any, path: str = "run config") -> None:
    """Refuse run config that reads environment variables, which Dagster allows for every text, number and flag.

    Whoever can launch would read the location's secrets so: `dataset: {env: HF_TOKEN}` asked a hub for a data set
    of the token's name, and wrote it into the log.

    Raises:
        ConfigError: Somewhere in it stands `{env: NAME}`.
    """
    if isinstance(run_config, Mapping):
        if set(run_config) == {"env"}:
            raise ConfigError(
                f"reads the environment variable {run_config['env']}", where=path, fix="write the value itself"
            )
        for key, value in run_config.items():
            refuse_environment(value, f"{path}.{key}")
    elif isinstance(run_config, (list, tuple)):
        for index, value in enumerate(run_config):
            refuse_environment(value, f"{path}.{index}")


def _preflight_once(kitchen: StageContext, run_config: Mapping[str, Any], *, reads_models: bool) -> None:
    """Preflight is the first thing that a run does; the run's later stages find it noted.

    What depends on a model that another recipe has yet to make is checked by the first stage that reads it.
    """
    noted = kitchen.launch.read("preflight")
    if noted is not None and noted["run"] == kitchen.run_id:
        return
    try:
        if not reads_models and (awaited := _awaited(kitchen)):
            check_recipe(kitchen.launch)
            kitchen.say(f"to be trained first: {', '.join(awaited)}")
            return
        _refuse_unread_config(kitchen, run_config)
        require_upstreams(kitchen.launch, _Sayer(kitchen))
        report = preflight(kitchen.launch)
    except KitchenError as error:
        if not error.mendable:
            kitchen.tag({REFUSED: type(error).__name__})
        raise
    for line in report.lines():
        kitchen.say(line)
    kitchen.tag({RECIPE: kitchen.name, BACKEND: report.backend})
    kitchen.launch.write("preflight", {"run": kitchen.run_id})


def _refuse_unread_config(kitchen: StageContext, run_config: Mapping[str, Any]) -> None:
    """Refuse overrides of another recipe that this run neither makes nor trains first: nobody would read them.

    The Launchpad offers every recipe's config as it is written, which overrides nothing.

    Raises:
        ConfigError: There are some.
    """
    launch = kitchen.launch
    missing = missing_upstreams(launch).values()
    for name in launch.upstreams().values():
        recipe = name.partition("@")[0]
        given = run_config.get("resources", {}).get(recipe, {}).get("config")
        if not given or kitchen.makes([recipe]) or recipe in missing:
            continue
        launched = launch.upstream(recipe).recipe
        if launched.model_dump() != type(launched)().model_dump():
            raise ConfigError(
                f"recipe {recipe} isn't trained by this run, which takes the model that is registered",
                where=f"resources.{recipe}.config",
                fix=f"leave it out, or run the job {recipe}_then_{kitchen.name}",
            )


def _awaited(kitchen: StageContext) -> list[str]:
    """The recipes whose models this launch reads and that are trained before it does, in this run or because none is there.

    Raises:
        ConfigError: One has no model, and nobody trains it.
    """
    launch = kitchen.launch
    made = {
        role: name
        for role, name in launch.upstreams().items()
        if kitchen.makes([name]) and launch.registered_here(name.partition("@")[0], by_this_run=True) is None
    }
    missing = {role: name for role, name in missing_upstreams(launch).items() if role not in made}
    require_known(launch, missing)
    return sorted({*made.values(), *missing.values()})


def _all_done(kitchen: StageContext, stage: str, ends: Sequence[str]) -> bool:
    """Whether the run is over with this stage: it is one of its ends, and the others are done."""
    if stage not in ends:
        return False
    if len(ends) == 1:
        return True
    blobs = kitchen.launch.ports.blobs
    keys = {end: f"launches/{kitchen.run_id}/ended-{kitchen.name}-{end}" for end in ends}
    blobs.put_if_absent(keys[stage], b"")
    return all(blobs.size(key) is not None for key in keys.values())


@dataclass
class _Report:
    """What is to be told of a stage when it is over.

    Attributes:
        blocked: What of it blocks the run.
        ends_run: Whether the run is over with it.
    """

    blocked: list[str] = field(default_factory=list)
    ends_run: bool = False


@contextmanager
def _reported(kitchen: StageContext, workflow: str, stage: str) -> Iterator[_Report]:
    """Tell of a stage, and of the run where it starts or is over."""
    report = _Report()
    telemetry = kitchen.launch.ports.telemetry
    run: dict[str, Any] = {"recipe": kitchen.name, "run": kitchen.run_id}
    started = time.time()
    # Materialize on the lineage page may run several recipes in one run.
    key = f"launches/{kitchen.run_id}/started-{kitchen.name}"
    if kitchen.launch.ports.blobs.put_if_absent(key, repr(started).encode()):
        telemetry.emit("workflow.run.start", {}, {"workflow": workflow, **run})
    telemetry.emit("stage.run.start", {}, {"stage": stage, **run})

    def stop(error: BaseException | None) -> None:
        said = {} if error is None else {"error": f"{type(error).__name__}: {error}"}
        success = error is None
        about = {"stage": stage, **run}
        took = {"duration_s": time.time() - started}
        if error is not None:
            telemetry.emit("stage.run.exception", took, {**about, **said})
        telemetry.emit("stage.run.stop", took, {**about, "success": success})
        if report.blocked:
            said, success = {"error": "\n".join(report.blocked)}, False
        # Of the epochs of a failed run each fails by itself; the run is over once.
        stopped = f"launches/{kitchen.run_id}/stopped-{kitchen.name}"
        if (report.ends_run or said) and kitchen.launch.ports.blobs.put_if_absent(stopped, b""):
            stored = kitchen.launch.ports.blobs.get(key)
            began = float(stored.data) if stored else started
            took = {"duration_s": time.time() - began}
            about = {"workflow": workflow, **run}
            if said:
                telemetry.emit("workflow.run.exception", took, {**about, **said})
            telemetry.emit("workflow.run.stop", took, {**about, "success": success})

    try:
        yield report
    except BaseException as error:
        try:
            stop(error)
        except KitchenError as failure:
            # What the stage failed of is what matters.
            kitchen.say(f"could not note that the stage is over: {failure}")
        raise
    stop(None)


def told_failure(instance: dg.DagsterInstance, run_id: str, error: KitchenError) -> "KitchenFailure":
    """An error as a step's failure; the run is tagged with it, so that a sensor knows whether a repeat can mend it."""
    if not isinstance(error, EarlierFailure):
        instance.add_run_tags(run_id, {ERROR: type(error).__name__, MENDABLE: str(error.mendable).lower()})
    return KitchenFailure(error)


class _Sayer:
    """Tells the run's log of the training of another recipe; its checkpoints are reported by its own runs."""

    def __init__(self, kitchen: StageContext) -> None:
        self._kitchen = kitchen

    def say(self, message: str) -> None:
        """See `Observer.say`."""
        self._kitchen.say(message)

    def published(self, entry: object) -> None:
        """See `Observer.published`."""


class KitchenFailure(dg.Failure):
    """A step's failure with the kitchen's message, and without the stack of the kitchen behind it.

    Attributes:
        error: The kitchen's error.
    """

    def __init__(self, error: KitchenError) -> None:
        known = {"error": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
        super().__init__(
            description=f"{type(error).__name__}: {error}",
            metadata={name: text for name, text in known.items() if text},
            allow_retries=False,
        )
        self.error = error
