"""What the sensors decide: which runs are lost, which failed ones are run again, which checkpoints are evaluated."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from kitchen_assets import sensors
from kitchen_assets.kitchen import Kitchen, default_resources
from kitchen_assets.recovery import (
    Attempt,
    Seen,
    Verdict,
    judge_failure,
    looks_until_lost,
    lost_because,
    next_attempt,
    worker_tag,
)
from kitchen_assets.sensors import overfull, unevaluated
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.resource import open_store
from kitchen_resources.checkpoints.head import (
    CheckpointEntry,
    Head,
    Holder,
    RecordedEvaluation,
    RunEnd,
    decode_head,
    encode_head,
    head_key,
)
from kitchen_resources.checkpoints.holder import this_holder
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe

FINGERPRINT = "ab" * 32
TRAINING = {"kitchen/kind": "training"}


def entry(step: int, epoch: int, **changes: Any) -> CheckpointEntry:
    return replace(CheckpointEntry(step, epoch, True, "m" * 64, f"state {step}", 10), **changes)


# Failed runs.


@pytest.mark.parametrize(
    ("tags", "failures", "verdict"),
    [
        (TRAINING, [], Verdict(True, "its process died")),
        ({"kitchen/worker": "{}"}, [], Verdict(True, "its process died")),
        (TRAINING, ["ChildProcessCrashException"], Verdict(True, "its process died")),
        (
            {**TRAINING, "kitchen/error": "LeaseLost", "kitchen/mendable": "true"},
            ["LeaseLost"],
            Verdict(True, "LeaseLost may pass"),
        ),
        (
            {**TRAINING, "kitchen/error": "TrainingDiverged", "kitchen/mendable": "false"},
            ["TrainingDiverged"],
            Verdict(False, "TrainingDiverged would come again"),
        ),
        ({**TRAINING, "kitchen/refused": "DataError"}, [], Verdict(False, "it was refused (DataError)")),
        (TRAINING, ["TypeError", "ChildProcessCrashException"], Verdict(False, "TypeError would come again")),
        (
            {**TRAINING, "dagster/failure_reason": "RUN_EXCEPTION"},
            [],
            Verdict(False, "it failed outside of its steps (RUN_EXCEPTION)"),
        ),
        (
            {**TRAINING, "kitchen/in_process": "trainer"},
            [],
            Verdict(False, "it was given what isn't in its config: trainer"),
        ),
        ({**TRAINING, "dagster/failure_reason": "START_TIMEOUT"}, [], Verdict(True, "its process died")),
        ({"kitchen/kind": "promotion", "kitchen/worker": "{}"}, [], Verdict(False, "it is a promotion")),
        ({"kitchen/kind": "maintenance"}, [], Verdict(False, "it is a maintenance")),
        ({}, [], Verdict(False, "it is a run of something else")),
    ],
)
def test_only_what_a_repeat_can_mend_is_run_again(
    tags: dict[str, str], failures: list[str], verdict: Verdict
) -> None:
    assert judge_failure(tags, failures) == verdict


def run_with(run_id: str = "one", **tags: str) -> dg.DagsterRun:
    return dg.DagsterRun(job_name="supervised", run_id=run_id, tags={**TRAINING, **tags})


def test_attempts_in_a_row_wait_longer_and_one_that_got_on_counts_anew() -> None:
    at_five = Head(FINGERPRINT, checkpoints=(entry(5, 1),))
    own = {"kitchen/fingerprint": FINGERPRINT, "kitchen/worker": "{}", ".dagster/x": "y", "mine": "kept"}
    first = next_attempt(run_with(**own), None, first_wait_s=60.0)
    tags = {**TRAINING, "mine": "kept", "kitchen/resume_of": "one", "kitchen/attempt": "1", "kitchen/from_step": "0"}
    # What it goes on with, also when this attempt dies before it has planned anything.
    expected = {"kitchen/expected": FINGERPRINT}
    assert first == Attempt(1, 0.0, {**tags, **expected})
    second = next_attempt(run_with("two", **first.tags), None, first_wait_s=60.0)
    assert (second.number, second.wait_s, second.tags["kitchen/resume_of"]) == (2, 60.0, "one")
    assert second.tags["kitchen/expected"] == FINGERPRINT
    assert "kitchen/expected" not in next_attempt(run_with(), None, first_wait_s=60.0).tags
    third = next_attempt(run_with("three", **second.tags), None, first_wait_s=60.0)
    assert (third.number, third.wait_s) == (3, 240.0)
    on = next_attempt(run_with("three", **second.tags), at_five, first_wait_s=60.0)
    assert (on.number, on.wait_s, on.tags["kitchen/from_step"]) == (1, 0.0, "5")
    stuck = next_attempt(run_with("four", **on.tags), at_five, first_wait_s=60.0)
    assert (stuck.number, stuck.wait_s) == (2, 60.0)


# Lost runs.


def test_a_run_whose_process_is_gone_or_whose_host_was_restarted_is_lost() -> None:
    me = this_holder("one")
    assert lost_because(json.dumps(asdict(me)), "one", None, Seen(-1, -1, 99), looks=4) == ""
    gone = replace(me, started=me.started - 1)
    host = me.host.split("/")[0]
    assert lost_because(json.dumps(asdict(gone)), "one", None, Seen(-1, -1, 1), looks=4) == (
        f"its process {os.getpid()} on {host} is gone"
    )
    earlier = replace(me, boot="another-boot/pid:[1]")
    assert (
        lost_because(json.dumps(asdict(earlier)), "one", None, Seen(-1, -1, 1), looks=4)
        == f"{host} was started anew since"
    )
    # The tag of the run that this one re-executes, until it has its own.
    assert lost_because(json.dumps(asdict(gone)), "two", None, Seen(-1, -1, 1), looks=4) == ""
    container = replace(me, boot=f"{me.boot.partition('/')[0]}/pid:[1]")
    assert lost_because(json.dumps(asdict(container)), "one", None, Seen(-1, -1, 99), looks=4) == ""


def test_a_heartbeat_that_stands_still_is_lost_after_a_number_of_looks() -> None:
    away = Holder(id="x", host="elsewhere/1", boot="b/p", pid=1, started=1.0, run="one")
    head = Head(FINGERPRINT, holder=away, token=3, heartbeat=7)
    seen = Seen(3, 7, 1)
    for _ in range(2):
        seen = seen.again(head)
        assert lost_because("", "one", head, seen, looks=4) == ""
    assert lost_because("", "one", head, seen.again(head), looks=4) == "its heartbeat stood still at 4 looks in a row"
    assert seen.again(replace(head, heartbeat=8)).times == 1
    assert seen.again(replace(head, token=4)).times == 1
    # Somebody else holds it.
    assert lost_because("", "two", head, seen.again(head), looks=4) == ""


def test_a_heartbeat_is_watched_for_three_times_its_ttl() -> None:
    assert [looks_until_lost(every_s) for every_s in (1, 30, 31, 90, 600)] == [91, 4, 4, 2, 2]


# Checkpoints.


RECIPE = bind(SupervisedRecipe, {"model": "m", "dataset": "d", "keep_last": 2}, RecipeDefinition(name="supervised"))


def launched_with(**fields: Any) -> dg.DagsterRun:
    return dg.DagsterRun("supervised", run_config={"resources": {"supervised": {"config": fields}}})


def test_checkpoints_whose_evaluation_was_due_are_named() -> None:
    recorded = {"key": RecordedEvaluation("b" * 64, {"held_out/loss": 1.0})}
    head = Head(
        FINGERPRINT,
        checkpoints=(
            entry(5, 1, evaluations=recorded),
            entry(8, 2, epoch_complete=False),
            entry(10, 2),
            entry(15, 3, payload="pruned"),
            entry(20, 4),
        ),
    )
    store = MemoryBlobs()
    assert unevaluated(run_with(), head, RECIPE, store) == ["abababababab/000000010", "abababababab/000000020"]
    assert unevaluated(launched_with(eval_every=4), head, RECIPE, store) == ["abababababab/000000020"]
    assert unevaluated(launched_with(eval_every=0), head, RECIPE, store) == []
    # The last epoch is always due: the last planned one, or where the run has ended.
    assert unevaluated(launched_with(eval_every=3), head, RECIPE, store) == []
    assert unevaluated(launched_with(eval_every=3, epochs=4), head, RECIPE, store) == ["abababababab/000000020"]
    ended = replace(head, end=RunEnd("completed", 4, 20))
    assert unevaluated(launched_with(eval_every=3, epochs=9), ended, RECIPE, store) == ["abababababab/000000020"]


def test_a_run_with_more_payload_than_its_recipe_keeps_is_named_by_its_newest_checkpoint() -> None:
    store = MemoryBlobs()
    best = {"key": RecordedEvaluation("b" * 64, {"held_out/loss": 0.5})}
    head = Head(FINGERPRINT, checkpoints=(entry(5, 1, evaluations=best), entry(10, 2), entry(15, 3)))
    assert overfull(launched_with(keep_last=3, keep_best=0), head, RECIPE, store) == []
    assert overfull(launched_with(keep_last=2, keep_best=1), head, RECIPE, store) == []
    assert overfull(launched_with(keep_last=2, keep_best=0), head, RECIPE, store) == ["abababababab/000000015"]
    assert overfull(launched_with(keep_best=0), head, RECIPE, store) == ["abababababab/000000015"]
    assert overfull(launched_with(keep_best=0, select="best"), head, RECIPE, store) == []
    pruned = replace(head, checkpoints=(entry(5, 1, payload="pruned"), *head.checkpoints[1:]))
    assert overfull(launched_with(keep_best=0), pruned, RECIPE, store) == []


# The sensors.


@pytest.fixture
def location() -> dg.RepositoryDefinition:
    recipes = {
        name: bind(SupervisedRecipe, {"model": "m", "dataset": "d"}, RecipeDefinition(name=name))
        for name in ("supervised", "other")
    }
    return Kitchen(recipes=recipes).definitions().get_repository_def()


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("KITCHEN_STORE", str(tmp_path / "store"))
    folder = tmp_path / "dagster"
    folder.mkdir()
    with dg.DagsterInstance.ephemeral(tempdir=str(folder)) as instance:
        yield instance


class Look:
    """A sensor, with the cursor of its last look."""

    def __init__(self, location: dg.RepositoryDefinition, instance: dg.DagsterInstance, name: str) -> None:
        self._sensor = location.get_sensor_def(name)
        self._location = location
        self._instance = instance
        self._cursor: str | None = None

    def __call__(self) -> list[dg.RunRequest]:
        context = dg.build_sensor_context(
            instance=self._instance,
            repository_def=self._location,
            cursor=self._cursor,
            resources={"blobs": default_resources()["blobs"]},
        )
        result: Any = self._sensor(context)
        self._cursor = result.cursor
        return list(result.run_requests)


def made(
    location: dg.RepositoryDefinition,
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus,
    run_config: dict[str, Any] | None = None,
    **tags: str,
) -> dg.DagsterRun:
    job = location.get_job("supervised")
    return instance.create_run_for_job(
        job, status=status, run_config=run_config or {}, tags={**TRAINING, "kitchen/recipe": "supervised", **tags}
    )


def gone(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun:
    """A run, tagged as one whose process is gone."""
    process = replace(this_holder(run.run_id), started=0.0)
    instance.add_run_tags(run.run_id, {"kitchen/worker": json.dumps(asdict(process))})
    return run


def test_sensors_are_on(location: dg.RepositoryDefinition) -> None:
    found = {sensor.name: sensor.default_status for sensor in location.sensor_defs}
    names = ("lost_runs", "resume_runs", "evaluate_checkpoints", "retain_checkpoints")
    assert found == dict.fromkeys(names, dg.DefaultSensorStatus.RUNNING)


def test_a_failed_run_is_asked_for_once_with_its_own_config(
    location: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    look = Look(location, instance, "resume_runs")
    failed = dg.DagsterRunStatus.FAILURE
    config = {"resources": {"supervised": {"config": {"epochs": 7}}}}
    died = made(location, instance, failed, config)
    made(location, instance, failed, **{"kitchen/refused": "ConfigError"})
    made(location, instance, dg.DagsterRunStatus.CANCELED)
    made(location, instance, dg.DagsterRunStatus.SUCCESS)
    made(location, instance, dg.DagsterRunStatus.STARTED)
    # Of an earlier state of the recipe, or of another location.
    strange = {"resources": {"supervised": {"config": {"no_such_field": 1}}}}
    instance.run_storage.add_run(dg.DagsterRun("supervised", run_config=strange, status=failed, tags=TRAINING))
    (request,) = look()
    assert (request.run_key, request.job_name, request.run_config) == (f"resume-{died.run_id}", "supervised", config)
    assert request.tags["kitchen/resume_of"] == died.run_id
    assert look() == []


def test_attempts_that_get_nowhere_end_and_wait_in_between(
    location: dg.RepositoryDefinition, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KITCHEN_RESUME_ATTEMPTS", "2")
    look = Look(location, instance, "resume_runs")
    failed = dg.DagsterRunStatus.FAILURE
    tried = {"kitchen/attempt": "1", "kitchen/from_step": "0", "kitchen/resume_of": "root"}
    started = made(location, instance, dg.DagsterRunStatus.STARTED, **tried)
    instance.report_run_failed(started)
    assert look() == []
    # Later: the pause is over.
    now = sensors._now()
    monkeypatch.setattr(sensors, "_now", lambda: now + sensors.timedelta(seconds=61))
    (request,) = look()
    assert (request.tags["kitchen/attempt"], request.tags["kitchen/resume_of"]) == ("2", "root")
    assert look() == []
    made(location, instance, failed, **{**tried, "kitchen/attempt": "2"})
    assert look() == []


def test_a_part_of_a_job_and_materialize_are_asked_for_as_such(
    location: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    look = Look(location, instance, "resume_runs")
    keys = {dg.AssetKey(["supervised", "raw"]), dg.AssetKey(["supervised", "dataset"])}
    job = location.get_job("__ASSET_JOB").get_subset(asset_selection=keys)
    run = instance.create_run_for_job(
        job,
        status=dg.DagsterRunStatus.FAILURE,
        asset_selection=frozenset(keys),
        # As the Launchpad of Materialize writes it out: with every recipe of the location.
        run_config={"resources": {name: {"config": {"epochs": 7}} for name in ("supervised", "other")}},
        tags={"kitchen/recipe": "supervised", "kitchen/worker": "{}"},
    )
    assert run.job_name == "__ASSET_JOB"
    (request,) = look()
    assert (request.job_name, set(request.asset_selection or [])) == ("supervised", keys)
    assert request.run_config == {"resources": {"supervised": {"config": {"epochs": 7}}}}


def test_a_lost_run_is_marked_failed_and_one_that_lives_is_not(
    location: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    look = Look(location, instance, "lost_runs")
    started = dg.DagsterRunStatus.STARTED
    alive = made(location, instance, started)
    instance.add_run_tags(alive.run_id, worker_tag(alive.run_id))
    dead = gone(instance, made(location, instance, started))
    stopped = gone(instance, made(location, instance, dg.DagsterRunStatus.CANCELING))
    other = made(location, instance, started)
    assert look() == []
    status = {run.run_id: run.status for run in instance.get_runs()}
    assert status == {
        alive.run_id: started,
        dead.run_id: dg.DagsterRunStatus.FAILURE,
        stopped.run_id: dg.DagsterRunStatus.CANCELED,
        other.run_id: started,
    }
    assert psutil.pid_exists(os.getpid())
    (request,) = Look(location, instance, "resume_runs")()
    assert request.run_key == f"resume-{dead.run_id}"


def test_strange_tags_and_stores_of_one_run_keep_no_sensor_from_the_others(
    location: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    strange = {"kitchen/worker": "{}", "kitchen/fingerprint": FINGERPRINT, "kitchen/attempt": "x"}
    store = {"resources": {"blobs": {"config": {"store": {"local": {"no_such_field": 1}}}}}}
    for status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE):
        instance.run_storage.add_run(
            dg.DagsterRun("supervised", run_config=store, status=status, tags={**TRAINING, **strange})
        )
    dead = gone(instance, made(location, instance, dg.DagsterRunStatus.STARTED))
    assert Look(location, instance, "lost_runs")() == []
    (request,) = Look(location, instance, "resume_runs")()
    assert request.run_key == f"resume-{dead.run_id}"
    assert Look(location, instance, "evaluate_checkpoints")() == []


def test_a_heartbeat_is_looked_for_in_the_store_that_the_run_names(
    location: dg.RepositoryDefinition, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    look = Look(location, instance, "lost_runs")
    config = {"resources": {"blobs": {"config": {"store": {"local": {"path": str(tmp_path / "other")}}}}}}
    away = replace(this_holder(""), host="elsewhere/1")
    run = made(
        location,
        instance,
        dg.DagsterRunStatus.STARTED,
        config,
        **{"kitchen/fingerprint": FINGERPRINT, "kitchen/worker": json.dumps(asdict(away))},
    )
    held = replace(away, run=run.run_id)
    blobs = LocalBlobs(tmp_path / "other")
    version = blobs.compare_and_swap(
        head_key(FINGERPRINT), None, encode_head(Head(FINGERPRINT, holder=held, token=1, heartbeat=1))
    )
    for _ in range(3):
        look()
    blobs.compare_and_swap(
        head_key(FINGERPRINT), version, encode_head(Head(FINGERPRINT, holder=held, token=1, heartbeat=2))
    )
    for _ in range(3):
        look()
        found = instance.get_run_by_id(run.run_id)
        assert found is not None
        assert found.status == dg.DagsterRunStatus.STARTED
    look()
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status == dg.DagsterRunStatus.FAILURE


def test_what_a_run_did_not_come_to_is_asked_for_once_and_not_while_somebody_trains_it(
    location: dg.RepositoryDefinition, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    evaluate = Look(location, instance, "evaluate_checkpoints")
    retain = Look(location, instance, "retain_checkpoints")
    entries = tuple(entry(5 * epoch, epoch, evaluations={}) for epoch in range(1, 5))
    blobs = LocalBlobs(tmp_path / "store")
    blobs.put_if_absent(head_key(FINGERPRINT), encode_head(Head(FINGERPRINT, checkpoints=entries)))
    held = Head("cd" * 32, holder=Holder("x", "elsewhere/1", "b/p", 1, 1.0), checkpoints=entries)
    blobs.put_if_absent(head_key("cd" * 32), encode_head(held))
    config = {"resources": {"supervised": {"config": {"keep_best": 0, "eval_every": 2, "epochs": 4}}}}
    fingerprint = {"kitchen/fingerprint": FINGERPRINT}
    canceled = made(location, instance, dg.DagsterRunStatus.CANCELED, config, **fingerprint)
    made(location, instance, dg.DagsterRunStatus.CANCELED, config, **{"kitchen/fingerprint": "cd" * 32})
    # This one is run again, and does both by itself.
    made(location, instance, dg.DagsterRunStatus.FAILURE, config, **fingerprint)
    requests = [*evaluate(), *retain()]
    assert [(request.run_key, request.job_name) for request in requests] == [
        (f"{job}-abababababab/{step:09d}", job)
        for job, step in (
            ("supervised_evaluate_checkpoint", 10),
            ("supervised_evaluate_checkpoint", 20),
            ("supervised_retain_checkpoints", 20),
        )
    ]
    for request in requests:
        assert request.tags == {"kitchen/resume_of": canceled.run_id}
        op = f"supervised__{str(request.job_name).removeprefix('supervised_')}"
        checkpoint = str(request.run_key).removeprefix(f"{request.job_name}-")
        assert request.run_config == {**config, "ops": {op: {"config": {"checkpoint": checkpoint}}}}
        dg.validate_run_config(location.get_job(str(request.job_name)), dict(request.run_config))


def ask(blobs: LocalBlobs, change: Callable[[Head], Head]) -> None:
    """Write another head of the run."""
    stored = blobs.get(head_key(FINGERPRINT))
    head = decode_head(stored.data, head_key(FINGERPRINT)) if stored else Head(FINGERPRINT)
    version = stored.version if stored else None
    assert blobs.compare_and_swap(head_key(FINGERPRINT), version, encode_head(change(head)))


def test_what_could_not_be_looked_at_is_looked_at_later(
    location: dg.RepositoryDefinition,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate = Look(location, instance, "evaluate_checkpoints")
    blobs = LocalBlobs(tmp_path / "store")
    ask(blobs, lambda head: replace(head, checkpoints=(entry(5, 1),)))
    run = made(location, instance, dg.DagsterRunStatus.CANCELED, **{"kitchen/fingerprint": FINGERPRINT})
    other = Holder("x", "elsewhere/1", "b/p", 1, 1.0, "another run")
    # As when other runs have ended since: its record is read once.
    monkeypatch.setattr(sensors, "_OVERLAP", sensors.timedelta(0))
    with monkeypatch.context() as away:
        away.setattr(sensors, "run_store", lambda *given: open_store("s3://no bucket/at all"))
        assert evaluate() == []
    ask(blobs, lambda head: replace(head, holder=other))
    assert evaluate() == []
    assert evaluate() == []
    ask(blobs, lambda head: replace(head, holder=None))
    assert [request.run_key for request in evaluate()] == ["supervised_evaluate_checkpoint-abababababab/000000005"]
    assert evaluate() == []
    # A dead holder that was the run itself holds nothing: it is over.
    held = replace(other, run=run.run_id)
    ask(blobs, lambda head: replace(head, holder=held))
    assert len(Look(location, instance, "evaluate_checkpoints")()) == 1


def test_a_run_is_waited_for_while_it_is_to_be_run_again_and_not_longer(
    location: dg.RepositoryDefinition, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    evaluate = Look(location, instance, "evaluate_checkpoints")
    ask(LocalBlobs(tmp_path / "store"), lambda head: replace(head, checkpoints=(entry(5, 1),)))
    died = made(location, instance, dg.DagsterRunStatus.FAILURE, **{"kitchen/fingerprint": FINGERPRINT})
    assert evaluate() == []
    assert evaluate() == []
    again = made(location, instance, dg.DagsterRunStatus.STARTED, **{"dagster/run_key": f"resume-{died.run_id}"})
    assert evaluate() == []
    instance.report_run_failed(again)
    assert len(evaluate()) == 1


def test_a_run_that_can_not_be_run_again_here_is_not_waited_for(
    location: dg.RepositoryDefinition, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    ask(LocalBlobs(tmp_path / "store"), lambda head: replace(head, checkpoints=(entry(5, 1),)))
    given = {"kitchen/fingerprint": FINGERPRINT, "kitchen/in_process": "trainer"}
    made(location, instance, dg.DagsterRunStatus.FAILURE, **given)
    assert len(Look(location, instance, "evaluate_checkpoints")()) == 1
