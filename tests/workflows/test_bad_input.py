"""Bad input: refused with what, where and the fix, before any training; nothing half-written, no lease held."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.errors import CapabilityError, ConfigError, DataError, DiskFull, KitchenError
from tests.workflows import cli
from tests.workflows.conftest import SMALL, Bench

Row = dict[str, Any]
Write = Callable[..., Path]

CHAT: Row = {"messages": [{"role": "user", "content": "two plus two"}, {"role": "assistant", "content": "four"}]}


def _refused(bench: Bench, kind: type[KitchenError], config: dict[str, Any]) -> str:
    """What a run says when it refuses; afterwards the store holds no run and no lease."""
    with pytest.raises(kind) as caught:
        bench.run({"max_rows": None, **config})
    for fingerprint in bench.checkpoints.find(""):
        head = bench.checkpoints.head(fingerprint)
        assert head.entries() == []
        assert head.holder is None
    return str(caught.value)


def _rows(count: int, **changed: Any) -> list[Row]:
    rows = [{"prompt": f"say {n}", "completion": f"{n} it is"} for n in range(count)]
    return [{**row, **changed} for row in rows]


def test_an_unknown_key(bench: Bench) -> None:
    said = _refused(bench, ConfigError, {"learning_rte": 1.0e-4})
    assert said == (
        "recipe supervised, learning_rte: unknown field 'learning_rte'; did you mean 'learning_rate'?\n"
        "  fix: correct or remove it; docs/recipes.md lists every field"
    )


def test_values_out_of_bounds_are_all_named_at_once(bench: Bench) -> None:
    said = _refused(bench, ConfigError, {"epochs": 0, "adam_beta1": 1.0, "lora": {"rank": 0}})
    assert "epochs: must be at least 1, got 0\n    write: epochs: 1" in said
    assert "adam_beta1: must be less than 1, got 1.0" in said
    assert "lora.rank: must be at least 1, got 0" in said


def test_a_missing_file(bench: Bench) -> None:
    said = _refused(bench, DataError, {"dataset": "no/such/rows.jsonl"})
    assert said.startswith("dataset 'no/such/rows.jsonl': there is no such file or folder\n  fix: name a file")


def test_an_empty_file(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.touch()
    assert _refused(bench, DataError, {"dataset": str(path)}) == (
        "empty.jsonl: is empty\n  fix: write at least one row to it"
    )


def test_a_malformed_line_is_named_by_file_and_line(bench: Bench, write_rows: Write) -> None:
    path = write_rows(_rows(30))
    lines = path.read_text().splitlines()
    lines[16] = lines[16][:-3]
    path.write_text("\n".join(lines))
    said = _refused(bench, DataError, {"dataset": str(path)})
    assert said.startswith("rows.jsonl:17: line 17 is not valid JSON: ")
    assert "each line of a .jsonl file is one JSON object" in said


def test_a_wrong_role_is_named_by_row(bench: Bench, write_rows: Write) -> None:
    rows = [CHAT] * 5
    rows[3] = {"messages": [{"role": "boss", "content": "x"}, {"role": "assistant", "content": "y"}]}
    said = _refused(bench, DataError, {"dataset": str(write_rows(rows))})
    assert "rows_invalid: 1 of 5 rows (20.00%, limit 0.00%)" in said
    assert (
        "row 3 (rows.jsonl:4): message 0: its role is none of system, developer, user, assistant, tool ('boss')"
        in said
    )
    assert "row_limits" in said


def test_rows_with_no_trained_token_are_named(bench: Bench, write_rows: Write) -> None:
    long = {"prompt": "x" * 200, "completion": "never seen"}
    said = _refused(
        bench, DataError, {"dataset": str(write_rows([*_rows(20), long])), "row_limits": {"truncated": 1.0}}
    )
    assert "rows_untrained: 1 of 21 rows" in said
    assert "row 20 (rows.jsonl:21): all that would be learned lies beyond max_length 64" in said


def test_weights_that_the_backend_would_round_are_refused(bench: Bench, write_rows: Write) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q{n}", "weight": 0},
                {"role": "assistant", "content": "a", "weight": w},
            ]
        }
        for n, w in enumerate([1, 1, 0.5, 1])
    ]
    config = {"dataset": str(write_rows(rows)), "train_on": "customized", "held_out": "0"}
    said = _refused(bench, CapabilityError, config)
    assert said == (
        "backend trl: can't weigh tokens other than by 0 and 1, as row 2 (rows.jsonl:3) asks\n"
        "  fix: give each message the weight 0 or 1"
    )


def test_unknown_columns_show_what_was_found_and_the_line_to_write(bench: Bench, write_rows: Write) -> None:
    said = _refused(bench, DataError, {"dataset": str(write_rows([{"q": "a", "a": "b"}]))})
    assert "its columns are a, q, which is no known shape" in said
    assert "columns: {prompt: q, completion: a}" in said


def test_a_model_folder_without_weights(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    said = _refused(bench, ConfigError, {"model": str(tmp_path / "model")})
    assert "has no weights (*.safetensors)" in said
    assert "name a folder that save_pretrained wrote" in said


def test_a_pickled_model_is_never_loaded(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/executed'\ntR.")
    said = _refused(bench, ConfigError, {"model": str(folder)})
    assert "its weights are pickled (pytorch_model.bin), and loading a pickle can run any code" in said


def test_conversations_for_a_model_without_a_template(bench: Bench, write_rows: Write, tmp_path: Path) -> None:
    from kitchen_resources.embedded import write_model

    folder = tmp_path / "base"
    write_model(folder)
    (folder / "chat_template.jinja").unlink()
    said = _refused(bench, ConfigError, {"model": str(folder), "dataset": str(write_rows([CHAT] * 20))})
    assert "the model has no chat template, and the data set holds conversations" in said
    assert "chat_template: chatml" in said


@pytest.mark.full
@pytest.mark.heavy
def test_a_model_without_a_template_trains_on_prompts_and_on_text(
    bench: Bench, write_rows: Write, tmp_path: Path
) -> None:
    from kitchen_resources.embedded import write_model

    folder = tmp_path / "base"
    write_model(folder)
    (folder / "chat_template.jinja").unlink()
    config = {"model": str(folder), "max_rows": None, "epochs": 1, "held_out": "0"}
    pairs = bench.run({**config, "dataset": str(write_rows(_rows(20), "pairs.jsonl"))})
    assert pairs.optimizer_steps == 2
    text = bench.run({**config, "dataset": str(write_rows([{"text": f"line {n}"} for n in range(20)], "text.jsonl"))})
    assert text.optimizer_steps == 2
    # A template given in the recipe is written beside the exported model.
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(20)
    ]
    chat = bench.run({**config, "chat_template": "chatml", "dataset": str(write_rows(rows, "chat.jsonl"))})
    assert chat.model_path
    assert "<|im_start|>" in (Path(chat.model_path) / "chat_template.jinja").read_text()


@pytest.mark.heavy
def test_no_disk_space(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalBlobs, "free_bytes", lambda self: 1000)
    assert "are free, and the next checkpoint needs" in _refused(bench, DiskFull, {"max_rows": 40})


@pytest.mark.heavy
def test_a_disk_that_fills_up_while_publishing_leaves_no_checkpoint_and_no_lease(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LocalBlobs.put_file
    full = {"at": True}

    def put_file(self: LocalBlobs, key: str, path: Path) -> bool:
        if "/payload/" in key and full["at"]:
            raise DiskFull("no space left on the device", where=key)
        return real(self, key, path)

    monkeypatch.setattr(LocalBlobs, "put_file", put_file)
    assert "no space left" in _refused(bench, DiskFull, {"max_rows": 40, "epochs": 1})
    full["at"] = False
    assert bench.run({"max_rows": 40, "epochs": 1}).epochs == 1


@pytest.mark.full
@pytest.mark.heavy
def test_the_command_line_says_it_and_fails(bench: Bench, tmp_path: Path) -> None:
    config = cli.write_config(tmp_path / "bad.yaml", bench.root, {**SMALL, "epochs": 0})
    done = cli.execute(config, tmp_path / "home")
    assert done.returncode == 1
    assert "ConfigError: recipe supervised: the recipe can't be trained as it is" in done.stderr
    assert "epochs: must be at least 1, got 0" in done.stderr
    text = cli.write_config(tmp_path / "text.yaml", bench.root, {**SMALL})
    text.write_text(text.read_text().replace("learning_rate: 0.003", "learning_rate: 2e-4"))
    done = cli.execute(text, tmp_path / "home")
    assert done.returncode == 1
    assert 'Value "2e-4" of type' in done.stderr


@pytest.mark.heavy
def test_recipes_of_the_folder_are_recipes_of_the_location(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A YAML file dropped into KITCHEN_RECIPES has its own assets, job and schedule, and keeps its nested values."""
    import kitchen_assets as kitchen
    from kitchen_assets.kitchen import built_in

    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "dates_lora.yaml").write_text(
        "workflow: supervised\nmodel: embedded:tiny\ndataset: embedded:dates\nmax_rows: 60\nmax_length: 64\n"
        "epochs: 1\nlearning_rate: 2e-3\nlora: {rank: 4, alpha: 64, dropout: 0.1}\n"
        'schedule: {cron: "0 3 * * *", timezone: Europe/Berlin}\n'
    )
    built_in_ones = kitchen.recipes()
    monkeypatch.setenv("KITCHEN_RECIPES", str(folder))
    assert kitchen.recipes() == sorted(["dates_lora", *built_in_ones])
    result = kitchen.run("dates_lora", {"lora": {"rank": 8}}, bench.resources(), instance=bench.instance)
    manifest = bench.checkpoints.manifest(bench.checkpoints.head(result.fingerprint).entries()[0])
    lora = manifest.identity["recipe"]["lora"]
    assert (lora["rank"], lora["alpha"], lora["dropout"]) == (8, 64, 0.1)
    assert manifest.identity["recipe"]["learning_rate"] == 2.0e-3
    schedule, _ = built_in().definitions().schedules or ()
    assert (schedule.name, schedule.cron_schedule, schedule.execution_timezone) == (  # type: ignore[union-attr]
        "dates_lora_schedule",
        "0 3 * * *",
        "Europe/Berlin",
    )
    assert schedule.default_status.value == "STOPPED"  # type: ignore[union-attr]

    (folder / "supervised.yaml").write_text("workflow: supervised\n")
    with pytest.raises(
        ConfigError, match=r"supervised.yaml:1: recipe 'supervised' is also defined in .*supervised.yaml"
    ):
        kitchen.recipes()
    shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"KITCHEN_RECIPES: .* is not a folder"):
        kitchen.recipes()


