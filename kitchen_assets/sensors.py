"""Sensors that look after runs: what is lost is called so, and what a repeat can mend is run again.

They look at run records and at the store, with cursors of their own. Dagster's run monitoring and retries don't do:
its local launcher has no health check, and neither sees the runs of `dagster job execute`.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from kitchen_assets.beta import running_sensor
from kitchen_assets.narrowing import known_config
from kitchen_assets.recovery import (
    Seen,
    Verdict,
    judge_failure,
    looks_until_lost,
    lost_because,
    next_attempt,
    number_tag,
)
from kitchen_assets.stages.checkpoints import partition_key
from kitchen_assets.tags import ATTEMPT, FINGERPRINT, KIND, RECIPE, RESUME_OF, WORKER
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.blobs.resource import BlobsResource, configured_store
from kitchen_resources.checkpoints.head import Head
from kitchen_resources.checkpoints.lease import is_free
from kitchen_resources.checkpoints.retention import payload_to_keep
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.errors import KitchenError
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.registry.store import StoreRegistry

ATTEMPTS = "KITCHEN_RESUME_ATTEMPTS"
FIRST_WAIT = "KITCHEN_RESUME_WAIT_S"
LOOK_EVERY = "KITCHEN_SENSOR_EVERY_S"

_ENDED = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.SUCCESS]
_WAIT = "wait"
_GOING = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_LOOK_BACK = timedelta(hours=1)
# How long a checkpoint waits for its store to come back, or for somebody to let go of its run.
_WAITED_FOR = timedelta(days=7)
# Run records are stamped to the second, and may be written while they are read.
_OVERLAP = timedelta(seconds=5)
# More than ever end within the overlap: else the cursor would stand still.
_AT_ONCE = 1000


def run_sensors(jobs: Sequence[Any], recipes: Mapping[str, Recipe]) -> list[dg.SensorDefinition]:
    """The sensors of a location, all of which are on.

    Args:
        jobs: Its jobs.
        recipes: Its recipes, by name.
    """
    by_name = {job.name: job for job in jobs}
    return [
        _lost_runs(),
        _resume_runs([job for job in jobs if job.tags.get(KIND) == "training"]),
        _checkpoint_sensor(
            "evaluate_checkpoints",
            "evaluate_checkpoint",
            recipes,
            by_name,
            unevaluated,
            "Evaluates checkpoints whose evaluation was due and never came, because their run ended before it.",
        ),
        _checkpoint_sensor(
            "retain_checkpoints",
            "retain_checkpoints",
            recipes,
            by_name,
            overfull,
            "Deletes payload that the recipe doesn't keep, of runs that ended before they came to it.",
        ),
    ]


def _lost_runs() -> dg.SensorDefinition:
    @running_sensor(
        name="lost_runs",
        minimum_interval_seconds=look_every_s(),
        description="Marks runs failed whose process is gone, or whose heartbeat stands still.",
    )
    def lost_runs(context: dg.SensorEvaluationContext, blobs: BlobsResource) -> dg.SensorResult:
        before = {run: Seen(**seen) for run, seen in json.loads(context.cursor or "{}").items()}
        now: dict[str, Any] = {}
        looks = looks_until_lost(look_every_s())
        for run in context.instance.get_runs(dg.RunsFilter(statuses=_GOING)):
            if WORKER not in run.tags:
                continue
            head = _head(context, run, blobs)
            seen = before[run.run_id].again(head) if head and run.run_id in before else _first_seen(head)
            reason = lost_because(run.tags[WORKER], run.run_id, head, seen, looks=looks)
            if reason:
                _end(context, run.run_id, reason)
            else:
                now[run.run_id] = asdict(seen)
        return dg.SensorResult(cursor=json.dumps(now))

    return lost_runs


def _first_seen(head: Head | None) -> Seen:
    return Seen(head.token, head.heartbeat, 1) if head else Seen(-1, -1, 1)


def _end(context: dg.SensorEvaluationContext, run_id: str, reason: str) -> None:
    """Mark a lost run, if it hasn't ended by itself since it was looked for."""
    run = context.instance.get_run_by_id(run_id)
    if run is None or run.status not in _GOING:
        return
    if run.status == dg.DagsterRunStatus.CANCELING:
        context.instance.report_run_canceled(run, message=f"The run was to stop, and {reason}.")
    else:
        context.instance.report_run_failed(run, message=f"The run is lost: {reason}.")
    context.log.info(f"run {run_id} is lost: {reason}")


