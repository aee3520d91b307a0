"""Recipes that build on others, in Dagster: what is drawn, which jobs there are, and what a run of both is trained from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import kitchen_assets as kitchen
from kitchen_assets.execution import KitchenFailure
from kitchen_assets.kitchen import Kitchen, built_in
from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.resource import TrainerResource
from tests.rail import OF_METHOD, ExportingTrainer
from tests.workflows.conftest import Bench

STAGES = ("raw", "dataset", "model", "evaluation", "registered_model")

OTHER_JOBS = ("promote", "evaluate_checkpoint", "retain_checkpoints")
"""What a recipe has besides its training job, as its name goes on."""


class Pretending(TrainerResource):
    """A backend that pretends to learn, and exports real models."""

    def live(self) -> LiveTrainer:
        return LiveTrainer(ExportingTrainer())


def made(name: str, method: type[Recipe], values: Mapping[str, Any] | None = None, **definition: Any) -> Recipe:
    """A small recipe of a method."""
    return bind(method, {**OF_METHOD[method], **(values or {})}, RecipeDefinition(name=name, **definition))


def of_recipes(*recipes: Recipe, **resources: Any) -> Kitchen:
    """A location of some recipes."""
    return Kitchen(recipes={recipe.definition.name: recipe for recipe in recipes}, resources=resources)


@pytest.fixture
def pair() -> Kitchen:
    """A recipe, and one on its model; nothing is learned."""
    first, second = (
        made("first", SupervisedRecipe),
        made("second", PreferenceRecipe, {"model": ""}, base_from="first"),
    )
    return of_recipes(first, second, trainer=Pretending())


def execute(bench: Bench, location: Kitchen, job: str, tags: Mapping[str, str] | None = None, **configs: Any) -> str:
    """Execute a job in this process; returns the run's id."""
    ports = {key: value for key, value in bench.resources().items() if key not in location.resources}
    if location.resources:
        ports["evaluator"] = {"evaluator": {"noop": {}}}
    config = {"resources": {key: {"config": value} for key, value in {**ports, **configs}.items()}}
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    done = (
        location.definitions()
        .resolve_job_def(job)
        .execute_in_process(run_config={**config, **quiet}, instance=bench.instance, tags=dict(tags or {}))
    )
    assert done.success
    return done.run_id


def registry(bench: Bench) -> StoreRegistry:
    return StoreRegistry(bench.blobs)


def steps_of(bench: Bench, run_id: str) -> dict[str, int]:
    """Optimiser steps that a run did, by recipe."""
    found = {}
    for key in bench.blobs.list(f"launches/{run_id}/"):
        if key.endswith(f"/steps-{run_id}.json"):
            stored = bench.blobs.get(key)
            assert stored is not None
            found[key.split("/")[2].rpartition("-")[0]] = json.loads(stored.data)["optimizer_steps"]
    return found


def parents(location: Kitchen, recipe: str, stage: str) -> list[str]:
    node = location.definitions().resolve_asset_graph().get(dg.AssetKey([recipe, stage]))
    return sorted(parent.to_user_string() for parent in node.parent_keys)


# What is drawn.


@pytest.mark.parametrize("name", ["preference", "distillation"])
def test_the_edge_leads_from_the_model_that_is_read_to_rows_and_training(name: str) -> None:
    location = built_in()
    assert parents(location, name, "dataset") == sorted([f"{name}/raw", "supervised/registered_model"])
    assert parents(location, name, "model") == sorted(
        [f"{name}/checkpoints", f"{name}/dataset", "supervised/registered_model"]
    )
    assert parents(location, name, "raw") == []
    assert parents(location, name, "evaluation") == [f"{name}/model"]


def test_a_base_and_a_teacher_of_two_recipes_are_two_edges() -> None:
    first, large = made("first", SupervisedRecipe), made("large", SupervisedRecipe)
    student = made(
        "student", DistillationRecipe, {"model": "", "teacher": ""}, base_from="first@2", teacher_from="large"
    )
    location = of_recipes(first, large, student)
    read = ["first/registered_model", "large/registered_model"]
    assert parents(location, "student", "dataset") == sorted([*read, "student/raw"])
    jobs = {job.name for job in location.definitions().jobs or ()}
    # A version that is named isn't what a run would register.
    assert jobs == {
        *("first", "large", "student"),
        *(f"{n}_{job}" for n in ("first", "large", "student") for job in OTHER_JOBS),
    } | {
        "large_then_student",
        "hub_push",
        "production_rollback",
        "storage_cleanup",
    }


