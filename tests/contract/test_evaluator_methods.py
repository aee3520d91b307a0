"""The evaluator port's contract for what each method measures of its held-out rows, run over every adapter."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.embedded import write_model
from kitchen_resources.evaluation.local import LocalEvaluator, NoopEvaluator
from kitchen_resources.evaluation.port import EvaluationResult, Evaluator, Task, result_from_json
from kitchen_resources.evaluation.tasks import make_tasks
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.rules import measured_metrics
from kitchen_resources.recipes.supervised import SupervisedRecipe
from tests import letters
from tests.rail import Rail
from tests.tiny_models import evaluated, write_tiny_model

pytestmark = pytest.mark.heavy

ADAPTERS: dict[str, Callable[[], Evaluator]] = {"local": LocalEvaluator, "noop": NoopEvaluator}
MEASURING = {"local"}
FIELDS: dict[type[Recipe], dict[str, Any]] = {
    SupervisedRecipe: {},
    PreferenceRecipe: {},
    ReinforcementRecipe: {"pass_at": 2, "environment": {"name": "letters", "args": {"count": 6}}},
    DistillationRecipe: {"teacher": "TEACHER"},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher") / "model"
    write_model(folder, seed=5)
    return str(folder)


@pytest.fixture(scope="module", params=FIELDS, ids=lambda method: method.method)
def asked(request: pytest.FixtureRequest, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a small recipe of a method measures, and the tasks of it."""
    letters.register()
    method: type[Recipe] = request.param
    rail = Rail()
    rail.add(
        "mine",
        method,
        {"held_out": "0.5", **{k: teacher if v == "TEACHER" else v for k, v in FIELDS[method].items()}},
    )
    launch = rail.launch("mine")
    assert launch.prepared.held_out is not None
    tasks = make_tasks(launch, tmp_path_factory.mktemp("rows"))
    return measured_metrics(launch.recipe), launch.prepared.held_out.rows, tasks


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_tiny_model(folder / str(seed), seed=seed) for seed in (0, 1)]


def measure(adapter: str, model: Path, tasks: list[Task]) -> EvaluationResult:
    return ADAPTERS[adapter]().evaluate(evaluated(model), tasks)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_is_announced_is_measured(adapter: str, asked: Any, models: list[Path]) -> None:
    metrics, rows, tasks = asked
    found = measure(adapter, models[0], tasks)
    if adapter not in MEASURING:
        assert found.measures == {}
        assert found.note.startswith("not measured: ")
        return
    assert set(found.measures) == set(metrics)
    for name, measured in found.measures.items():
        assert measured.n == rows, name
        assert math.isfinite(measured.value)
        assert measured.low <= measured.value <= measured.high or math.isnan(measured.low)
    stored = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert result_from_json(stored).as_json() == found.as_json()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_same_model_is_measured_the_same_and_another_otherwise(
    adapter: str, asked: Any, models: list[Path]
) -> None:
    _, _, tasks = asked
    first, again, other = (measure(adapter, model, tasks).metrics() for model in (models[0], *models))
    assert first == again
    assert (first != other) == (adapter in MEASURING)
