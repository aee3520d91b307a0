"""What a run measures of its checkpoints and of its base: each once, kept, and never taken for zero."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.errors import EvaluationError
from kitchen_resources.evaluation.checkpoints import ADAPTER_WEIGHTS, CheckpointEvaluations
from kitchen_resources.evaluation.final import FinalEvaluation, evaluate_final, final_from_json
from kitchen_resources.evaluation.local import NoopEvaluator
from kitchen_resources.evaluation.port import EvaluationResult, Measure, result_from_json
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.run import TrainingRun
from tests.pretending import LOSS, Pretence, Recorded, ScriptedEvaluator, Silent, train, write_sums

NAN = math.nan


@pytest.fixture
def pretence(tmp_path: Path) -> Pretence:
    return Pretence(write_sums(tmp_path / "rows.jsonl"))


def losses(pretence: Pretence, **fields: Any) -> dict[int, float]:
    """Recorded losses of a finished run, by epoch."""
    launch = pretence.launch(**fields)
    return dict(CheckpointEvaluations(launch).values(TrainingRun(launch, Silent()).head(), LOSS))


# Results as stored.


def test_a_result_is_read_back() -> None:
    measures = {"a/loss": Measure(0.5, 3, 0.25, 0.75), "a/match": Measure(1.0, 1, NAN, NAN)}
    result = EvaluationResult(measures, [{"answer": "ü", "score": 0.5}], note="said")
    stored = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert stored["measures"]["a/match"] == {"value": 1.0, "n": 1, "low": None, "high": None}
    again = result_from_json(stored)
    assert again.measures["a/loss"] == measures["a/loss"]
    assert math.isnan(again.measures["a/match"].low)
    assert math.isnan(again.measures["a/match"].high)
    assert again.as_json() == result.as_json()
    assert (again.samples, again.note) == ([{"answer": "ü", "score": 0.5}], "said")
    assert again.metrics() == {"a/loss": 0.5, "a/match": 1.0}


def test_an_interval_beyond_all_numbers_is_not_known() -> None:
    result = EvaluationResult({"a/perplexity": Measure(9.0, 2, 0.0, math.inf)}, [])
    assert result.as_json()["measures"]["a/perplexity"] == {"value": 9.0, "n": 2, "low": 0.0, "high": None}


def test_nothing_measured_is_nothing() -> None:
    empty = EvaluationResult({}, [], note="not measured: why")
    assert empty.metrics() == {}
    assert result_from_json(empty.as_json()) == empty


# Checkpoints of a run.


def test_each_epoch_is_measured_once(pretence: Pretence) -> None:
    evaluator = ScriptedEvaluator([3.0, 2.0, 8.0, 9.0])
    pretence = replace(pretence, evaluator=evaluator)
    first = train(pretence.launch())
    assert losses(pretence) == {1: 3.0, 2: 2.0}
    assert [model.digest for model, _ in evaluator.asked] == [entry.state_digest for entry in first.head.entries()]
    # Another launch of the same recipe finds both measured.
    train(pretence.launch())
    assert len(evaluator.asked) == 2
    # Another question is asked of the same checkpoints, and doesn't replace the first.
    more = [{"name": "sums"}]
    assert train(pretence.launch(evaluations=more)).steps_done == 0
    assert losses(pretence, evaluations=more) == {1: 8.0, 2: 9.0}
    assert losses(pretence) == {1: 3.0, 2: 2.0}


def test_the_model_that_is_measured(pretence: Pretence) -> None:
    evaluator = ScriptedEvaluator()
    launch = replace(pretence, evaluator=evaluator).launch(epochs=1)
    train(launch)
    ((model, tasks),) = evaluator.asked
    assert launch.base.folder is not None
    assert model.folder.parent.name.startswith("evaluate-")
    assert not model.folder.exists()
    assert (model.adapter, model.tokenizer) == (None, launch.base.folder)
    assert (model.dtype, model.attention, model.device, model.threads) == ("float32", "sdpa", "cpu", 3)
    assert [task.name for task in tasks] == ["held_out"]


def test_a_checkpoint_with_an_adapter_is_laid_on_the_base(pretence: Pretence, tmp_path: Path) -> None:
    launch = pretence.launch()
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / ADAPTER_WEIGHTS).write_bytes(b"")
    bf16 = replace(launch.resolution, values={**launch.resolution.values, "precision": "bf16"})
    model = CheckpointEvaluations(launch)._model(folder, "d" * 64, bf16)
    assert (model.folder, model.adapter, model.dtype) == (launch.base.folder, folder, "bfloat16")


def test_every_second_epoch_and_the_last(pretence: Pretence) -> None:
    train(pretence.launch(epochs=5, eval_every=2, keep_last=5))
    assert losses(pretence, epochs=5, eval_every=2) == {2: 1.0, 4: 2.0, 5: 3.0}
    train(pretence.launch(epochs=3, eval_every=0, keep_last=5))
    assert losses(pretence, epochs=3, eval_every=0) == {}


def test_a_metric_that_was_not_measured_has_no_value(pretence: Pretence) -> None:
    launch = pretence.launch()
    train(launch)
    head = TrainingRun(launch, Silent()).head()
    assert CheckpointEvaluations(launch).values(head, "held_out/exact_match") == {}


def test_evaluations_are_told_of(pretence: Pretence) -> None:
    telemetry = Recorded()
    finished = train(replace(pretence, telemetry=telemetry, evaluator=ScriptedEvaluator([3.0, 2.0])).launch())
    about = {"recipe": "sums", "fingerprint": finished.head.fingerprint}
    assert telemetry.named("training.eval") == [
        ({LOSS: 3.0}, {**about, "epoch": 1, "step": 2}),
        ({LOSS: 2.0}, {**about, "epoch": 2, "step": 4}),
    ]


def test_what_the_noop_evaluator_leaves_open_is_measured_later(pretence: Pretence) -> None:
    """Not measured is not measured: nothing of it is taken for a result."""
    quiet = replace(pretence, evaluator=NoopEvaluator())
    train(quiet.launch(keep_last=2))
    assert losses(quiet) == {}
    final = evaluate_final(quiet.launch())
    assert final.trained.metrics() == final.base.metrics() == {}
    assert final.trained.note == "not measured: the noop evaluator is in use"
    evaluator = ScriptedEvaluator([3.0, 2.0, 7.0])
    later = replace(pretence, evaluator=evaluator)
    assert train(later.launch(keep_last=2)).steps_done == 0
    assert losses(later) == {1: 3.0, 2: 2.0}
    assert evaluate_final(later.launch()).base.metrics() == {LOSS: 7.0}


# The final model against its base.


def test_final_evaluation(pretence: Pretence) -> None:
    evaluator = ScriptedEvaluator([3.0, 2.0, 7.0, 3.5, 2.5])
    pretence = replace(pretence, evaluator=evaluator)
    launch = pretence.launch()
    finished = train(launch)
    final = evaluate_final(launch)
    assert final.fingerprint == finished.head.fingerprint
    assert (final.trained.metrics(), final.base.metrics()) == ({LOSS: 2.0}, {LOSS: 7.0})
    # Only the base was asked anew.
    assert [model.digest for model, _ in evaluator.asked[2:]] == [launch.base.digest]
    assert evaluator.asked[2][0].folder == launch.base.folder
    assert final.samples() == [
        {
            "evaluation": "held_out",
            "prompt": "1 + 1",
            "expected": "2",
            "base": "answer 3",
            "trained": "answer 2",
            "score": 0.0,
        }
    ]
    # Every launch that asks the same of this base finds it measured, whatever it trains.
    other = pretence.launch(learning_rate=1.0)
    train(other)
    final = evaluate_final(other)
    assert (final.trained.metrics(), final.base.metrics()) == ({LOSS: 2.5}, {LOSS: 7.0})


def test_a_base_is_measured_anew_in_another_precision(pretence: Pretence) -> None:
    launch = replace(pretence, evaluator=ScriptedEvaluator([7.0, 6.0])).launch()
    values = {**launch.resolution.values, "precision": "bf16"}
    precisions = launch.resolution, replace(launch.resolution, values=values)
    for _ in range(2):
        found = [CheckpointEvaluations(launch).of_base(resolution).metrics() for resolution in precisions]
        assert found == [{LOSS: 7.0}, {LOSS: 6.0}]


def test_the_best_epoch_is_the_model(pretence: Pretence) -> None:
    evaluator = ScriptedEvaluator([3.0, 1.0, 2.0, 7.0])
    launch = replace(pretence, evaluator=evaluator).launch(epochs=3, select="best")
    assert train(launch).selected.epoch == 2
    assert evaluate_final(launch).trained.metrics() == {LOSS: 1.0}


def test_without_evaluations_in_between_the_final_model_is_measured(pretence: Pretence) -> None:
    evaluator = ScriptedEvaluator([4.0, 7.0])
    launch = replace(pretence, evaluator=evaluator).launch(eval_every=0)
    finished = train(launch)
    assert evaluator.asked == []
    assert evaluate_final(launch).trained.metrics() == {LOSS: 4.0}
    assert evaluator.asked[0][0].digest == finished.selected.state_digest
    assert evaluate_final(launch).trained.metrics() == {LOSS: 4.0}
    assert len(evaluator.asked) == 2


@pytest.mark.parametrize(
    ("fields", "simulated", "note"),
    [
        ({"held_out": "0"}, False, "not measured: no rows are held out, and the recipe has no evaluations"),
        ({}, True, "not measured: the run is simulated"),
    ],
)
def test_what_is_not_measured_says_why(
    pretence: Pretence, fields: dict[str, Any], simulated: bool, note: str
) -> None:
    pretence = replace(pretence, trainer=NoopTrainer) if simulated else pretence
    launch = pretence.launch(**fields)
    train(launch)
    final = evaluate_final(launch)
    assert final.trained == EvaluationResult({}, [], note=note)
    assert final.base == EvaluationResult({}, [])
    assert final.samples() == []
    assert losses(pretence, **fields) == {}
    assert isinstance(pretence.evaluator, ScriptedEvaluator)
    assert pretence.evaluator.asked == []


def test_there_must_be_a_model(pretence: Pretence) -> None:
    with pytest.raises(EvaluationError) as refused:
        evaluate_final(pretence.launch())
    assert str(refused.value) == ("recipe sums: there is no trained model to evaluate\n  fix: run the job sums first")


def test_a_final_evaluation_is_read_back() -> None:
    final = FinalEvaluation(
        "f" * 64,
        EvaluationResult({"a/loss": Measure(2.0, 3, 1.0, 3.0)}, [{"evaluation": "a"}]),
        EvaluationResult({}, [], note="why"),
    )
    assert final_from_json(json.loads(json.dumps(final.as_json()))) == final


def test_samples_stand_side_by_side_by_row() -> None:
    def sample(evaluation: str, where: str, answer: str) -> dict[str, Any]:
        return {
            "evaluation": evaluation,
            "where": where,
            "prompt": where,
            "expected": "x",
            "answer": answer,
            "score": 1.0,
        }

    base = EvaluationResult(
        {}, [sample("b", "1", "base b1"), sample("a", "2", "base a2"), sample("a", "1", "base a1")]
    )
    trained = EvaluationResult({}, [sample("a", "1", "a1"), sample("a", "3", "a3"), sample("b", "1", "b1")])
    shown = FinalEvaluation("f" * 64, base, trained).samples()
    assert [(row["trained"], row["base"]) for row in shown] == [("a1", "base a1"), ("a3", None), ("b1", "base b1")]
