"""Promise 2: each row once an epoch, by what TRL's steps received; a sampler that skips or repeats a row is caught."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet
import pytest

import kitchen_assets as kitchen
from kitchen_assets.kitchen import built_in
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.errors import LedgerError
from kitchen_resources.formulas.batches import batch_plan, block_plan
from kitchen_resources.numerics import preserved_numerics
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.training import attempt, events, noop
from kitchen_resources.training.port import TrainingJob
from kitchen_resources.training.run import TrainingRun
from kitchen_resources.training.trl.backend import TrlTrainer
from kitchen_resources.training.trl.sampling import BlockSampler
from tests.engine import Planted, Told
from tests.rail import Rail
from tests.workflows.conftest import Bench

pytestmark = pytest.mark.heavy

CHECK = "every_row_once_per_epoch"
COMMON: Mapping[str, Any] = {
    "model": "embedded:tiny",
    "held_out": "0",
    "max_length": 64,
    "epochs": 2,
    "learning_rate": 1.0e-3,
    "eval_every": 0,
}
DATES: Mapping[str, Any] = {**COMMON, "dataset": "embedded:dates", "max_rows": 22, "evaluations": []}
PLAIN: Mapping[str, Any] = {**DATES, "batch_size": 4, "gradient_accumulation_steps": 2}
"""Three steps an epoch: eight rows, eight, and six."""
PACKED: Mapping[str, Any] = {
    **DATES,
    "batch_size": 1,
    "gradient_accumulation_steps": 2,
    "packing": True,
    "max_length": 128,
}
GAMES: Mapping[str, Any] = {
    **COMMON,
    "environment": {"name": "arithmetic", "args": {"count": 9}, "workers": 1},
    "steps_per_epoch": 2,
    "group_size": 2,
    "groups_per_batch": 2,
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_tokens": 4,
    "evaluations": [],
}
ON_POLICY: Mapping[str, Any] = {
    **DATES,
    "max_rows": 8,
    "teacher": "embedded:tiny",
    "mode": "on_policy",
    "max_tokens": 4,
    "batch_size": 2,
}


@pytest.fixture(autouse=True)
def left_as_it_was() -> Iterator[None]:
    """Without the stage around it, a session of TRL leaves its process as it trained in it."""
    with preserved_numerics():
        yield


# Runs that receive what was planned


def rail_of(method: type[Recipe], fields: Mapping[str, Any], root: Path) -> Rail:
    rail = Rail(blobs=LocalBlobs(root), trainer=lambda: TrlTrainer(device="cpu", threads=1))
    rail.add("mine", method, fields)
    return rail


def finish(rail: Rail, told: Told | None = None, **fields: Any) -> list[tuple[int, int, int, bool]]:
    """Finish a run; returns epoch, steps, rows, and whether it is partial, of each epoch that was compared."""
    launch = rail.launch("mine", **fields)
    run = TrainingRun(launch, told or Told())
    try:
        run.planned()
        ledger = run.finish().ledger
    finally:
        launch.ports.trainer.discard()
    assert ledger.passed
    return [(epoch.epoch, epoch.steps, epoch.rows, epoch.partial) for epoch in ledger.epochs]


PASSING: Mapping[str, tuple[type[Recipe], Mapping[str, Any], list[tuple[int, int, int, bool]]]] = {
    "accumulation, ragged": (SupervisedRecipe, PLAIN, [(1, 3, 22, False), (2, 3, 22, False)]),
    "packs, max_steps": (SupervisedRecipe, {**PACKED, "max_steps": 8}, [(1, 5, 22, False), (2, 3, 15, True)]),
    "pairs, accumulation, ragged": (
        PreferenceRecipe,
        {**COMMON, "max_rows": 10, "batch_size": 2, "gradient_accumulation_steps": 2, "epochs": 1},
        [(1, 3, 10, False)],
    ),
    "prompts, passes, several steps on each": (
        ReinforcementRecipe,
        {**GAMES, "ppo_epochs": 2, "steps_per_epoch": 4},
        [(1, 4, 4, False), (2, 4, 4, False)],
    ),
    "logits": (
        DistillationRecipe,
        {**DATES, "max_rows": 6, "teacher": "embedded:tiny", "mode": "logit", "batch_size": 4, "epochs": 1},
        [(1, 2, 6, False)],
    ),
    "on policy, passes": (
        DistillationRecipe,
        {**ON_POLICY, "gradient_accumulation_steps": 2},
        [(1, 2, 8, False), (2, 2, 8, False)],
    ),
}


@pytest.mark.parametrize("case", PASSING)
def test_every_step_of_trl_receives_what_was_planned(case: str, tmp_path: Path) -> None:
    method, fields, expected = PASSING[case]
    assert finish(rail_of(method, fields, tmp_path)) == expected


@pytest.mark.parametrize("fields", [PLAIN, PACKED], ids=["plain", "packed"])
def test_a_run_that_broke_off_inside_an_epoch_has_each_row_once_and_so_has_what_continues_it(
    fields: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rail = rail_of(SupervisedRecipe, {**fields, "checkpoint_steps": 1, "keep_last": 20}, tmp_path)
    per_epoch = 3 if fields is PLAIN else 5
    with monkeypatch.context() as patched:
        _failing_after(patched, per_epoch + 1)
        with pytest.raises(Planted):
            finish(rail)
    told = Told()
    assert finish(rail, told) == [(1, per_epoch, 22, False), (2, per_epoch, 22, False)]
    assert f"going on from step {per_epoch + 1} (epoch 2)" in told.said
    store = CheckpointStore(rail.blobs)
    (fingerprint,) = store.find("")
    start = f"{fingerprint[:12]}@{per_epoch + 2}"
    assert finish(rail, continue_from=start, learning_rate=5.0e-4) == [(2, per_epoch, 22, False)]


def _failing_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Fail at the step after a step's checkpoint."""
    real = events.PublishingEvents.step

    def fail(self: Any, metrics: Any) -> None:
        if metrics.global_step == step + 1:
            raise Planted(f"at step {step + 1}")
        real(self, metrics)

    monkeypatch.setattr(events.PublishingEvents, "step", fail)


