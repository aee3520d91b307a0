"""The ledger against the plan: each way in which rows can be received otherwise, and every kind of run on noop."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from kitchen_resources.checkpoints.head import RunEnd, encode_head, head_key
from kitchen_resources.datasets.port import LocalDataset
from kitchen_resources.errors import ConfigError, LedgerError
from kitchen_resources.formulas.batches import block_plan
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.training import events, noop
from kitchen_resources.training.ledger import EpochRows, Fault, LedgerReport, RowPlan, compare, require_planned
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.plan import make_plan
from kitchen_resources.training.port import TrainingJob
from kitchen_resources.training.run import TrainingRun
from kitchen_resources.training.trl.sampling import rows_of_samples
from kitchen_resources.training.upstream import make_version
from tests.engine import Engine, Planted, Told, UnmarkedTrainer, failing_at, recipe
from tests.pretending import ScriptedEvaluator
from tests.rail import Rail

PLANNED = [[4, 1], [3, 0], [2]]
"""An epoch of five rows, whose first step is the run's fourth in what follows."""

# Two lists of steps


@pytest.mark.parametrize(
    ("received", "faults", "said"),
    [
        ([[4, 1], [3, 0], [2]], [], []),
        ([[1, 4], [0, 3], [2]], [], []),
        (
            [[4, 1], [0], [2]],
            [Fault(3, "missing", (5,), ())],
            ["row 3 was not received (planned at step 5)"],
        ),
        (
            # A sampler that leaves one row out: those after it come too early.
            [[4, 1], [0, 2]],
            [Fault(3, "missing", (5,), ()), Fault(2, "moved", (6,), (5,))],
            ["row 3 was not received (planned at step 5)", "row 2 was received at step 5 (planned at step 6)"],
        ),
        (
            # A sampler that gives one row twice: those after it come too late.
            [[4, 1], [1, 3], [0, 2]],
            [Fault(1, "repeated", (4,), (4, 5)), Fault(0, "moved", (5,), (6,))],
            [
                "row 1 was received 2 times, at steps 4, 5 (planned at step 4)",
                "row 0 was received at step 6 (planned at step 5)",
            ],
        ),
        (
            # One in the place of another.
            [[4, 1], [3, 4], [2]],
            [Fault(0, "missing", (5,), ()), Fault(4, "repeated", (4,), (4, 5))],
            [
                "row 0 was not received (planned at step 5)",
                "row 4 was received 2 times, at steps 4, 5 (planned at step 4)",
            ],
        ),
        (
            [[4, 1], [3, 0], [2, 9]],
            [Fault(9, "unplanned", (), (6,))],
            ["row 9 was received at step 6, and isn't in the plan"],
        ),
        (
            [[3, 1], [4, 0], [2]],
            [Fault(3, "moved", (5,), (4,)), Fault(4, "moved", (4,), (5,))],
            [
                "row 3 was received at step 4 (planned at step 5)",
                "row 4 was received at step 5 (planned at step 4)",
            ],
        ),
        (
            [[4, 4], [3, 0], [2]],
            [Fault(1, "missing", (4,), ()), Fault(4, "repeated", (4,), (4, 4))],
            [
                "row 1 was not received (planned at step 4)",
                "row 4 was received 2 times, at steps 4, 4 (planned at step 4)",
            ],
        ),
    ],
)
def test_what_was_received_otherwise(received: list[list[int]], faults: list[Fault], said: list[str]) -> None:
    found = compare(PLANNED, received, first_step=4)
    assert found == faults
    assert list(map(str, found)) == said


def test_a_prompt_that_a_block_has_twice_must_come_twice() -> None:
    planned: list[list[int]] = [[0, 1], [], [2, 0], []]
    assert compare(planned, planned) == []
    assert compare(planned, [[0, 1], [], [2], []]) == [Fault(0, "missing", (1, 3), (1,))]
    assert str(compare(planned, [[0, 1], [], [2], []])[0]) == (
        "row 0 was received only at step 1 (planned at steps 1, 3)"
    )
    assert compare(planned, [[0, 1], [], [2, 0], [0]]) == [Fault(0, "repeated", (1, 3), (1, 3, 4))]


