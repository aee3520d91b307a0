"""Evaluation inside the run, the choice of the model, and stopping early, on values that the test gives.

The backend is noop, which learns nothing and so is never evaluated; here it doesn't say so. The evaluator measures what
the test wrote down for the step that it finds in the checkpoint's own file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.checkpoints.head import RunEnd
from kitchen_resources.datasets.sources import NoopDatasets
from kitchen_resources.errors import CheckpointError, ConfigError
from kitchen_resources.evaluation.port import EvaluatedModel, EvaluationResult, EvaluationTask, Measure
from kitchen_resources.training.noop import NoopTrainer
from tests.engine import Engine, HookedTrainer, Planted, UnmarkedTrainer, states

STEPS = 2
"""Steps of an epoch: ten rows, two of them held out, in batches of four."""
LOSS = "held_out/loss"
NAN = float("nan")
FIELDS: dict[str, Any] = {"model": "embedded:tiny", "held_out": "0.2", "epochs": 5}


class HookedUnmarked(UnmarkedTrainer, HookedTrainer):
    """It tells of its steps, too."""


class Scripted:
    """An evaluator that knows the values beforehand.

    Args:
        values: By epoch; a missing one is a failure of the evaluation.
        metric: Name of the metric that they are of.
    """

    name = "scripted"

    def __init__(self, values: Mapping[int, float], metric: str = LOSS) -> None:
        self.values = values
        self.metric = metric
        self.asked: list[int] = []

    def check(self, scorer: str, arguments: Mapping[str, Any]) -> str | None:
        return None

    def evaluate(self, model: EvaluatedModel, tasks: Sequence[EvaluationTask]) -> EvaluationResult:
        assert [task.name for task in tasks][:1] == ["held_out"]
        epoch = json.loads((model.folder / "simulated.json").read_bytes())["step"] // STEPS
        if epoch not in self.values:
            raise Planted(f"evaluation of epoch {epoch}")
        self.asked.append(epoch)
        return EvaluationResult({self.metric: Measure(self.values[epoch], 2, NAN, NAN)}, [])


def bench(values: Sequence[float], metric: str = LOSS) -> tuple[Engine, Scripted]:
    """An engine whose epochs 1, 2 … measure these values."""
    evaluator = Scripted(dict(enumerate(values, start=1)), metric)
    return Engine(adapter=UnmarkedTrainer(), datasets=NoopDatasets(10), evaluator=evaluator), evaluator


FALLING = [5.0, 4.0, 3.0, 2.0, 1.0]
TURNING = [3.0, 1.0, 2.0, 2.5, 0.5]


def present(engine: Engine) -> list[int]:
    """Epochs whose checkpoint is whole."""
    return [entry.epoch for entry in engine.head().entries() if entry.payload == "present"]


# Evaluation


def test_every_epoch_is_evaluated_once_whoever_asks() -> None:
    engine, evaluator = bench(FALLING)
    engine.run(**FIELDS).ensure(2)
    assert evaluator.asked == [1, 2]
    finished = engine.finish(**FIELDS)
    assert evaluator.asked == [1, 2, 3, 4, 5]
    assert [[value.metrics for value in entry.evaluations.values()] for entry in finished.head.entries()] == [
        [{LOSS: value}] for value in FALLING
    ]
    engine.finish(**FIELDS)
    run = engine.run(**FIELDS)
    assert run.evaluate_selected().metrics() == {LOSS: 1.0}
    assert evaluator.asked == [1, 2, 3, 4, 5]


def test_only_every_second_epoch_and_the_last_are_evaluated() -> None:
    engine, evaluator = bench(FALLING)
    engine.finish(**FIELDS, eval_every=2)
    assert evaluator.asked == [2, 4, 5]


def test_without_evaluations_only_the_model_is_measured_when_it_is_asked_for() -> None:
    engine, evaluator = bench(FALLING)
    engine.finish(**FIELDS, eval_every=0)
    assert evaluator.asked == []
    for _ in range(2):
        assert engine.run(**FIELDS, eval_every=0).evaluate_selected().metrics() == {LOSS: 1.0}
    assert evaluator.asked == [5]
    assert engine.head().holder is None


def test_nothing_is_held_out_so_nothing_is_measured() -> None:
    engine, evaluator = bench(FALLING)
    finished = engine.finish(**{**FIELDS, "held_out": "0"})
    assert evaluator.asked == []
    assert finished.selected.epoch == 5


def test_a_simulated_run_is_never_evaluated() -> None:
    engine, evaluator = bench(FALLING)
    engine.with_(adapter=NoopTrainer()).finish(**FIELDS)
    assert evaluator.asked == []


def test_evaluating_changes_no_bits() -> None:
    heads = [bench(FALLING)[0].finish(**FIELDS, eval_every=every, select_metric=LOSS).head for every in (0, 1, 2)]
    assert states(heads[0]) == states(heads[1]) == states(heads[2])
    assert len(states(heads[0])) == 5


def test_an_evaluation_that_failed_is_made_up_for_without_training() -> None:
    engine, evaluator = bench([5.0])
    with pytest.raises(Planted, match="evaluation of epoch 2"):
        engine.run(**FIELDS).ensure(2)
    assert states(engine.head()).keys() == {2, 4}
    assert engine.head().holder is None
    evaluator.values = dict(enumerate(FALLING, start=1))
    assert engine.run(**FIELDS).planned().missing == (3, 4, 5)
    assert engine.run(**FIELDS).ensure(2) == 0
    assert evaluator.asked == [1, 2]
    assert engine.finish(**FIELDS).steps_done == 6


def test_other_evaluations_measure_again_what_is_whole() -> None:
    engine, evaluator = bench(FALLING)
    engine.finish(**FIELDS)
    assert present(engine) == [4, 5]
    evaluator.asked.clear()
    more = {**FIELDS, "evaluations": [{"name": "held_out", "max_tokens": 3}]}
    assert engine.finish(**more).steps_done == 0
    assert evaluator.asked == [4, 5]
    assert len(engine.store.find("")) == 1
    assert [len(entry.evaluations) for entry in engine.head().entries()] == [1, 1, 1, 2, 2]


def damage(engine: Engine, epoch: int) -> None:
    entry = engine.head().at(epoch * STEPS)
    assert entry is not None
    (file,) = engine.store.manifest(entry).files.values()
    (key,) = [key for key in engine.blobs.list("runs/") if key.endswith(file.sha256)]
    assert engine.blobs.delete(key)


def test_a_damaged_checkpoint_that_waits_for_its_evaluation_is_made_again() -> None:
    engine, evaluator = bench([5.0])
    with pytest.raises(Planted):
        engine.run(**FIELDS).ensure(2)
    before = states(engine.head())
    damage(engine, 2)
    evaluator.values = dict(enumerate(FALLING, start=1))
    again = engine.with_()
    assert again.run(**FIELDS).ensure(2) == STEPS
    assert "the checkpoint at step 4 is damaged and was quarantined" in again.told.said[0]
    assert states(engine.head()) == before
    assert evaluator.asked == [1, 2]


class Losing(MemoryBlobs):
    """A store that loses the payload of some checkpoints, in the order of their publication, before they are read."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.made = 0
        self._lost: set[str] = set()

    def put_file(self, key: str, path: Path) -> bool:
        if "/payload/" in key:
            self.made += 1
            if self.made in self.numbers:
                self._lost.add(key)
                return super().put_if_absent(key, b"")
            if key in self._lost:
                super().delete(key)
        return super().put_file(key, path)