def _resume_runs(jobs: Sequence[Any]) -> dg.SensorDefinition:
    names = {job.name for job in jobs}

    @running_sensor(
        name="resume_runs",
        jobs=list(jobs),
        minimum_interval_seconds=look_every_s(),
        description="Runs again what failed and a repeat can mend: it goes on from the last published checkpoint.",
    )
    def resume_runs(context: dg.SensorEvaluationContext, blobs: BlobsResource) -> dg.SensorResult:
        cursor = json.loads(context.cursor or "{}")
        since = datetime.fromisoformat(cursor["since"]) if cursor else _now() - _LOOK_BACK
        records = context.instance.get_run_records(
            dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since - _OVERLAP),
            limit=_AT_ONCE,
            order_by="update_timestamp",
            ascending=True,
        )
        told = set(cursor.get("told", []))
        waited = [context.instance.get_run_record_by_id(run_id) for run_id in cursor.get("waiting", [])]
        waiting, requests = [], []
        for record in [*waited, *(record for record in records if record.dagster_run.run_id not in told)]:
            found = _again(context, record, names, blobs) if record else ""
            if isinstance(found, dg.RunRequest):
                requests.append(found)
            elif record and found == _WAIT:
                waiting.append(record.dagster_run.run_id)
            elif record:
                context.log.info(f"run {record.dagster_run.run_id} is not run again: {found}")
        newest = max([since, *(_utc(record.update_timestamp) for record in records)])
        seen = [item.dagster_run.run_id for item in records if _utc(item.update_timestamp) > newest - _OVERLAP]
        state = {"since": newest.isoformat(), "waiting": waiting, "told": seen}
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(state))

    return resume_runs


def _again(
    context: dg.SensorEvaluationContext, record: dg.RunRecord, jobs: Set[str], blobs: BlobsResource
) -> dg.RunRequest | str:
    """The request to run a failed run again; `wait` while it is too early; or why not."""
    run = record.dagster_run
    verdict = _judge(context, run)
    if not verdict.resume:
        return verdict.reason
    attempt = next_attempt(run, _head(context, run, blobs), first_wait_s=_first_wait_s())
    if attempt.number > _attempts():
        return f"{_attempts()} attempts in a row got nowhere"
    if record.end_time is not None and _now().timestamp() < record.end_time + attempt.wait_s:
        return _WAIT
    job = _job_of(run, jobs)
    problem = _problem(context, run, job, jobs)
    if problem:
        return problem
    context.log.info(f"run {run.run_id} is run again, attempt {attempt.number}: {verdict.reason}")
    return dg.RunRequest(
        run_key=f"resume-{run.run_id}",
        job_name=job,
        run_config=known_config(run.run_config, _job(context, job)),
        tags=attempt.tags,
        # Of Materialize, which has no job of its own, and of a part of a job.
        asset_selection=sorted(run.asset_selection) if run.asset_selection else None,
    )


def _judge(context: dg.SensorEvaluationContext, run: dg.DagsterRun) -> Verdict:
    failures = context.instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    return judge_failure(run.tags, [_error_class(failure) for failure in failures])


def _job_of(run: dg.DagsterRun, jobs: Set[str]) -> str:
    """The job to run a run again with; Materialize has none of its own."""
    return run.job_name if run.job_name in jobs else run.tags.get(RECIPE, "")


def _job(context: dg.SensorEvaluationContext, name: str) -> dg.JobDefinition:
    assert context.repository_def is not None
    return context.repository_def.get_job(name)