def test_steps_that_are_still_to_come_are_not_missed() -> None:
    assert compare(PLANNED, [], complete=False) == []
    assert compare(PLANNED, [[4, 1], [3, 0]], complete=False) == []
    assert compare(PLANNED, [[4, 1], [3, 2]], complete=False) == [
        Fault(0, "missing", (2,), ()),
        Fault(2, "moved", (3,), (2,)),
    ]
    assert compare(PLANNED, [[4, 1], [3, 0]]) == [Fault(2, "missing", (3,), ())]


def test_steps_beyond_the_plan_are_seen() -> None:
    assert compare(PLANNED, [*PLANNED, [1]]) == [Fault(1, "repeated", (1,), (1, 4))]
    for complete in (False, True):
        with pytest.raises(LedgerError, match=r"^epoch 1, step 4: 4 steps were done, and 3 were planned\n  fix: "):
            require_planned(PLANNED, [*PLANNED, []], epoch=1, first_step=1, complete=complete)


def test_an_epoch_whose_last_steps_have_no_rows_of_their_own_needs_them_too() -> None:
    planned: list[list[int]] = [[0, 1], []]
    require_planned(planned, [[1, 0]], epoch=1, first_step=1)
    require_planned(planned, [[1, 0], []], epoch=1, first_step=1, complete=True)
    with pytest.raises(LedgerError, match="1 steps were done, and 2 were planned"):
        require_planned(planned, [[1, 0]], epoch=1, first_step=1, complete=True)
    assert not EpochRows(1, steps=1, planned_steps=2, rows=2, partial=False, faults=()).passed


def test_of_many_faults_the_first_are_told_and_the_others_counted() -> None:
    planned = [[row] for row in range(20)]
    faults = tuple(compare(planned, [*planned[1:], [0]]))
    found = EpochRows(2, steps=20, planned_steps=20, rows=20, partial=False, faults=faults)
    assert not found.passed
    assert str(found) == (
        "epoch 2: row 0 was received at step 20 (planned at step 1); "
        + "".join(f"row {row} was received at step {row} (planned at step {row + 1}); " for row in range(1, 6))
        + "14 more rows were not received as planned, from step 6 on"
    )


def test_a_report_says_what_was_compared() -> None:
    whole = EpochRows(1, steps=3, planned_steps=3, rows=10, partial=False, faults=())
    part = EpochRows(2, steps=1, planned_steps=1, rows=4, partial=True, faults=())
    assert str(LedgerReport((whole,))) == (
        "1 epoch, 3 steps, 10 rows: each received exactly once, at the step that it was planned for"
    )
    assert str(LedgerReport((whole, part), unknown=(3,))) == (
        "2 epochs, 4 steps, 14 rows: each received exactly once, at the step that it was planned for; "
        "epoch 2 is partial; the record of epoch 3 is gone with its checkpoint"
    )
    wrong = EpochRows(3, steps=1, planned_steps=2, rows=4, partial=False, faults=(Fault(7, "missing", (8,), ()),))
    report = LedgerReport((whole, part, wrong))
    assert not report.passed
    assert str(report) == (
        "epoch 3: 1 steps are on record, and 2 were planned; row 7 was not received (planned at step 8)"
    )


@pytest.mark.parametrize(
    ("samples", "rows"),
    [
        ([(3, 8), (0, 5), (2, 8), (1, 5)], [5, 8]),
        ([(0, 5), (1, 5), (2, 8)], [5]),
        ([(0, 5), (1, 5), (1, 5), (2, 8), (3, 8)], [5, 5, 8]),
        # A group whose samples are of two prompts is none.
        ([(0, 5), (1, 6), (2, 8), (3, 8)], [8]),
        # The same prompt drawn twice.
        ([(0, 5), (1, 5), (2, 5), (3, 5)], [5, 5]),
        ([], []),
    ],
)
def test_a_prompt_counts_once_with_its_whole_group(samples: list[tuple[int, int]], rows: list[int]) -> None:
    assert rows_of_samples(samples, group=2) == rows