def test_a_checkpoint_that_is_damaged_as_soon_as_it_was_published_is_made_again() -> None:
    engine, evaluator = bench(FALLING)
    reached: list[int] = []
    engine.blobs = Losing(2)
    engine.adapter = HookedUnmarked(reached.append)
    finished = engine.finish(**FIELDS)
    # Not on top of the folder that is still there, of a checkpoint that no longer exists.
    assert reached == [1, 2, 3, 4, 3, 4, 5, 6, 7, 8, 9, 10]
    assert states(finished.head) == states(bench(FALLING)[0].finish(**FIELDS).head)
    assert evaluator.asked == [1, 2, 3, 4, 5]


def test_a_store_that_damages_everything_is_given_up() -> None:
    engine, evaluator = bench(FALLING)
    engine.blobs = Losing(*range(1, 100))
    with pytest.raises(CheckpointError) as refused:
        engine.finish(**FIELDS)
    assert str(refused.value) == (
        f"run {engine.head().fingerprint[:12]}: 3 checkpoints were damaged as soon as they were published\n"
        f"  fix: check the disk of {engine.blobs.uri}, then run again"
    )
    assert evaluator.asked == []
    assert engine.head().holder is None


def test_a_damaged_model_is_not_measured_and_made_again_by_the_next_run() -> None:
    engine, _ = bench(FALLING)
    engine.finish(**FIELDS, eval_every=0)
    damage(engine, 5)
    with pytest.raises(CheckpointError) as refused:
        engine.run(**FIELDS, eval_every=0).evaluate_selected()
    fingerprint = engine.head().fingerprint
    assert str(refused.value) == (
        f"run {fingerprint[:12]}, step 10: the checkpoint is damaged and was quarantined\n"
        "  fix: run the recipe again, which makes it again"
    )
    assert engine.finish(**FIELDS, eval_every=0).steps_done == STEPS
    assert engine.run(**FIELDS, eval_every=0).evaluate_selected().metrics() == {LOSS: 1.0}


def test_a_simulated_run_is_nothing_to_go_on_from_for_a_real_one() -> None:
    engine, _ = bench(FALLING)
    engine.with_(adapter=NoopTrainer()).finish(**FIELDS)
    prefix = engine.head().fingerprint[:12]
    with pytest.raises(ConfigError, match="a simulated run has nothing to go on from\n  fix: use the backend it was"):
        engine.run(**{**FIELDS, "epochs": 9}, continue_from=prefix).planned()


# The choice


