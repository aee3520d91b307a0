"""The Dagster side: what is drawn, in what order it runs, what is stale after what, and what a launch shares."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver

import kitchen_assets as kitchen
from kitchen_assets.kitchen import built_in
from kitchen_resources.datasets.report import ALL_KINDS
from kitchen_resources.errors import DataError
from tests.workflows.conftest import SMALL, Bench

HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "boto3", "tinker", "ray", "modal")
STAGES = ("raw", "dataset", "model", "evaluation", "registered_model")


def _key(name: str) -> dg.AssetKey:
    return dg.AssetKey(["supervised", name])


def test_loading_the_definitions_imports_nothing_heavy() -> None:
    script = (
        "import sys; from kitchen_assets.definitions import defs; defs(); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


READ_BY_STAGE = {"preference": "supervised", "distillation": "supervised"}
"""The built-in recipes that read another one's registered model, and whose."""


@pytest.mark.parametrize("name", kitchen.recipes())
def test_the_graph_is_the_lineage(name: str) -> None:
    """Every asset with its parents, group, kinds, code version and checks: what a person browses."""
    graph = built_in().definitions().resolve_asset_graph()
    drawn, read = {}, {}
    for key in graph.get_all_asset_keys():
        if key.path[0] != name:
            continue
        node = graph.get(key)
        parents = sorted(parent.to_user_string() for parent in node.parent_keys)
        others = [parent for parent in parents if not parent.startswith(f"{name}/")]
        if others:
            read[key.path[-1]] = others
        drawn[f"supervised/{key.path[-1]}"] = {
            "parents": [parent.replace(f"{name}/", "supervised/") for parent in parents if parent not in others],
            "group": node.group_name,
            "kinds": sorted(node.kinds),
            "owners": sorted(node.owners),
            "code_version": node.code_version,
            "materializable": node.is_materializable,
            "checks": sorted(check.name for check in node.check_keys),
            "described": bool(node.description),
            "code_references": "dagster/code_references" in node.metadata,
        }
    # The four methods have the same stages; what one reads of another recipe is an edge to that one's model.
    assert drawn == json.loads((Path(__file__).parent / "lineage.json").read_text())
    upstream = READ_BY_STAGE.get(name)
    assert read == ({stage: [f"{upstream}/registered_model"] for stage in ("dataset", "model")} if upstream else {})


def test_jobs_are_named_as_recipes_and_carry_the_tags_that_limits_act_on() -> None:
    definitions = built_in().definitions()
    training = definitions.resolve_job_def("supervised")
    assert training.tags["kitchen/kind"] == "training"
    assert training.tags["kitchen/backend"] == "trl"
    assert training.tags["dagster/retry_strategy"] == "ALL_STEPS"
    assert [node.name for node in training.nodes_in_topological_order] == [
        "supervised__raw",
        "supervised__dataset",
        "supervised__model",
        "supervised__evaluation",
        "supervised__registered_model",
    ]
    promotion = definitions.resolve_job_def("supervised_promote")
    assert promotion.tags["kitchen/kind"] == "promotion"
    assert "kitchen/backend" not in promotion.tags


@pytest.mark.heavy
def test_training_starts_after_the_data_checks_and_never_when_one_failed(
    bench: Bench, write_rows: Callable[..., Path]
) -> None:
    result = bench.run({"epochs": 1})
    assert _starts(bench, result.run_id) == [
        "supervised__raw",
        "supervised__dataset",
        "supervised__model.supervised__plan_epochs",
        "supervised__model.supervised__train_epoch[epoch_0001]",
        "supervised__model.supervised__finish_training",
        "supervised__evaluation",
        "supervised__registered_model",
    ]
    events = bench.instance.get_records_for_run(result.run_id).records
    kinds = [record.event_log_entry.dagster_event_type for record in events]
    checks = [i for i, kind in enumerate(kinds) if kind == dg.DagsterEventType.ASSET_CHECK_EVALUATION]
    first_training = next(
        i for i, r in enumerate(events) if (r.event_log_entry.step_key or "").endswith("plan_epochs")
    )
    # Of the data before training, and one of what training received after it.
    assert len(checks) == len(ALL_KINDS) + 1
    assert checks[-2] < first_training < checks[-1]
    found = [events[place].event_log_entry.asset_check_evaluation for place in checks[:-1]]
    said = {check.check_name: check.description for check in found if check is not None}
    assert said["rows_invalid"] == f"0 of {SMALL['max_rows']} rows: wrong type, role or shape; not trained on"
    # Nothing is evaluated here but a share of the same rows: none of them was compared.
    assert said["rows_contaminated"] == f"nothing to look at: {ALL_KINDS['contaminated']}"

    bad = write_rows([{"messages": [{"role": "boss", "content": "x"}, {"role": "assistant", "content": "y"}]}] * 4)
    run_id = "0" * 8
    with pytest.raises(DataError, match="message 0: its role is none of"):
        kitchen.run(
            "supervised",
            {**SMALL, "max_rows": None, "dataset": str(_mixed(bad, write_rows))},
            bench.resources(),
            instance=bench.instance,
            tags={"test": run_id},
        )
    (record,) = bench.instance.get_run_records(dg.RunsFilter(tags={"test": run_id}))
    assert _starts(bench, record.dagster_run.run_id) == ["supervised__raw", "supervised__dataset"]
    assert record.dagster_run.tags["kitchen/refused"] == "DataError"


def _mixed(bad: Path, write_rows: Callable[..., Path]) -> Path:
    rows = [json.loads(line) for line in bad.read_text().splitlines()]
    good = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(20)
    ]
    return write_rows([*good, rows[0]], "mixed.jsonl")