def test_the_rows_of_a_pack_are_planned_where_the_pack_is(tmp_path: Path) -> None:
    path = tmp_path / "packs.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"row_ids": [[3, 1], [2], [9, 8, 7]]}), path)
    small = recipe(batch_size=2, epochs=1)
    rows = RowPlan(small, make_plan(small, 3), LocalDataset(path, 3, packed=True, pad_token_id=0), "digest")
    (first, second) = noop.planned_rows(small, rows.plan, 1, "digest")
    packs = [[3, 1], [2], [9, 8, 7]]
    assert rows.of_epoch(1) == [[row for index in step for row in packs[index]] for step in (first, second)]
    assert sorted(row for step in rows.of_epoch(1) for row in step) == [1, 2, 3, 7, 8, 9]


# Runs that receive what was planned


def epochs_of(report: LedgerReport) -> list[tuple[int, int, int, bool]]:
    assert report.passed
    return [(epoch.epoch, epoch.steps, epoch.rows, epoch.partial) for epoch in report.epochs]


WHOLE = [(1, 3, 10, False), (2, 3, 10, False), (3, 3, 10, False)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, WHOLE),
        ({"keep_last": 1, "checkpoint_steps": 1}, WHOLE),
        ({"batch_size": 2, "gradient_accumulation_steps": 2}, WHOLE),
        ({"batch_size": 3, "epochs": 1}, [(1, 4, 10, False)]),
        ({"seed": 7, "epochs": 1}, [(1, 3, 10, False)]),
        ({"max_steps": 5}, [(1, 3, 10, False), (2, 2, 8, True)]),
        ({"max_steps": 1}, [(1, 1, 4, True)]),
    ],
)
def test_every_row_once_in_each_epoch(fields: dict[str, Any], expected: list[tuple[int, int, int, bool]]) -> None:
    engine = Engine()
    assert epochs_of(engine.finish(**fields).ledger) == expected
    again = engine.finish(**fields)
    assert again.steps_done == 0
    assert epochs_of(again.ledger) == expected


def test_epochs_whose_payload_is_gone_count_as_others() -> None:
    finished = Engine().finish(keep_last=1)
    assert [entry.payload for entry in finished.head.entries()] == ["pruned", "pruned", "present"]
    assert epochs_of(finished.ledger) == WHOLE


@pytest.mark.parametrize("step", [2, 3, 5, 9])
def test_a_run_that_broke_off_inside_an_epoch_has_each_row_once(step: int) -> None:
    engine = Engine()
    with pytest.raises(Planted):
        engine.with_(adapter=failing_at(step)).finish(checkpoint_steps=1)
    finished = engine.finish(checkpoint_steps=1)
    assert finished.steps_done == 10 - step
    assert epochs_of(finished.ledger) == WHOLE


def test_a_run_that_stops_early_has_its_epochs_whole() -> None:
    """Losses of 3, 1, 2, 2.5: it stops after epoch 4 of 5. Two of ten rows are held out."""
    engine = Engine(adapter=UnmarkedTrainer(), evaluator=ScriptedEvaluator([3.0, 1.0, 2.0, 2.5]))
    finished = engine.finish(model="embedded:tiny", held_out="0.2", epochs=5, early_stop_patience=2)
    assert finished.head.end == RunEnd("early_stop", epoch=4, step=8)
    assert epochs_of(finished.ledger) == [(epoch, 2, 8, False) for epoch in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("step", "epochs", "expected"),
    [
        (9, 5, [(4, 3, 10, False), (5, 3, 10, False)]),
        (5, 3, [(2, 3, 10, False), (3, 3, 10, False)]),
        (6, 3, [(3, 3, 10, False)]),
    ],
)
def test_what_continues_a_run_is_looked_at_from_its_own_first_epoch(
    step: int, epochs: int, expected: list[tuple[int, int, int, bool]]
) -> None:
    engine = Engine()
    old = engine.finish(checkpoint_steps=1, keep_last=9).head
    start = f"{old.fingerprint[:12]}@{step}"
    finished = engine.finish(continue_from=start, epochs=epochs, learning_rate=0.5)
    assert epochs_of(finished.ledger) == expected
    weights = engine.finish(continue_from=start, carry="weights", epochs=1)
    assert epochs_of(weights.ledger) == WHOLE[:1]


def test_an_epoch_that_max_steps_cut_is_whole_in_the_run_that_goes_on() -> None:
    engine = Engine()
    old = engine.finish(max_steps=4).head
    finished = engine.finish(continue_from=old.fingerprint[:12])
    assert epochs_of(finished.ledger) == WHOLE[1:]


