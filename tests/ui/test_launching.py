"""Launching from the Launchpad and from the lineage page: what is asked is what is trained, or is refused."""

import json

import pytest
import yaml
from playwright.sync_api import expect

from kitchen_resources.checkpoints.head import Head
from tests.ui.dagster_dev import DagsterDev
from tests.ui.screen import Screen

pytestmark = [pytest.mark.heavy, pytest.mark.full]


def _steps(recipe: str, epochs: int) -> list[tuple[str, str]]:
    model = f"{recipe}__model.{recipe}__"
    turns = [f"{model}train_epoch[epoch_{epoch:04d}]" for epoch in range(1, epochs + 1)]
    training = [f"{recipe}__raw", f"{recipe}__dataset", f"{model}plan_epochs", *turns, f"{model}finish_training"]
    stages = [*training, f"{recipe}__evaluation", f"{recipe}__registered_model"]
    return [(step, "SUCCESS") for step in stages]


def _head(dev: DagsterDev, run_id: str) -> Head:
    return dev.checkpoints.head(dev.graphql.run(run_id)["tags"]["kitchen/fingerprint"])


def test_the_launchpad_marks_a_wrong_key_and_trains_what_is_typed(screen: Screen) -> None:
    dev = screen.dev
    screen.open_launchpad("tiny")
    screen.shoot("launchpad-1-offered")
    screen.type_config("resources:\n  tiny:\n    config:\n      epochz: 3\n")
    expect(screen.page.get_by_text('Received unexpected config entry "epochz"')).to_be_visible()
    expect(screen.button("Launch Run")).to_be_disabled()
    screen.shoot("launchpad-2-wrong-key")
    assert dev.graphql.runs_of("tiny") == []

    fields = {"model": "own_model", "dataset": "own_rows.jsonl", "lora": {"rank": 4}, "epochs": 3}
    screen.type_config(yaml.safe_dump({"resources": {"tiny": {"config": fields}}}))
    run_id = screen.launch()
    assert screen.wait_for_run(run_id) == "SUCCESS"
    expect(screen.page.get_by_text("Success", exact=True)).to_be_visible()
    screen.page.get_by_text("Succeeded (9)").click()
    expect(screen.page.get_by_text("tiny__model.tiny__train_epoch[epoch_0003]", exact=True)).to_be_visible()
    screen.shoot("launchpad-3-run")

    assert dev.graphql.run(run_id)["steps"] == _steps("tiny", epochs=3)
    head = _head(dev, run_id)
    assert [(entry.epoch, entry.step) for entry in head.entries()] == [(1, 9), (2, 18), (3, 27)]
    manifest = dev.checkpoints.manifest(head.entries()[-1])
    assert manifest.base["reference"] == "own_model"
    assert "adapter_model.safetensors" in manifest.files
    identity = manifest.identity
    assert identity["plan"] == {"epochs": 3, "steps_per_epoch": 9, "total_steps": 27, "warmup_steps": 0}
    # What the launch left out is the recipe's, and not the class's.
    assert (identity["recipe"]["learning_rate"], identity["recipe"]["batch_size"]) == (3.0e-3, 16)
    (made,) = [found for found in dev.graphql.materializations("tiny", "model") if found.run_id == run_id]
    assert (made.metadata["optimizer_steps"], made.metadata["epochs_made"]) == (27, 3)
    losses = [dev.checkpoints.manifest(entry).metrics["loss"] for entry in head.entries()]
    assert losses[0] > losses[1] > losses[2]


def test_a_launch_changes_epochs_and_backend(screen: Screen) -> None:
    """The same recipe by primitives, for one epoch: two words of config."""
    dev = screen.dev
    screen.open_launchpad("tiny")
    backend = {"trainer": {"config": {"backend": {"local": {}}}}}
    screen.type_config(yaml.safe_dump({"resources": {"tiny": {"config": {"epochs": 1}}, **backend}}))
    screen.shoot("backend-1-typed")
    run_id = screen.launch()
    assert screen.wait_for_run(run_id) == "SUCCESS"
    screen.shoot("backend-2-run")
    assert dev.graphql.run(run_id)["steps"] == _steps("tiny", epochs=1)
    head = _head(dev, run_id)
    assert [(entry.epoch, entry.step) for entry in head.entries()] == [(1, 9)]
    assert dev.checkpoints.manifest(head.entries()[0]).identity["algorithm"].keys() == {"local", "loops.supervised"}
    screen.open_asset("tiny", "model", "events")
    screen.row("loss").get_by_text("[Show Markdown]").first.click()
    expect(screen.page.locator("img[alt=loss]").first).to_be_visible()
    screen.shoot("backend-3-loss")