def _starts(bench: Bench, run_id: str) -> list[str]:
    records = bench.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_START).records
    return [str(record.event_log_entry.step_key) for record in records]


@pytest.mark.heavy
def test_a_cached_run_makes_nothing_stale_and_a_changed_row_exactly_what_is_downstream(
    bench: Bench, write_rows: Callable[..., Path]
) -> None:
    rows = [{"prompt": f"say {n}", "completion": f"{n} it is"} for n in range(40)]
    path = write_rows(rows)
    config = {"dataset": str(path), "max_rows": None, "epochs": 1, "held_out": "0", "eval_every": 0}
    bench.run(config)
    assert _stale(bench) == {}
    bench.run(config)
    assert _stale(bench) == {}

    rows[3]["completion"] = "changed"
    write_rows(rows)
    recipe = {"resources": {**_ports(bench), "supervised": {"config": {**SMALL, **config}}}}
    job = built_in().definitions().resolve_implicit_global_asset_job_def()
    done = job.execute_in_process(
        run_config=recipe, instance=bench.instance, asset_selection=[_key("raw"), _key("dataset")]
    )
    assert done.success
    assert _stale(bench) == {"model": ["has a new data version"]}


def _ports(bench: Bench) -> dict[str, Any]:
    return {key: {"config": value} for key, value in bench.resources().items()}


def _stale(bench: Bench) -> dict[str, list[str]]:
    """The assets of the recipe that Dagster calls stale, with the root causes that it gives."""
    graph = built_in().definitions().resolve_asset_graph()
    resolver = CachingStaleStatusResolver(bench.instance, graph, _context(bench))
    return {
        name: sorted({cause.reason for cause in resolver.get_stale_root_causes(_key(name))})
        for name in STAGES
        if resolver.get_status(_key(name)).value != "FRESH"
    }


def _context(bench: Bench) -> Any:
    from dagster._core.loader import LoadingContextForTest

    return LoadingContextForTest(bench.instance)


@pytest.mark.full
@pytest.mark.heavy
def test_every_checkpoint_is_a_materialization_in_its_own_partition(bench: Bench) -> None:
    result = bench.run({"epochs": 2, "checkpoint_steps": 8})
    short = result.fingerprint[:12]
    keys = [f"{short}/{step:09d}" for step in (8, 13, 16, 24, 26)]
    assert bench.instance.get_dynamic_partitions("kitchen__supervised__checkpoints") == keys
    assert bench.instance.get_materialized_partitions(_key("checkpoints")) == set(keys)
    records = bench.instance.fetch_materializations(_key("checkpoints"), limit=10, ascending=True).records
    metadata = [record.asset_materialization.metadata for record in records if record.asset_materialization]
    assert [m["step"].value for m in metadata] == [8, 13, 16, 24, 26]
    assert [m["epoch_complete"].value for m in metadata] == [False, True, False, False, True]
    digests = [checkpoint["state_digest"] for checkpoint in result.checkpoints]
    assert [m["state_digest"].value for m in metadata] == digests
    assert [m["parent"].value for m in metadata] == ["", *digests[:-1]]
    assert [m["learning_rate"].value for m in metadata] == [3.0e-3 * ((26 - s) / 26) for s in (7, 12, 15, 23, 25)]
    assert all(m["plot"].value.startswith("![loss](data:image/png;base64,") for m in metadata)
    # Another instance with the same store: the picture is drawn anew from the store, without training.
    with dg.DagsterInstance.ephemeral() as other:
        again = kitchen.run(
            "supervised", {**SMALL, "epochs": 2, "checkpoint_steps": 8}, bench.resources(), instance=other
        )
        assert again.optimizer_steps == 0
        assert other.get_materialized_partitions(_key("checkpoints")) == set(keys)


@pytest.mark.heavy
def test_two_interleaved_launches_of_one_recipe_train_each_on_its_own_rows(
    bench: Bench, write_rows: Callable[..., Path]
) -> None:
    """The second launch runs whole between the first one's data and its training, on one store and one instance."""
    from kitchen_resources.launch import Launch

    paths = {
        word: write_rows([{"prompt": f"say {n}", "completion": f"{n} {word}"} for n in range(40)], f"{word}.jsonl")
        for word in ("one", "two")
    }
    noop = bench.resources(trainer={"backend": {"noop": {}}})
    real = Launch.prepare
    second: list[kitchen.RunResult] = []

    def launch(word: str) -> kitchen.RunResult:
        config = {**SMALL, "dataset": str(paths[word]), "max_rows": None, "epochs": 1}
        return kitchen.run("supervised", config, noop, instance=bench.instance)

    def prepare(self: Launch) -> Any:
        prepared = real(self)
        if self.recipe.dataset == str(paths["one"]):
            second.append(launch("two"))
        return prepared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Launch, "prepare", prepare)
        first = launch("one")
    assert len(second) == 1
    assert _data_of(bench, first) != _data_of(bench, second[0])
    alone = Bench(bench.folder / "alone", bench.folder / "a", bench.instance)
    noop = alone.resources(trainer={"backend": {"noop": {}}})
    assert _data_of(alone, launch("one")) == _data_of(bench, first)
    assert _data_of(alone, launch("two")) == _data_of(bench, second[0])


def _data_of(bench: Bench, result: kitchen.RunResult) -> str:
    """Digest of the rows that a run was trained on, by its checkpoint."""
    head = bench.checkpoints.head(result.fingerprint)
    return str(bench.checkpoints.manifest(head.entries()[0]).identity["data"])