@pytest.mark.parametrize(
    ("metric", "select", "chosen"),
    [(LOSS, "last", 5), (LOSS, "best", 5), ("held_out/exact_match", "best", 1), ("held_out/perplexity", "best", 5)],
)
def test_the_last_or_the_best_epoch_becomes_the_model(metric: str, select: str, chosen: int) -> None:
    engine, _ = bench(TURNING, metric)
    finished = engine.finish(**FIELDS, select=select, select_metric=metric)
    assert finished.selected.epoch == chosen
    assert finished.head.end == RunEnd("completed", epoch=5, step=10)


def test_of_equals_the_first_is_the_best() -> None:
    engine, _ = bench([2.0, 1.0, 1.0, 1.0, 2.0])
    assert engine.finish(**FIELDS, select="best").selected.epoch == 2


def test_the_best_among_the_measured_is_chosen() -> None:
    engine, _ = bench(TURNING)
    assert engine.finish(**{**FIELDS, "epochs": 4}, select="best", eval_every=3).selected.epoch == 3


def test_the_best_of_what_was_never_measured_is_refused() -> None:
    engine, _ = bench(TURNING, "held_out/perplexity")
    with pytest.raises(CheckpointError, match=r"^run \w{12}: held_out/loss was measured for no epoch\n  fix: eval_"):
        engine.finish(**FIELDS, select="best")


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"keep_last": 1, "keep_best": 0}, [4]),
        ({"keep_last": 2, "keep_best": 0}, [3, 4]),
        ({"keep_last": 1, "keep_best": 1}, [2, 4]),
        ({"keep_last": 1, "keep_best": 2}, [2, 3, 4]),
        ({"keep_last": 1, "keep_best": 0, "select": "best"}, [2, 4]),
        ({"keep_last": 9, "keep_best": 0}, [1, 2, 3, 4]),
    ],
)
def test_the_last_and_the_best_keep_their_payload(fields: dict[str, Any], kept: list[int]) -> None:
    engine, _ = bench(TURNING)
    engine.finish(**{**FIELDS, "epochs": 4}, **fields)
    assert present(engine) == kept
    reasons = {entry.reason for entry in engine.head().entries() if entry.payload == "pruned"}
    assert reasons <= {f"keep_last {fields['keep_last']}, keep_best {fields['keep_best']}"}


# Stopping early


@pytest.mark.parametrize(("patience", "stop"), [(1, 3), (2, 4), (3, 5)])
def test_it_stops_when_nothing_gets_better(patience: int, stop: int) -> None:
    engine, evaluator = bench(TURNING)
    finished = engine.finish(**FIELDS, early_stop_patience=patience)
    assert finished.steps_done == stop * STEPS
    assert evaluator.asked == list(range(1, stop + 1))
    reason = "early_stop" if stop < 5 else "completed"
    assert finished.head.end == RunEnd(reason, epoch=stop, step=stop * STEPS)  # type: ignore[arg-type]
    assert finished.selected.epoch == stop


def test_a_stopped_run_is_finished_for_everybody() -> None:
    engine, evaluator = bench(TURNING)
    fields = {**FIELDS, "early_stop_patience": 1}
    engine.finish(**fields)
    run = engine.run(**fields)
    planned = run.planned()
    assert (planned.missing, planned.epochs) == ((), 5)
    assert [run.ensure(epoch) for epoch in (5, 4, 1)] == [0, 0, 0]
    assert run.finish().steps_done == 0
    assert evaluator.asked == [1, 2, 3]


def test_epochs_asked_for_one_by_one_stop_too() -> None:
    engine, _ = bench(TURNING)
    fields = {**FIELDS, "early_stop_patience": 1}
    engine.run(**fields).planned()
    assert [engine.run(**fields).ensure(epoch) for epoch in range(1, 6)] == [2, 2, 2, 0, 0]
    assert engine.run(**fields).finish().selected.epoch == 3


def test_a_stopped_run_has_the_bits_of_one_that_went_on_and_can_go_on() -> None:
    engine, evaluator = bench(TURNING)
    stopped = engine.finish(**FIELDS, early_stop_patience=1).head
    whole = bench(TURNING)[0].finish(**FIELDS).head
    assert stopped.fingerprint == whole.fingerprint
    assert states(stopped).items() <= states(whole).items()
    further = engine.finish(**FIELDS)
    assert further.steps_done == 2 * STEPS
    assert further.head.end == RunEnd("completed", epoch=5, step=10)
    assert states(further.head) == states(whole)
    assert evaluator.asked == [1, 2, 3, 4, 5]


def test_the_best_of_a_stopped_run_is_chosen_among_the_epochs_until_it_stopped() -> None:
    engine, _ = bench(TURNING)
    engine.finish(**FIELDS, keep_best=5)
    # Epoch 5 is better, and lies behind the end of the run as it is asked for now.
    finished = engine.finish(**FIELDS, early_stop_patience=1, select="best", keep_best=5)
    assert finished.steps_done == 0
    assert finished.selected.epoch == 2
    assert finished.head.end == RunEnd("early_stop", epoch=3, step=6)
    assert engine.finish(**FIELDS, early_stop_patience=1, keep_best=5).selected.epoch == 3
