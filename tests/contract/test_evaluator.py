"""The evaluator port's contract, run over every adapter."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from kitchen_resources.evaluation.local import LocalEvaluator, NoopEvaluator
from kitchen_resources.evaluation.port import EvaluationResult, EvaluationTask, Evaluator, result_from_json
from tests.tiny_models import Row, evaluated, question, task, write_adapter, write_rows, write_tiny_model

pytestmark = pytest.mark.heavy

ADAPTERS: dict[str, Callable[[], Evaluator]] = {
    "local": LocalEvaluator,
    "noop": NoopEvaluator,
}
MEASURING = {"local"}
ROWS: list[Row] = [([n, n + 1, n + 2, n + 3], [-100, n + 1, n + 2, n + 3]) for n in range(40, 45)]
TRAINED, ADAPTED = "trained", "adapted"


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def evaluator(adapter: str) -> Evaluator:
    return ADAPTERS[adapter]()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model, another one as if it had been trained, and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    base = write_tiny_model(folder / "base", seed=0)
    return {
        "base": base,
        TRAINED: write_tiny_model(folder / TRAINED, seed=1),
        ADAPTED: write_adapter(folder / ADAPTED, base),
        "rows": write_rows(folder / "rows.parquet", ROWS),
    }


def tasks(models: dict[str, Path]) -> list[EvaluationTask]:
    asked = [question([n, n + 1], "x", where=f"rows:{n}") for n in range(40, 45)]
    return [
        task(asked, models["rows"], name="held_out", max_tokens=3),
        task(asked[:2], name="other", scorer="token_f1", max_tokens=3),
    ]


def result(evaluator: Evaluator, models: dict[str, Path], which: str = "base") -> EvaluationResult:
    if which == ADAPTED:
        return evaluator.evaluate(evaluated(models["base"], adapter=models[ADAPTED]), tasks(models))
    return evaluator.evaluate(evaluated(models[which]), tasks(models))


def test_it_is_an_evaluator(evaluator: Evaluator, adapter: str) -> None:
    assert isinstance(evaluator, Evaluator)
    # What two adapters found is kept apart by their names.
    assert evaluator.name == adapter


def test_what_is_measured(evaluator: Evaluator, models: dict[str, Path], adapter: str) -> None:
    found = result(evaluator, models)
    if adapter not in MEASURING:
        assert found.measures == {}
        assert found.note.startswith("not measured: ")
        return
    assert found.note == ""
    assert {name: measure.n for name, measure in found.measures.items()} == {
        "held_out/loss": 5,
        "held_out/perplexity": 5,
        "held_out/exact_match": 5,
        "other/token_f1": 2,
    }
    for measure in found.measures.values():
        assert math.isfinite(measure.value)
        assert measure.low <= measure.value <= measure.high
    assert found.measures["held_out/perplexity"].value == pytest.approx(
        math.exp(found.measures["held_out/loss"].value)
    )


def test_samples_are_rows_with_answers(evaluator: Evaluator, models: dict[str, Path], adapter: str) -> None:
    samples = result(evaluator, models).samples
    assert len(samples) == (7 if adapter in MEASURING else 0)
    for sample in samples:
        assert set(sample) == {"evaluation", "where", "prompt", "expected", "answer", "score"}
        assert len(sample["answer"]) == 3


def test_a_result_can_be_stored(evaluator: Evaluator, models: dict[str, Path]) -> None:
    found = result(evaluator, models)
    stored = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert result_from_json(stored).as_json() == found.as_json()


def test_the_same_model_is_measured_the_same(evaluator: Evaluator, models: dict[str, Path]) -> None:
    assert result(evaluator, models) == result(evaluator, models)


def test_base_trained_and_adapted_are_told_apart(evaluator: Evaluator, models: dict[str, Path], adapter: str) -> None:
    losses = [result(evaluator, models, which).metrics().get("held_out/loss") for which in ("base", TRAINED, ADAPTED)]
    assert len(set(losses)) == (3 if adapter in MEASURING else 1)


@pytest.mark.parametrize("asked", [[], [task()]], ids=["no task", "a task that asks nothing"])
def test_nothing_asked_is_nothing_measured(
    evaluator: Evaluator, models: dict[str, Path], asked: list[EvaluationTask]
) -> None:
    found = evaluator.evaluate(evaluated(models["base"]), asked)
    assert (dict(found.measures), list(found.samples)) == ({}, [])


def test_the_process_is_left_as_it_was(evaluator: Evaluator, models: dict[str, Path]) -> None:
    threads, kind = torch.get_num_threads(), torch.get_default_dtype()
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    model = evaluated(models["base"], threads=threads + 1, dtype="bfloat16")
    evaluator.evaluate(model, tasks(models))
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, kind)
    assert (random.getstate(), numpy.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()) == states
    assert torch.is_grad_enabled()


def test_models_are_only_read(evaluator: Evaluator, models: dict[str, Path]) -> None:
    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in models["base"].parent.rglob("*") if path.is_file()}

    before = content()
    result(evaluator, models, ADAPTED)
    assert content() == before


def test_scorers_are_checked(evaluator: Evaluator, adapter: str) -> None:
    assert evaluator.check("exact_match", {"case_sensitive": False}) is None
    for scorer, options in (("no_such_scorer", {}), ("exact_match", {"no_such_option": 1})):
        said = evaluator.check(scorer, options)
        # Who measures nothing needs no scorer.
        assert said is None if adapter not in MEASURING else "no_such" in (said or "")