@pytest.mark.parametrize("name", ["preference", "distillation"])
def test_a_job_runs_both_and_promotes_neither(name: str) -> None:
    job = built_in().definitions().resolve_job_def(f"supervised_then_{name}")
    made = job.asset_layer.selected_asset_keys
    assert made == {dg.AssetKey([recipe, stage]) for recipe in ("supervised", name) for stage in STAGES}
    checks = job.asset_layer.asset_graph.asset_check_keys
    of_rows = {check for check in checks if check.name.startswith("rows_")}
    assert {check.asset_key.to_user_string() for check in of_rows} == {f"{name}/dataset", "supervised/dataset"}
    ledgers = {
        dg.AssetCheckKey(dg.AssetKey([each, "model"]), "every_row_once_per_epoch") for each in (name, "supervised")
    }
    assert checks - of_rows == ledgers
    order = [node.name for node in job.nodes_in_topological_order]
    assert (
        order.index("supervised__registered_model") < order.index(f"{name}__dataset") < order.index(f"{name}__model")
    )
    assert (job.tags["kitchen/recipe"], job.tags["kitchen/kind"]) == (name, "training")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of recipe files."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.setenv("KITCHEN_RECIPES", str(folder))
    return folder


def test_a_recipe_on_one_that_is_not_there_fails_when_the_location_loads(folder: Path) -> None:
    (folder / "mine.yaml").write_text("workflow: preference\nbase_from: superwised\ndataset: embedded:date_pairs\n")
    with pytest.raises(ConfigError) as refused:
        built_in().definitions()
    known = ", ".join(sorted([*built_in().recipes]))
    assert str(refused.value) == (
        f"{folder}/mine.yaml:1: base_from names the recipe 'superwised', which isn't there\n  fix: one of {known}"
    )


def test_recipes_that_build_on_each_other_fail_when_the_location_loads(folder: Path) -> None:
    text = "workflow: {}\n{}: {}\ndataset: embedded:dates\nmodel: embedded:tiny\n"
    (folder / "one.yaml").write_text(text.format("supervised", "base_from", "two"))
    (folder / "two.yaml").write_text(text.format("distillation", "teacher_from", "one@production"))
    with pytest.raises(ConfigError) as refused:
        built_in().definitions()
    assert str(refused.value) == (
        f"{folder}/two.yaml:1: builds on itself: one <- two <- one\n  fix: remove teacher_from"
    )
    (folder / "two.yaml").write_text(text.format("supervised", "base_from", "two"))
    with pytest.raises(ConfigError, match=r"two\.yaml:1: builds on itself: .*two <- two"):
        built_in().definitions()


# Without weights.


@pytest.mark.parametrize("name", kitchen.recipes())
def test_every_recipe_runs_to_a_simulated_version_with_noop(bench: Bench, name: str) -> None:
    noop = bench.resources(trainer={"backend": {"noop": {}}})
    result = kitchen.run(name, {"max_rows": 24, "epochs": 2}, noop, instance=bench.instance)
    assert (result.registered_version, result.model_path, result.epochs) == (1, None, 2)
    version = registry(bench).get(name, 1)
    assert version.simulated
    assert registry(bench).alias(name, "candidate") is None
    assert result.optimizer_steps == version.cost["optimizer_steps"] > 0
    base = {"preference": "registry:supervised"}.get(name, "embedded:tiny")
    assert version.base["reference"] == base
    # Nothing of the recipe that it builds on is made: a simulated base needs no weights.
    assert registry(bench).versions("supervised") == ([version] if name == "supervised" else [])
    again = kitchen.run(name, {"max_rows": 24, "epochs": 2}, noop, instance=bench.instance)
    assert (again.optimizer_steps, again.fingerprint) == (0, result.fingerprint)


# A run of both, pretended.