def _problem(context: dg.SensorEvaluationContext, run: dg.DagsterRun, job: str, jobs: Set[str]) -> str:
    """Why a run can't be asked for here; empty when it can."""
    origin = run.remote_job_origin
    if origin is not None and origin.location_name != _location(context):
        return f"it is of the code location {origin.location_name}"
    if job not in jobs:
        return f"there is no job {job or run.job_name} here"
    definition = _job(context, job)
    if run.asset_selection and not run.asset_selection <= set(definition.asset_layer.selected_asset_keys):
        return f"it makes assets that aren't part of the job {job}"
    try:
        dg.validate_run_config(definition, known_config(run.run_config, definition))
    except dg.DagsterInvalidConfigError as error:
        return f"its config isn't valid here: {error.errors[0].message}"
    return ""


def _checkpoint_sensor(
    name: str,
    job: str,
    recipes: Mapping[str, Recipe],
    jobs: Mapping[str, dg.JobDefinition],
    find: Callable[[dg.DagsterRun, Head, Recipe, BlobStore], list[str]],
    description: str,
) -> dg.SensorDefinition:
    """A sensor that runs a job on checkpoints of runs that are over.

    Args:
        name: Of the sensor.
        job: Name of the job, after the recipe's.
        recipes: Recipes by name.
        jobs: All jobs by name.
        find: The partition keys to run it on, of a run that nobody trains any more.
        description: Of the sensor.
    """

    trainings = {training.name for training in jobs.values() if training.tags.get(KIND) == "training"}

    @running_sensor(
        name=name,
        jobs=[jobs[f"{recipe}_{job}"] for recipe in recipes if f"{recipe}_{job}" in jobs],
        minimum_interval_seconds=look_every_s(),
        description=description,
    )
    def look(context: dg.SensorEvaluationContext, blobs: BlobsResource) -> dg.SensorResult:
        cursor = json.loads(context.cursor or "{}")
        since = datetime.fromisoformat(cursor["since"]) if cursor else _now() - _LOOK_BACK
        records = context.instance.get_run_records(
            dg.RunsFilter(statuses=_ENDED, updated_after=since - _OVERLAP),
            limit=_AT_ONCE,
            order_by="update_timestamp",
            ascending=True,
        )
        known = {record.dagster_run.run_id for record in records}
        waited = [
            record
            for run_id in cursor.get("waiting", [])
            if run_id not in known and (record := context.instance.get_run_record_by_id(run_id)) is not None
        ]
        requests, waiting = [], []
        for record in [*waited, *records]:
            run = record.dagster_run
            recipe = recipes.get(run.tags.get(RECIPE, ""))
            if recipe is None or not run.tags.get(FINGERPRINT):
                continue
            if (asked := jobs.get(f"{recipe.definition.name}_{job}")) is None:
                # A workflow without such a job.
                continue
            head = _head(context, run, blobs)
            if head is None or _is_held(head, run.run_id) or _will_resume(context, run, trainings):
                # Not now: its store is away, somebody trains or prunes it, or a further attempt does all that itself.
                if _utc(record.update_timestamp) > _now() - _WAITED_FOR:
                    waiting.append(run.run_id)
                continue
            for checkpoint in find(run, head, recipe, run_store(run, blobs)):
                requests.append(_on_checkpoint(run, asked, checkpoint))
        newest = max([since, *(_utc(record.update_timestamp) for record in records)])
        state = {"since": newest.isoformat(), "waiting": waiting}
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(state))

    return look


def _on_checkpoint(run: dg.DagsterRun, job: dg.JobDefinition, checkpoint: str) -> dg.RunRequest:
    """The request for a job on a checkpoint, with the resources of the run that made it, so far as the job has them."""
    recipe = run.tags[RECIPE]
    op = f"{recipe}__{job.name.removeprefix(f'{recipe}_')}"
    resources = known_config(run.run_config, job).get("resources", {})
    return dg.RunRequest(
        run_key=f"{job.name}-{checkpoint}",
        job_name=job.name,
        run_config={
            "resources": resources,
            "ops": {op: {"config": {"checkpoint": checkpoint}}},
        },
        tags={RESUME_OF: run.tags.get(RESUME_OF) or run.root_run_id or run.run_id},
    )


def _is_held(head: Head, run_id: str) -> bool:
    """Whether somebody trains, evaluates or prunes a run; a holder that is the run itself is dead, for the run is over."""
    return head.holder is not None and head.holder.run != run_id and not is_free(head.holder)