# Runs that don't


def _skip(order: list[int], at: int) -> list[int]:
    return [*order[:at], *order[at + 1 :]]


def _repeat(order: list[int], at: int) -> list[int]:
    return [*order[:at], order[0], *order[at + 1 :]]


Change = Callable[[list[int], int], list[int]]


def _in_trls_sampler(monkeypatch: pytest.MonkeyPatch, change: Change, at: int) -> None:
    """Change the order of the second epoch where TRL's supervised and preference trainers draw it."""
    from accelerate.data_loader import SeedableRandomSampler

    real = SeedableRandomSampler.__iter__

    def planted(self: Any) -> Iterator[int]:
        epoch = self.epoch
        order = list(real(self))
        yield from change(order, at) if epoch == 1 else order

    monkeypatch.setattr(SeedableRandomSampler, "__iter__", planted)


def _in_the_block_sampler(monkeypatch: pytest.MonkeyPatch, change: Change, at: int) -> None:
    """Change the prompts of the second block where the trainers that sample draw them."""
    real = BlockSampler.__iter__

    def planted(self: Any) -> Iterator[int]:
        given = list(real(self))
        if self._epoch != 1:
            yield from given
            return
        # A prompt is given once for each of its samples, and the whole draw once for each pass.
        drawn = self._draws.prompts * self._group
        times = drawn * self._passes
        order = [
            given[start + place] for start in range(0, len(given), times) for place in range(0, drawn, self._group)
        ]
        changed = change(order, at)
        changed += [_unplanned(self)] * (len(order) - len(changed))
        for start in range(0, len(changed), self._draws.prompts):
            prompts = changed[start : start + self._draws.prompts]
            for _ in range(self._passes):
                for index in prompts:
                    yield from [index] * self._group

    monkeypatch.setattr(BlockSampler, "__iter__", planted)


def _unplanned(sampler: Any) -> int:
    """A prompt that isn't in the second block, where there is one."""
    draws = sampler._draws
    planned = {row for draw in _second_block(sampler._rows, draws.prompts, draws.count) for row in draw}
    return next((row for row in range(sampler._rows) if row not in planned), 0)


def _second_block(rows: int, prompts: int, draws: int) -> list[list[int]]:
    return block_plan(rows, seed=0, block=1, prompts=prompts, draws=draws)