def test_a_run_of_both_needs_no_version_before_it(bench: Bench, pair: Kitchen) -> None:
    with pytest.raises(KitchenFailure, match="recipe first has no registered model yet"):
        execute(bench, pair, "second")
    assert registry(bench).versions("first") == []
    run_id = execute(bench, pair, "first_then_second")
    assert steps_of(bench, run_id) == {"first": 1, "second": 1}
    assert registry(bench).get("second", 1).base["reference"] == "registry:first@1"


def test_a_run_of_both_takes_what_it_has_registered_and_not_the_candidate_before(bench: Bench, pair: Kitchen) -> None:
    execute(bench, pair, "first", first={"seed": 7})
    assert registry(bench).alias("first", "candidate") == 1
    run_id = execute(bench, pair, "first_then_second", first={"seed": 8}, second={"beta": 0.2})
    assert steps_of(bench, run_id) == {"first": 1, "second": 1}
    own = registry(bench).get("first", 2)
    assert registry(bench).get("second", 1).base == {
        "reference": "registry:first@2",
        "digest": own.model.digest,
        "revision": "",
    }
    again = execute(bench, pair, "first_then_second", first={"seed": 8}, second={"beta": 0.2})
    assert steps_of(bench, again) == {"first": 0, "second": 0}
    assert [len(registry(bench).versions(name)) for name in ("first", "second")] == [2, 1]
    # By itself it takes the candidate, which is what this run has made.
    alone = execute(bench, pair, "second", second={"beta": 0.2})
    assert steps_of(bench, alone) == {"second": 0}


def test_overrides_that_nobody_would_read_are_refused(bench: Bench, pair: Kitchen) -> None:
    execute(bench, pair, "first")
    with pytest.raises(KitchenFailure) as refused:
        execute(bench, pair, "second", first={"seed": 8})
    assert "resources.first.config: recipe first isn't trained by this run" in str(refused.value)
    assert "run the job first_then_second" in str(refused.value)
    assert registry(bench).versions("second") == []


def test_the_config_that_the_launchpad_offers_overrides_nothing(bench: Bench, pair: Kitchen) -> None:
    execute(bench, pair, "first")
    offered = pair.definitions().resolve_job_def("second").resource_defs["first"].config_schema.default_value
    assert (offered["seed"], offered["epochs"]) == (pair.recipes["first"].seed, pair.recipes["first"].epochs)
    run_id = execute(bench, pair, "second", first=offered)
    assert steps_of(bench, run_id) == {"second": 1}
    with pytest.raises(KitchenFailure, match="recipe first isn't trained by this run"):
        execute(bench, pair, "second", first={**offered, "seed": 8})


# A run of both, trained.


@pytest.mark.full
@pytest.mark.heavy
def test_one_run_trains_a_base_and_prefers_from_it(bench: Bench) -> None:
    base = {"max_rows": 32, "epochs": 1, "evaluations": [], "held_out": "0", "learning_rate": 1.0e-3}
    liking = {"max_rows": 16, "epochs": 1, "evaluations": [], "held_out": "0.25"}
    older = kitchen.run("supervised", {**base, "seed": 7}, bench.resources(), instance=bench.instance)
    configs = {"supervised": {**base, "seed": 8}, "preference": liking}
    run_id = execute(bench, built_in(), "supervised_then_preference", **configs)
    assert steps_of(bench, run_id) == {"supervised": 2, "preference": 1}
    own, preferred = registry(bench).get("supervised", 2), registry(bench).get("preference", 1)
    assert own.fingerprint != older.fingerprint
    assert (own.launch, preferred.launch) == (run_id, run_id)
    assert preferred.base["reference"] == "registry:supervised@2"
    assert preferred.identity["base"] == preferred.base["digest"] == own.model.digest
    # It starts where that one ended: of the base nothing is preferred, and the base is what was registered.
    assert preferred.base_metrics["held_out/accuracy"]["value"] == 0.0

    again = execute(bench, built_in(), "supervised_then_preference", **configs)
    assert steps_of(bench, again) == {"supervised": 0, "preference": 0}
    assert [len(registry(bench).versions(name)) for name in ("supervised", "preference")] == [2, 1]

    merged = kitchen.export("preference@candidate", bench.folder / "merged", blobs=bench.blobs)
    stored = kitchen.export(f"{preferred.fingerprint[:12]}@1", bench.folder / "stored", blobs=bench.blobs)
    assert (merged / "model.safetensors").read_bytes() == (stored / "model.safetensors").read_bytes()