@pytest.mark.parametrize("moved", [{"seed": 1}, {"batch_size": 5, "max_steps": None}])
def test_going_on_inside_an_epoch_in_another_order_is_refused(moved: dict[str, Any]) -> None:
    """Of ten rows in fives and in sixes an epoch has two steps alike."""
    engine = Engine()
    old = engine.finish(batch_size=6, checkpoint_steps=1, keep_last=9).head
    fields = {"batch_size": 6, "learning_rate": 0.5, **moved}
    with pytest.raises(ConfigError) as refused:
        engine.finish(continue_from=f"{old.fingerprint[:12]}@3", **fields)
    assert str(refused.value) == (
        f"continue_from: {old.fingerprint[:12]}@3: it lies inside an epoch that takes its rows in another order, "
        "so that some would come twice and some never\n"
        "  fix: give seed, batch_size and gradient_accumulation_steps the values that it was made with, "
        "name the end of an epoch, or carry: weights"
    )
    finished = engine.finish(continue_from=f"{old.fingerprint[:12]}@2", **fields)
    assert epochs_of(finished.ledger) == [(2, 2, 10, False), (3, 2, 10, False)]


METHODS: Mapping[str, tuple[type[Recipe], Mapping[str, Any], list[tuple[int, int, int, bool]]]] = {
    "pairs": (PreferenceRecipe, {"batch_size": 3}, [(1, 3, 8, False)]),
    "prompts": (ReinforcementRecipe, {"epochs": 2}, [(1, 2, 4, False), (2, 2, 4, False)]),
    "prompts, twice in a block": (ReinforcementRecipe, {"steps_per_epoch": 4}, [(1, 4, 8, False)]),
    "prompts, several steps on each": (
        ReinforcementRecipe,
        {"steps_per_epoch": 4, "ppo_epochs": 2},
        [(1, 4, 4, False)],
    ),
    "prompts, broken off": (ReinforcementRecipe, {"epochs": 2, "max_steps": 3}, [(1, 2, 4, False), (2, 1, 2, True)]),
    "logits": (DistillationRecipe, {"batch_size": 3, "mode": "logit"}, [(1, 3, 8, False)]),
    "sequences": (DistillationRecipe, {"batch_size": 3, "mode": "sequence"}, [(1, 3, 8, False)]),
    "on policy": (DistillationRecipe, {"batch_size": 3, "mode": "on_policy"}, [(1, 2, 6, False)]),
}


@pytest.mark.parametrize("case", METHODS)
def test_every_method_receives_what_was_planned(case: str) -> None:
    method, fields, expected = METHODS[case]
    rail = Rail(trainer=NoopTrainer)
    rail.add("mine", method, fields)
    for _ in range(2):
        run = TrainingRun(rail.launch("mine"), Told())
        run.planned()
        assert epochs_of(run.finish().ledger) == expected


def test_a_block_that_is_longer_than_the_data_has_prompts_twice() -> None:
    drawn = [row for draw in block_plan(6, seed=0, block=0, prompts=2, draws=4, order="digest") for row in draw]
    assert (len(drawn), len(set(drawn))) == (8, 6)


# Runs that don't


def ids_of(epoch: int) -> list[list[int]]:
    """The rows of each step of an epoch of the small recipe, by the plan."""
    small = recipe()
    return noop.planned_rows(small, make_plan(small, 10), epoch, "digest")


def plant(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[list[int]]], None], *, epoch: int = 2) -> None:
    """Let noop receive other rows in one epoch."""
    real = noop._plan_of_epoch

    def planted(job: TrainingJob, number: int) -> list[list[int]]:
        steps = [list(step) for step in real(job, number)]
        if number == epoch:
            change(steps)
        return steps

    monkeypatch.setattr(noop, "_plan_of_epoch", planted)