@dataclass(frozen=True)
class Case:
    """A recipe, where its sampler is changed, and what is at that place.

    Attributes:
        recipe: Name of the recipe.
        method: Its class.
        fields: Its fields.
        plant: Changes the order of the second epoch.
        order: Rows, or packs, of the second epoch by their places, from how many there are.
        at: Place that is changed.
        first_step: First step of the second epoch.
        step: The step that has this place.
    """

    recipe: str
    method: type[Recipe]
    fields: Mapping[str, Any]
    plant: Callable[[pytest.MonkeyPatch, Change, int], None]
    order: Callable[[int], list[int]]
    at: int
    first_step: int
    step: int


def _pass(rows: int) -> list[int]:
    return batch_plan(rows, seed=0, epoch=1, batch_size=rows)[0]


CASES = {
    "supervised": Case("supervised", SupervisedRecipe, PLAIN, _in_trls_sampler, _pass, at=10, first_step=4, step=5),
    "supervised, packed": Case(
        "supervised", SupervisedRecipe, PACKED, _in_trls_sampler, _pass, at=3, first_step=6, step=7
    ),
    "reinforcement": Case(
        "reinforcement",
        ReinforcementRecipe,
        GAMES,
        _in_the_block_sampler,
        lambda rows: [row for draw in _second_block(rows, 2, 2) for row in draw],
        at=2,
        first_step=3,
        step=4,
    ),
    "on policy": Case(
        "distillation",
        DistillationRecipe,
        ON_POLICY,
        _in_the_block_sampler,
        lambda rows: [row for draw in _second_block(rows, 2, 4) for row in draw],
        at=3,
        first_step=5,
        step=6,
    ),
}


def run(bench: Bench, case: Case) -> kitchen.RunResult:
    return kitchen.run(case.recipe, dict(case.fields), bench.resources(), instance=bench.instance)


def prepared_ids(blobs: BlobStore) -> list[list[int]]:
    """The row ids of each row, or pack, that training reads."""
    (path,) = (blobs.scratch() / "cache" / "rows").glob("*.parquet")
    table = pyarrow.parquet.read_table(path)
    packed = "row_ids" in table.column_names
    values = table["row_ids" if packed else "row_id"].to_pylist()
    return values if packed else [[value] for value in values]


def evaluations(bench: Bench) -> list[tuple[bool, str]]:
    """Outcome and words of the check in the last run."""
    (record,) = bench.instance.get_run_records(limit=1)
    of_type = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    found = bench.instance.get_records_for_run(record.dagster_run.run_id, of_type=of_type).records
    data = [record.event_log_entry.dagster_event.asset_check_evaluation_data for record in found]  # type: ignore[union-attr]
    return [(each.passed, str(each.description)) for each in data if each.check_name == CHECK]


def steps_begun(bench: Bench) -> list[str]:
    (record,) = bench.instance.get_run_records(limit=1)
    found = bench.instance.get_records_for_run(record.dagster_run.run_id, of_type=dg.DagsterEventType.STEP_START)
    return [str(each.event_log_entry.step_key).rpartition("__")[2] for each in found.records]


def words_of(rows: list[list[int]], case: Case, change: Change) -> list[str]:
    """What must be said of the rows at the place that is changed: skipped, or the first ones of the epoch once more."""
    order = case.order(len(rows))
    said = [f"row {row} was not received (planned at step {case.step})" for row in rows[order[case.at]]]
    if change is _repeat:
        steps = f"{case.first_step}, {case.step} (planned at step {case.first_step})"
        said += [f"row {row} was received 2 times, at steps {steps}" for row in rows[order[0]]]
    return said