@pytest.mark.heavy
def test_the_gate_refuses_what_is_no_better_and_promotes_what_is(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg

    import kitchen_assets as kitchen
    from kitchen_assets.kitchen import built_in
    from kitchen_resources.registry.store import StoreRegistry

    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.setenv("KITCHEN_RECIPES", str(folder))
    recipe = {
        "workflow": "supervised",
        "model": "embedded:tiny",
        "dataset": "embedded:dates",
        **SMALL,
        "max_length": 64,
    }

    def judged_by(rule: dict[str, Any]) -> None:
        (folder / "dates.yaml").write_text(yaml.safe_dump({**recipe, "promotion": rule}))

    def promote(**config: Any) -> Any:
        job = built_in().definitions().resolve_job_def("dates_promote")
        resources = {key: {"config": value} for key, value in bench.resources().items()}
        return job.execute_in_process(
            run_config={"resources": {**resources, **config}}, instance=bench.instance, raise_on_error=False
        )

    judged_by({"metric": "held_out/loss", "minimum": 0.001})
    nothing = promote()
    assert not nothing.success
    (failure,) = [event.step_failure_data for event in nothing.all_events if event.is_step_failure]
    assert failure.user_failure_data.description == (
        "RegistryError: model dates: has no candidate\n  fix: run the job dates first"
    )
    result = kitchen.run("dates", {"epochs": 1}, bench.resources(), instance=bench.instance)
    registry = StoreRegistry(bench.blobs)
    assert registry.alias("dates", "candidate") == result.registered_version == 1

    refused = promote()
    assert not refused.success
    (evaluation,) = [
        event.asset_check_evaluation_data
        for event in refused.all_events
        if event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    assert not evaluation.passed
    assert evaluation.description.startswith("held_out/loss is ")
    assert evaluation.description.endswith("the bound is 0.001")
    assert evaluation.metadata["numbers"].value["bound"] == 0.001
    assert registry.alias("dates", "production") is None
    run = bench.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.SUCCESS
    # Materialize, which isn't asked to move `production`: there the gate warns and fails nothing.
    config = {**bench.resources(), "dates": {"epochs": 1}}
    materialized = (
        built_in()
        .definitions()
        .resolve_implicit_global_asset_job_def()
        .execute_in_process(
            run_config={"resources": {key: {"config": value} for key, value in config.items()}},
            asset_selection=[dg.AssetKey(["dates", stage]) for stage in ("model", "evaluation", "registered_model")],
            instance=bench.instance,
        )
    )
    assert materialized.success
    ledger, gate = materialized.get_asset_check_evaluations()
    assert (ledger.check_name, ledger.passed) == ("every_row_once_per_epoch", True)
    assert (gate.check_name, gate.passed, gate.severity) == ("promotion_gate", False, dg.AssetCheckSeverity.WARN)
    # No launch can override the rule, which is part of the recipe's definition.
    with pytest.raises(dg.DagsterInvalidConfigError, match='unexpected config entry "promotion"'):
        promote(dates={"config": {"promotion": {"metric": "held_out/loss"}}})

    judged_by({"metric": "held_out/loss"})
    assert promote().success
    assert registry.alias("dates", "production") == 1


@pytest.mark.heavy
def test_materializing_production_leaves_it_alone(bench: Bench) -> None:
    from dagster import AssetKey

    from kitchen_assets.kitchen import built_in
    from kitchen_resources.registry.store import StoreRegistry

    result = bench.run({"epochs": 1})
    job = built_in().definitions().resolve_implicit_global_asset_job_def()
    resources = {key: {"config": value} for key, value in bench.resources().items()}
    key = AssetKey(["supervised", "production"])
    done = job.execute_in_process(run_config={"resources": resources}, instance=bench.instance, asset_selection=[key])
    assert done.success
    assert done.asset_materializations_for_node("supervised__production") == []
    assert StoreRegistry(bench.blobs).alias("supervised", "production") is None
    assert StoreRegistry(bench.blobs).alias("supervised", "candidate") == result.registered_version