def test_materialize_on_the_lineage_page_trains_the_recipe_as_it_is_in_one_process(screen: Screen) -> None:
    """The recipe is a LoRA of one's own model on one's own rows."""
    dev = screen.dev
    screen.open_lineage("own")
    screen.button("Materialize all (6)").click()
    screen.page.get_by_text("Launched run").wait_for()
    screen.shoot("materialize-1-launched")
    screen.page.get_by_text("View", exact=True).click()
    screen.page.wait_for_url("**/runs/*")
    run_id = screen.run_id()
    assert screen.wait_for_run(run_id) == "SUCCESS"
    screen.shoot("materialize-2-run")
    run = dev.graphql.run(run_id)
    assert (run["jobName"], run["runConfigYaml"].strip()) == ("__ASSET_JOB", "{}")
    gate = [("own__registered_model_promotion_gate", "SUCCESS"), ("own__production", "SUCCESS")]
    assert run["steps"] == [*_steps("own", epochs=2), *gate]
    told = [event["message"] for event in dev.graphql.events(run_id)]
    assert sum(message.startswith("Finished steps in process (pid: ") for message in told) == 1

    head = _head(dev, run_id)
    assert [(entry.epoch, entry.step) for entry in head.entries()] == [(1, 9), (2, 18)]
    identity = dev.checkpoints.manifest(head.entries()[-1]).identity
    assert identity["plan"]["epochs"] == 2
    assert (identity["recipe"]["learning_rate"], identity["recipe"]["seed"]) == (3.0e-3, 0)
    (made,) = [found for found in dev.graphql.materializations("own", "model") if found.run_id == run_id]
    assert made.metadata["optimizer_steps"] == 18
    assert identity["recipe"]["lora"]["rank"] == 4
    assert "adapter_model.safetensors" in dev.checkpoints.manifest(head.entries()[-1]).files
    version = dev.registry.get("own", dev.registry.alias("own", "candidate") or 0)
    assert (version.fingerprint, version.step) == (head.fingerprint, 18)
    assert dev.registry.alias("own", "production") is None
    screen.open_lineage("own")
    screen.expect_green("raw", "dataset", "checkpoints", "model", "evaluation", "registered_model")
    screen.shoot("materialize-3-lineage")


def test_a_refused_run_says_why_and_what_to_write_on_its_page(screen: Screen) -> None:
    dev = screen.dev
    before = dev.checkpoints.find("")
    screen.open_launchpad("tiny")
    screen.type_config("resources:\n  tiny:\n    config:\n      dataset: no/such/rows.jsonl\n")
    run_id = screen.launch()
    assert screen.wait_for_run(run_id) == "FAILURE"
    said = screen.page.get_by_text("DataError: dataset 'no/such/rows.jsonl': there is no such file or folder")
    expect(said.first).to_be_visible()
    expect(screen.page.get_by_text("fix: name a file, a folder, a hub id such as org/name").first).to_be_visible()
    screen.shoot("refused-1-run")
    screen.button("View tags and config").click()
    expect(screen.page.get_by_text("kitchen/refused: DataError")).to_be_visible()
    screen.shoot("refused-2-tags")

    run = dev.graphql.run(run_id)
    assert run["steps"] == [("tiny__raw", "FAILURE")]
    tags = {key: value for key, value in run["tags"].items() if key.startswith("kitchen/")}
    assert json.loads(tags.pop("kitchen/worker"))["run"] == run_id
    assert tags == {
        "kitchen/recipe": "tiny",
        "kitchen/workflow": "supervised",
        "kitchen/kind": "training",
        "kitchen/backend": "trl",
        "kitchen/refused": "DataError",
        "kitchen/error": "DataError",
        "kitchen/mendable": "false",
    }
    assert dev.checkpoints.find("") == before