@pytest.mark.parametrize("change", [_skip, _repeat])
@pytest.mark.parametrize("name", CASES)
def test_a_sampler_that_skips_or_repeats_is_stopped_at_the_step_with_the_row_named(
    name: str, change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    rail = rail_of(case.method, case.fields, tmp_path)
    with monkeypatch.context() as patched:
        case.plant(patched, change, case.at)
        with pytest.raises(LedgerError) as stopped:
            finish(rail)
    assert stopped.value.where == f"epoch 2, step {case.step}"
    for words in words_of(prepared_ids(rail.blobs), case, change):
        assert words in stopped.value.what
    store = CheckpointStore(rail.blobs)
    (fingerprint,) = store.find("")
    assert [entry.step for entry in store.head(fingerprint).entries()] == [case.first_step - 1]


@pytest.mark.parametrize(("name", "change"), [("supervised, packed", _skip), ("reinforcement", _repeat)])
def test_then_the_check_has_failed_and_nothing_is_registered(
    name: str, change: Change, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    case.plant(monkeypatch, change, case.at)
    with pytest.raises(LedgerError) as stopped:
        run(bench, case)
    assert evaluations(bench) == [(False, str(stopped.value))]
    for words in words_of(prepared_ids(bench.blobs), case, change):
        assert words in str(stopped.value)
    assert steps_begun(bench)[-1] == "train_epoch[epoch_0002]"
    assert list(StoreRegistry(bench.blobs).versions(case.recipe)) == []


@pytest.mark.full
@pytest.mark.parametrize(("name", "change"), [("supervised", _skip), ("reinforcement", _repeat)])
def test_without_the_guard_the_ledger_still_holds_what_was_received_and_the_run_fails_in_the_end(
    name: str, change: Change, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    with monkeypatch.context() as patched:
        case.plant(patched, change, case.at)
        for module in (attempt, events):
            patched.setattr(module, "require_planned", lambda *args, **kwargs: None)
        with pytest.raises(LedgerError) as stopped:
            run(bench, case)
    said = str(stopped.value)
    assert ": epoch 2: " in said
    for words in words_of(prepared_ids(bench.blobs), case, change):
        assert words in said
    assert evaluations(bench) == [(False, said)]
    # Launched again it trains nothing, and is looked at all the same.
    with pytest.raises(LedgerError):
        run(bench, case)
    assert evaluations(bench) == [(False, said)]
    assert steps_begun(bench)[-1] == "finish_training"
    assert bench.instance.get_latest_materialization_event(dg.AssetKey([case.recipe, "model"])) is None
    assert list(StoreRegistry(bench.blobs).versions(case.recipe)) == []


# The check as Dagster has it, on noop


def launch(bench: Bench, *stages: str, **fields: Any) -> dg.ExecuteInProcessResult:
    """Materialize some assets on the noop backend; the whole job without any."""
    config = bench.resources(trainer={"backend": {"noop": {}}}, supervised={**PLAIN, **fields})
    definitions = built_in().definitions()
    job = definitions.resolve_implicit_global_asset_job_def() if stages else definitions.resolve_job_def("supervised")
    return job.execute_in_process(
        run_config={"resources": {key: {"config": value} for key, value in config.items()}},
        asset_selection=[dg.AssetKey(["supervised", stage]) for stage in stages] or None,
        instance=bench.instance,
        raise_on_error=False,
    )


def test_the_check_is_part_of_the_job_and_of_materialize_also_when_nothing_is_left_to_do(bench: Bench) -> None:
    said = "2 epochs, 6 steps, 44 rows: each received exactly once, at the step that it was planned for"
    for stages in ((), (), ("model",), ("model", "evaluation")):
        result = launch(bench, *stages)
        assert result.success
        assert evaluations(bench) == [(True, said)]
        (check,) = [found for found in result.get_asset_check_evaluations() if found.check_name == CHECK]
        assert (check.asset_key, check.blocking) == (dg.AssetKey(["supervised", "model"]), True)
        assert check.target_materialization_data is not None
        assert check.target_materialization_data.run_id == result.run_id
    (version,) = StoreRegistry(bench.blobs).versions("supervised")
    assert version.step == 6


@pytest.mark.parametrize("guarded", [True, False])
def test_on_noop_too_what_is_wrong_blocks_what_is_downstream(
    guarded: bool, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = noop._plan_of_epoch

    def planted(job: TrainingJob, epoch: int) -> list[list[int]]:
        first, second, last = real(job, epoch)
        return [first, second, [*last, first[0]]] if epoch == 2 else [first, second, last]

    monkeypatch.setattr(noop, "_plan_of_epoch", planted)
    if not guarded:
        monkeypatch.setattr(events, "require_planned", lambda *args, **kwargs: None)
    result = launch(bench, "raw", "dataset", "model", "evaluation", "registered_model")
    assert not result.success
    ((passed, said),) = evaluations(bench)
    assert not passed
    assert "was received 2 times, at steps 4, 6 (planned at step 4)" in said
    assert steps_begun(bench)[-1] == ("train_epoch[epoch_0002]" if guarded else "finish_training")
    (record,) = bench.instance.get_run_records(limit=1)
    assert record.dagster_run.tags["kitchen/error"] == "LedgerError"
    assert record.dagster_run.tags["kitchen/mendable"] == "false"
    assert list(StoreRegistry(bench.blobs).versions("supervised")) == []
