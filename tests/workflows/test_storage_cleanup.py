"""The job that clears the store: what it does through Dagster, what it says, and what it refuses."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kitchen_assets.execution import KitchenFailure
from kitchen_assets.kitchen import Kitchen, built_in
from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.names import check_name
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from tests.engine import Engine
from tests.workflows.conftest import Bench


@pytest.fixture
def engine(bench: Bench) -> Engine:
    """A store with a finished run of three whole checkpoints, and a blob that nothing names."""
    engine = Engine(blobs=LocalBlobs(bench.root))
    engine.finish(keep_last=3)
    ContentStore(engine.blobs).put(b"nobody names this")
    return engine


def cleaned(bench: Bench, **config: Any) -> dict[str, Any]:
    """Run the job; the numbers that it leaves."""
    done = (
        built_in()
        .definitions()
        .resolve_job_def("storage_cleanup")
        .execute_in_process(run_config=run_config(bench, **config), instance=bench.instance)
    )
    assert done.success
    (output,) = [event.step_output_data for event in done.all_events if event.is_successful_output]
    run = bench.instance.get_run_by_id(done.run_id)
    assert run is not None
    assert run.tags["kitchen/kind"] == "maintenance"
    return {name: value.value for name, value in output.metadata.items()}


def run_config(bench: Bench, **config: Any) -> dict[str, Any]:
    return {
        "resources": {"blobs": {"config": {"store": {"local": {"path": str(bench.root)}}}}},
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        **({"ops": {"clear_storage": {"config": config}}} if config else {}),
    }


def test_it_marks_and_then_deletes_and_says_so(bench: Bench, engine: Engine) -> None:
    size = engine.head().entries()[0].bytes
    nothing = {
        "checkpoints_pruned": 0,
        "payload_bytes": 0,
        "blobs_deleted": 0,
        "bytes_deleted": 0,
        "blobs_marked": 0,
        "blobs_waiting": 0,
        "notes_removed": 0,
        "uploads_given_up": 0,
        "held_back": "no",
        "dry_run": False,
    }
    assert cleaned(bench) == {**nothing, "blobs_marked": 1}
    assert cleaned(bench) == {**nothing, "blobs_waiting": 1}
    asked = {"keep_last": 1, "grace_hours": 0.0}
    freed = {**nothing, "blobs_deleted": 1, "bytes_deleted": 17, "checkpoints_pruned": 2, "payload_bytes": 2 * size}
    assert cleaned(bench, **asked, dry_run=True) == {**freed, "dry_run": True}
    assert cleaned(bench, **asked) == freed
    assert cleaned(bench, **asked) == nothing
    assert engine.finish(keep_last=3).steps_done == 0


def test_every_location_has_it_and_its_schedule_is_off() -> None:
    definitions = built_in().definitions()
    schedule = definitions.resolve_schedule_def("storage_cleanup_schedule")
    assert (schedule.job_name, schedule.cron_schedule) == ("storage_cleanup", "30 4 * * *")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    assert definitions.resolve_job_def("storage_cleanup").tags == {"kitchen/kind": "maintenance"}


def test_no_recipe_has_its_name() -> None:
    said = "here: 'storage_cleanup' is the name of the job that clears the store\n  fix: name: storage_cleanup_recipe"
    with pytest.raises(ConfigError) as refused:
        check_name("storage_cleanup", where="here")
    assert str(refused.value) == said
    recipe = bind(SupervisedRecipe, {}, RecipeDefinition(name="mine"))
    with pytest.raises(ConfigError, match="is the name of the job that clears the store"):
        Kitchen(recipes={"storage_cleanup": recipe}).definitions()


def test_what_the_store_refuses_is_the_failure_of_the_run(bench: Bench, engine: Engine) -> None:
    (head,) = (key for key in engine.blobs.list("runs/") if key.endswith("head.json"))
    path = Path(bench.root) / head
    path.chmod(0o644)
    path.write_text("{}")
    job = built_in().definitions().resolve_job_def("storage_cleanup")
    with pytest.raises(KitchenFailure, match=r"CheckpointError: .*is not a run's head"):
        job.execute_in_process(run_config=run_config(bench), instance=bench.instance)


def test_run_config_reads_no_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_HOURS", "24")
    config = run_config(bench)
    config["resources"]["blobs"]["config"]["store"]["local"]["path"] = {"env": "SECRET_HOURS"}
    monkeypatch.chdir(bench.folder)
    job = built_in().definitions().resolve_job_def("storage_cleanup")
    with pytest.raises(KitchenFailure, match="reads the environment variable SECRET_HOURS"):
        job.execute_in_process(run_config=config, instance=bench.instance)
