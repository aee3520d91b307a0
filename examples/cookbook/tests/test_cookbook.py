"""The cookbook's own tests: what is its own, and that the rest is put together rightly."""

import uuid
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from cookbook import COOKBOOK, HERE, PROFILES
from quiz.adapters import QuizDatasets
from quiz.environments import Counting

import kitchen_assets as kitchen
from kitchen_resources.environments.port import Action
from kitchen_resources.errors import DataError


def memory() -> dict[str, Any]:
    return {"blobs": {"store": {"memory": {"name": uuid.uuid4().hex}}}}


def test_a_quiz_is_a_data_set() -> None:
    rows = list(QuizDatasets(HERE / "quizzes").open("quiz:sums").rows())
    assert len(rows) == 45
    assert (rows[0].where, rows[0].value) == ("sums.md:3", {"prompt": "1 plus 1", "completion": "2"})


def test_a_quiz_that_is_not_there_or_has_no_answer(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("# One\n\n- what?\n")
    with pytest.raises(DataError, match=r"no such quiz[\s\S]*one of quiz:one"):
        QuizDatasets(tmp_path).open("quiz:two")
    with pytest.raises(DataError, match=r"one\.md:3: has no answer"):
        list(QuizDatasets(tmp_path).open("quiz:one").rows())


def test_a_changed_quiz_is_new_data(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("- a :: b\n")
    first = QuizDatasets(tmp_path).look("quiz:one")
    (tmp_path / "one.md").write_text("- a :: c\n")
    assert QuizDatasets(tmp_path).look("quiz:one") != first


def test_other_data_sets_are_the_kitchens() -> None:
    store = QuizDatasets(HERE / "quizzes")
    assert store.open("embedded:dates").kind == "embedded"
    assert store.look("embedded:dates") == "embedded:dates"


def test_counting_knows_what_comes_next() -> None:
    problems = list(Counting().problems())
    assert len(problems) == 9
    right, wrong = Counting().group({"number": 3}, [0, 1])
    assert right.initial_observation() == [{"role": "user", "content": "3"}]
    assert right.step(Action("4")).reward == 1.0
    assert wrong.step(Action("5")).reward == 0.0


def test_the_location_is_the_two_recipes() -> None:
    assert kitchen.recipes(COOKBOOK) == ["counting", "sums"]
    defs = COOKBOOK.definitions()
    for job in ("sums", "sums_promote", "counting"):
        assert defs.resolve_job_def(job)


def test_the_profile_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COOKBOOK_STORE", str(tmp_path))
    assert PROFILES["local"]().path == str(tmp_path)
    monkeypatch.setenv("COOKBOOK_BUCKET", "models")
    assert (PROFILES["s3"]().bucket, PROFILES["s3"]().kind) == ("models", "s3")


@pytest.mark.parametrize("name", ["sums", "counting"])
def test_a_recipe_runs_to_a_version(name: str) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        noop = {"trainer": {"backend": {"noop": {}}}, "evaluator": {"evaluator": {"noop": {}}}}
        result = kitchen.run(name, {"epochs": 2}, {**noop, **memory()}, location=COOKBOOK, instance=instance)
    assert (result.epochs, result.registered_version) == (2, 1)
