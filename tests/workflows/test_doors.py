"""The doors besides the browser and Python: commands typed in a shell, and a schedule's tick."""

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet
import pytest
import yaml
from dagster._core.snap.snap_to_yaml import default_values_yaml_from_type_snap

import kitchen_assets as kitchen
from kitchen_assets.kitchen import built_in
from kitchen_resources.embedded import write_model
from kitchen_resources.embedded.tokenizer import build_tokenizer
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.telemetry.jsonl import read_jsonl
from kitchen_resources.training.base_models import resolve_base
from tests.workflows import cli
from tests.workflows.conftest import SMALL, Bench

RECIPE = {"workflow": "supervised", "model": "embedded:tiny", "dataset": "embedded:dates", "max_length": 64, **SMALL}


def _dagster(bench: Bench, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A `dagster` command in a shell whose home and store are the test's."""
    environment = {**cli.environment(bench.folder / "home"), "KITCHEN_STORE": str(bench.root), **variables}
    command = [cli.DAGSTER, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=bench.folder, check=False)


def _materialize(bench: Bench, config: Path, *stages: str) -> subprocess.CompletedProcess[str]:
    selection = " or ".join(f'key:"supervised/{stage}"' for stage in stages)
    words = ("asset", "materialize", "-m", "kitchen_assets.definitions", "--select", selection, "-c", str(config))
    return _dagster(bench, *words)


def _write_recipes(folder: Path, monkeypatch: pytest.MonkeyPatch, **recipes: dict[str, Any]) -> None:
    """Recipe files, where the location finds them."""
    folder.mkdir()
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setenv("KITCHEN_RECIPES", str(folder))


@pytest.mark.full
@pytest.mark.heavy
def test_job_execute_trains_a_lora_of_ones_own_model_on_ones_own_rows(
    bench: Bench, write_rows: Callable[..., Path]
) -> None:
    """The config is the example of the project, with a model and rows that exist."""
    model = bench.folder / "my_model"
    write_model(model, seed=5)
    rows = [{"prompt": f"say {n}", "completion": f"{n} it is"} for n in range(40)]
    config = yaml.safe_load((cli.ROOT / "examples" / "configs" / "own_model.yaml").read_text())
    config["resources"]["supervised"]["config"] |= {
        "model": "my_model",
        "dataset": write_rows(rows).name,
        "epochs": 2,
    }
    path = bench.folder / "own.yaml"
    path.write_text(yaml.safe_dump(config))

    done = _dagster(bench, "job", "execute", "-m", "kitchen_assets.definitions", "-j", "supervised", "-c", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    (fingerprint,) = bench.checkpoints.find("")
    head = bench.checkpoints.head(fingerprint)
    # 36 rows in batches of 8.
    assert [(entry.epoch, entry.step) for entry in head.entries()] == [(1, 5), (2, 10)]
    manifest = bench.checkpoints.manifest(head.entries()[-1])
    assert manifest.base["digest"] == resolve_base(str(model), bench.folder / "cache").digest
    assert manifest.base["reference"] == "my_model"
    recipe = manifest.identity["recipe"]
    lora = {"rank": 16, "alpha": 32, "dropout": 0.0}
    assert {name: recipe["lora"][name] for name in lora} == lora
    assert (recipe["learning_rate"], recipe["batch_size"]) == (2.0e-4, 8)
    assert "adapter_model.safetensors" in manifest.files

    trained = pyarrow.parquet.read_table(bench.prepared()).to_pylist()
    learned = {row["row_id"]: [token for token in row["labels"] if token >= 0] for row in trained}
    decode = build_tokenizer().decode
    assert len(learned) == 36
    for row_id, tokens in learned.items():
        assert decode(tokens).startswith(rows[row_id]["completion"])
    version = StoreRegistry(bench.blobs).get("supervised", 1)
    assert (version.fingerprint, version.step, version.model.kind) == (fingerprint, 10, "merged")
    assert version.metrics["held_out/loss"]["n"] == 4


@pytest.mark.full
@pytest.mark.heavy
def test_asset_materialize_makes_any_part_of_the_lineage_by_itself(bench: Bench) -> None:
    config = cli.write_config(bench.folder / "launch.yaml", bench.root, {**SMALL, "epochs": 2})

    done = _materialize(bench, config, "raw", "dataset")
    assert done.returncode == 0, done.stderr[-3000:]
    (prepared,) = bench.blobs.list("prepared/")
    assert bench.checkpoints.find("") == []
    assert _stopped(config) == [("dataset", True)]

    telemetry = {"console": False, "jsonl": str(config.with_suffix(".jsonl"))}
    assert _part(bench, "model", backend="trl", epochs=2, telemetry=telemetry).success
    # Its own launch prepared the rows again, and found the same ones.
    assert list(bench.blobs.list("prepared/")) == [prepared]
    (fingerprint,) = bench.checkpoints.find("")
    states = [entry.state_digest for entry in bench.checkpoints.head(fingerprint).entries()]
    assert len(states) == 2
    assert _stopped(config)[1:] == [("model", True)]

    assert _part(bench, "evaluation", backend="trl", epochs=2, telemetry=telemetry).success
    head = bench.checkpoints.head(fingerprint)
    assert [entry.state_digest for entry in head.entries()] == states
    ((recorded,),) = [entry.evaluations.values() for entry in head.entries() if entry.epoch == 2]
    (event,) = cli.events(config, "eval.complete")
    assert event["measurements"] == pytest.approx(dict(recorded.metrics))
    assert event["metadata"]["fingerprint"] == fingerprint
    assert _stopped(config)[2:] == [("evaluation", True)]

    parts = _part(bench, "model", "evaluation", "registered_model", backend="trl", epochs=2)
    assert parts.success
    assert len(cli.events(config, "training.step")) == 26
    assert len(bench.checkpoints.find("")) == 1
    (version,) = StoreRegistry(bench.blobs).versions("supervised")
    assert (version.fingerprint, version.step) == (fingerprint, 26)
    assert version.metrics["held_out/loss"]["value"] == recorded.metrics["held_out/loss"]
    checks = [(check.check_name, check.passed) for check in parts.get_asset_check_evaluations()]
    assert checks == [("every_row_once_per_epoch", True), ("promotion_gate", True)]
    assert StoreRegistry(bench.blobs).alias("supervised", "production") is None


def _stopped(config: Path) -> list[tuple[str, bool]]:
    """The last stage of each run so far, and whether the run succeeded."""
    events = read_jsonl(config.with_suffix(".jsonl"))
    stops = [index for index, event in enumerate(events) if event["event"] == "workflow.run.stop"]
    before = [[e for e in events[:index] if e["event"] == "stage.run.stop"][-1] for index in stops]
    return [(event["metadata"]["stage"], event["metadata"]["success"]) for event in before]


def _part(
    bench: Bench, *stages: str, backend: str = "noop", epochs: int = 1, **others: Any
) -> dg.ExecuteInProcessResult:
    """The same in this process."""
    job = built_in().definitions().resolve_implicit_global_asset_job_def()
    trainer = {"backend": {backend: {"threads": 1} if backend == "trl" else {}}}
    ports = {key: {"config": value} for key, value in bench.resources(trainer=trainer, **others).items()}
    return job.execute_in_process(
        run_config={"resources": {**ports, "supervised": {"config": {**SMALL, "epochs": epochs}}}},
        asset_selection=[dg.AssetKey(["supervised", stage]) for stage in stages],
        instance=bench.instance,
        raise_on_error=False,
    )


def _said(result: dg.ExecuteInProcessResult) -> str:
    assert not result.success
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    return str(failure.user_failure_data.description)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            ["evaluation"],
            "EvaluationError: recipe supervised: there is no trained model to evaluate\n  fix: run the job supervised first",
        ),
        (
            ["registered_model"],
            "RegistryError: recipe supervised: this launch has no model and no evaluation\n"
            "  fix: materialize supervised/model and supervised/evaluation with it, or run the job supervised; "
            "what is in the store isn't made again",
        ),
        (
            ["model", "registered_model"],
            "RegistryError: recipe supervised: this launch has no evaluation\n"
            "  fix: materialize supervised/evaluation with it, or run the job supervised; "
            "what is in the store isn't made again",
        ),
    ],
)
def test_a_part_that_lacks_what_it_needs_says_what_to_run(bench: Bench, stages: list[str], said: str) -> None:
    assert _said(_part(bench, *stages)) == said