def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish what was received otherwise too, as a version without the comparison would."""
    monkeypatch.setattr(events, "require_planned", lambda *args, **kwargs: None)


def skip(steps: list[list[int]]) -> None:
    del steps[1][2]


def repeat(steps: list[list[int]]) -> None:
    steps[1][2] = steps[0][0]


SECOND = ids_of(2)
SKIPPED = f"row {SECOND[1][2]} was not received (planned at step 5)"
REPEATED = f"row {SECOND[0][0]} was received 2 times, at steps 4, 5 (planned at step 4)"


@pytest.mark.parametrize(("change", "said"), [(skip, [SKIPPED]), (repeat, [SKIPPED, REPEATED])])
def test_what_receives_other_rows_is_not_published_and_another_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[list[list[int]]], None], said: list[str]
) -> None:
    engine = Engine()
    with monkeypatch.context() as patched:
        plant(patched, change)
        with pytest.raises(LedgerError) as stopped:
            engine.finish()
    assert sorted(stopped.value.what.split("; ")) == sorted(said)
    assert stopped.value.where == "epoch 2, step 6"
    assert not stopped.value.mendable
    assert [entry.step for entry in engine.head().entries()] == [3]
    finished = engine.finish()
    assert finished.steps_done == 6
    assert epochs_of(finished.ledger) == WHOLE


def test_it_is_told_at_the_first_checkpoint_that_would_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    plant(monkeypatch, skip)
    with pytest.raises(LedgerError, match=rf"^epoch 2, step 5: {SKIPPED.replace('(', '.').replace(')', '.')}\n"):
        engine.finish(checkpoint_steps=1)
    assert [entry.step for entry in engine.head().entries()] == [1, 2, 3, 4]


@pytest.mark.parametrize(("change", "said"), [(skip, [SKIPPED]), (repeat, [SKIPPED, REPEATED])])
def test_what_is_stored_otherwise_makes_no_model_however_often_it_is_launched(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[list[list[int]]], None], said: list[str]
) -> None:
    engine = Engine()
    with monkeypatch.context() as patched:
        plant(patched, change)
        unguarded(patched)
        with pytest.raises(LedgerError) as stopped:
            engine.finish(keep_last=1)
    # All that was trained is there, its second epoch without its payload.
    head = engine.head()
    assert [(entry.step, entry.payload) for entry in head.entries()] == [(3, "pruned"), (6, "pruned"), (9, "present")]
    assert stopped.value.where == f"run {head.fingerprint[:12]}"
    assert stopped.value.what.startswith("epoch 2: ")
    assert sorted(stopped.value.what.removeprefix("epoch 2: ").split("; ")) == sorted(said)
    assert stopped.value.fix == "train it anew, as another run: seed: 1; no model is made of this one"
    with pytest.raises(LedgerError) as again:
        engine.finish(keep_last=1)
    assert str(again.value) == str(stopped.value)
    assert epochs_of(engine.finish(keep_last=1, seed=1).ledger) == WHOLE


def test_a_recipe_that_another_one_has_trained_first_is_not_registered_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine()
    plant(monkeypatch, repeat)
    unguarded(monkeypatch)
    launch = engine.launch()
    with pytest.raises(LedgerError):
        make_version(launch, Told())
    assert launch.read("model") is None
    assert list(StoreRegistry(engine.blobs).versions("supervised")) == []


# Records of damaged checkpoints


def quarantine_second_epoch(engine: Engine) -> str:
    """The end of epoch 2 is found damaged after epoch 3 was made from it; returns the key of its manifest."""
    head = engine.head()
    key = head_key(head.fingerprint)
    stored = engine.blobs.get(key)
    assert stored is not None
    data = encode_head(head.with_entry(6, payload="quarantined", reason="planted"))
    assert engine.blobs.compare_and_swap(key, stored.version, data) is not None
    return f"blobs/sha256/{head.entries()[1].manifest}"


def test_a_record_outlives_its_damaged_checkpoint() -> None:
    engine = Engine()
    engine.finish(keep_last=3)
    quarantine_second_epoch(engine)
    assert epochs_of(engine.finish(keep_last=3).ledger) == WHOLE


def test_a_record_that_is_gone_is_said() -> None:
    engine = Engine()
    engine.finish(keep_last=3)
    engine.blobs.delete(quarantine_second_epoch(engine))
    report = engine.finish(keep_last=3).ledger
    assert epochs_of(report) == [WHOLE[0], WHOLE[2]]
    assert report.unknown == (2,)
    assert str(report).endswith("; the record of epoch 2 is gone with its checkpoint")