def _will_resume(context: dg.SensorEvaluationContext, run: dg.DagsterRun, jobs: Set[str]) -> bool:
    """Whether the run is yet to be run again, and then does by itself what it hasn't come to."""
    if run.status != dg.DagsterRunStatus.FAILURE or number_tag(run, ATTEMPT) >= _attempts():
        return False
    asked = dg.RunsFilter(tags={"dagster/run_key": f"resume-{run.run_id}"})
    if attempts := context.instance.get_runs(asked, limit=1):
        return not attempts[0].is_finished
    return _judge(context, run).resume and not _problem(context, run, _job_of(run, jobs), jobs)


def unevaluated(run: dg.DagsterRun, head: Head, recipe: Recipe, store: BlobStore) -> list[str]:
    """Partition keys of a run's checkpoints whose evaluation was due and isn't there."""
    every = launched(run, recipe, "eval_every")
    last = head.end.epoch if head.end else launched(run, recipe, "epochs")
    return [
        partition_key(head.fingerprint, entry.step)
        for entry in head.entries()
        if every and entry.epoch_complete and (entry.epoch % every == 0 or entry.epoch == last)
        if entry.payload == "present" and not entry.evaluations
    ]


def overfull(run: dg.DagsterRun, head: Head, recipe: Recipe, store: BlobStore) -> list[str]:
    """The partition key of a run's newest checkpoint, if the run has payload that its recipe doesn't keep."""
    metric = launched(run, recipe, "select_metric")
    values = {
        entry.epoch: recorded.metrics[metric]
        for entry in head.entries()
        for recorded in entry.evaluations.values()
        if metric in recorded.metrics
    }
    keep = payload_to_keep(
        head.entries(),
        values,
        metric=metric,
        keep_last=launched(run, recipe, "keep_last"),
        keep_best=max(launched(run, recipe, "keep_best"), int(launched(run, recipe, "select") == "best")),
        protected=StoreRegistry(store).protected_manifests(),
    )
    whole = {entry.step for entry in head.entries() if entry.payload == "present"}
    return [partition_key(head.fingerprint, head.entries()[-1].step)] if whole - keep else []


def launched(run: dg.DagsterRun, recipe: Recipe, field: str) -> Any:
    """The value that a field of the recipe had in a run: the launch's, or the recipe's own."""
    config: Any = run.run_config
    overrides = config.get("resources", {}).get(recipe.definition.name, {}).get("config", {})
    return overrides.get(field, getattr(recipe, field))


def _location(context: dg.SensorEvaluationContext) -> str:
    origin = context.code_location_origin
    return origin.location_name if origin is not None else ""


def _error_class(record: Any) -> str:
    """Class of the error that a step failed of, its cause where it is caused by another."""
    error = record.event_log_entry.dagster_event.step_failure_data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return str(error.cls_name) if error is not None and error.cls_name else "an unknown error"


def _head(context: dg.SensorEvaluationContext, run: dg.DagsterRun, blobs: BlobsResource) -> Head | None:
    """Head of what a run trains, in the store that it uses; None when it has none, or the store is away."""
    fingerprint = run.tags.get(FINGERPRINT)
    if not fingerprint:
        return None
    try:
        return CheckpointStore(run_store(run, blobs)).head(fingerprint)
    except (KitchenError, ValueError, TypeError) as error:
        # One run with a strange config must not keep the sensor from all others.
        context.log.warning(f"run {run.run_id}: its store can't be read: {error}")
        return None


def run_store(run: dg.DagsterRun, blobs: BlobsResource) -> BlobStore:
    """The store of a run: the one that its config names, else the location's.

    Args:
        run: The run.
        blobs: The location's resource.
    """
    config: Any = run.run_config
    named = config.get("resources", {}).get("blobs", {}).get("config", {}).get("store")
    return configured_store(named) if named else blobs.adapter()


def _attempts() -> int:
    return int(os.environ.get(ATTEMPTS, "3"))


def _first_wait_s() -> float:
    return float(os.environ.get(FIRST_WAIT, "60"))


def look_every_s() -> int:
    """How often sensors look, in seconds."""
    return int(os.environ.get(LOOK_EVERY, "30"))


def _now() -> datetime:
    return datetime.now(UTC)


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