@pytest.mark.full
@pytest.mark.heavy
def test_two_recipes_materialized_in_one_run_train_as_each_does_alone(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Materialize all on the lineage page: they share a process and its trainer, and each has its own events."""
    _write_recipes(
        tmp_path / "recipes",
        monkeypatch,
        first={**RECIPE, "epochs": 2},
        second={**RECIPE, "epochs": 2, "seed": 1, "lora": {"rank": 4, "dropout": 0.1}},
    )
    log = tmp_path / "events.jsonl"
    ports = bench.resources(telemetry={"console": False, "jsonl": str(log)})
    job = built_in().definitions().resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey([name, stage]) for name in ("first", "second") for stage in ("raw", "dataset", "model")]
    together = job.execute_in_process(
        run_config={"resources": {key: {"config": value} for key, value in ports.items()}},
        asset_selection=keys,
        instance=bench.instance,
    )
    assert together.success
    events = read_jsonl(log)
    steps = [event["metadata"]["recipe"] for event in events if event["event"] == "training.step"]
    assert sorted(steps) == ["first"] * 26 + ["second"] * 26
    for name in ("workflow.run.start", "workflow.run.stop"):
        assert sorted(e["metadata"]["recipe"] for e in events if e["event"] == name) == ["first", "second"], name

    other = Bench(bench.folder / "alone", bench.folder / "a", bench.instance)
    for name in ("first", "second"):
        alone = kitchen.run(name, resources=other.resources(), instance=bench.instance)
        states = [entry.state_digest for entry in bench.checkpoints.head(alone.fingerprint).entries()]
        assert states == [checkpoint["state_digest"] for checkpoint in alone.checkpoints], name


@pytest.mark.full
@pytest.mark.heavy
def test_definitions_validate_passes_and_names_a_broken_recipe_by_file_and_line(bench: Bench, tmp_path: Path) -> None:
    words = ("definitions", "validate", "-w", str(cli.ROOT / "workspace.yaml"))
    done = _dagster(bench, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Validation successful for code location kitchen." in done.stdout

    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "broken.yaml").write_text("workflow: supervised\nmodel: embedded:tiny\nepoch: 3\n")
    done = _dagster(bench, *words, KITCHEN_RECIPES=str(recipes))
    assert done.returncode == 1
    said = f"ConfigError: {recipes}/broken.yaml:3, epoch: unknown field 'epoch'; did you mean 'epochs'?"
    assert said in done.stdout


def test_a_tick_of_a_schedule_asks_for_the_recipes_own_job(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_recipes(
        tmp_path / "recipes",
        monkeypatch,
        tiny={**RECIPE, "schedule": {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}, "tags": {"team": "models"}},
    )
    definitions = built_in().definitions()
    schedule = definitions.resolve_schedule_def("tiny_schedule")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * *", "Europe/Berlin")
    at = datetime(2026, 7, 1, 1, tzinfo=UTC)
    tick = schedule.evaluate_tick(dg.build_schedule_context(bench.instance, scheduled_execution_time=at))
    (request,) = tick.run_requests or ()
    # No override: what is launched is the recipe as its file says.
    assert (schedule.job_name, request.job_name, request.run_config) == ("tiny", None, {})
    assert request.tags == {"dagster/schedule_name": "tiny_schedule"}
    # Dagster adds those of the job, on which run limits act.
    job = definitions.resolve_job_def(schedule.job_name)
    assert job.tags == {
        "kitchen/recipe": "tiny",
        "kitchen/workflow": "supervised",
        "kitchen/kind": "training",
        "kitchen/backend": "trl",
        "dagster/retry_strategy": "ALL_STEPS",
        "team": "models",
    }


def test_the_config_that_the_launchpad_offers_is_the_recipe_as_it_is(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**RECIPE, "lora": {"rank": 4, "alpha": 64, "dropout": 0.1}}
    _write_recipes(tmp_path / "recipes", monkeypatch, tiny=recipe)
    job = built_in().definitions().resolve_job_def("tiny")
    schema = job.get_config_schema_snapshot()
    root = schema.get_config_snap(job.run_config_schema.config_type.key)
    offered = yaml.safe_load(default_values_yaml_from_type_snap(schema, root))["resources"]["tiny"]["config"]
    assert {name: offered[name] for name in ("max_rows", "batch_size", "learning_rate", "lora")} == {
        "max_rows": 220,
        "batch_size": 16,
        "learning_rate": 3.0e-3,
        "lora": {"rank": 4, "alpha": 64, "dropout": 0.1, "target_modules": ["all-linear"], "rslora": False},
    }
    noop = bench.resources(trainer={"backend": {"noop": {}}})
    plain = kitchen.run("tiny", resources=noop, instance=bench.instance)
    scaffolded = kitchen.run("tiny", offered, noop, instance=bench.instance)
    assert (plain.optimizer_steps, scaffolded.optimizer_steps) == (39, 0)
    assert scaffolded.fingerprint == plain.fingerprint
    manifest = bench.checkpoints.manifest(bench.checkpoints.head(plain.fingerprint).entries()[-1])
    assert manifest.identity["recipe"]["lora"]["alpha"] == 64
