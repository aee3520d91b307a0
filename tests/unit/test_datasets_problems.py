"""Problems of an environment as rows: its own, those of a data set, and what becomes of the ones that it can't take."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.datasets.problems import _MOST
from kitchen_resources.environments.arithmetic import Arithmetic
from kitchen_resources.errors import ConfigError, DataError
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from tests.rail import launch_of
from tests.unit.preparing import END, NEWLINE, START

OWN: dict[str, Any] = {"name": "arithmetic", "args": {"count": 6}, "workers": 1}


def prepared(**fields: Any) -> tuple[list[dict[str, Any]], Any, Any]:
    """The training rows, the prepared data and the report of a small recipe."""
    import pyarrow.parquet

    launch = launch_of(ReinforcementRecipe, environment=OWN, **fields)
    data, report = launch.prepare()
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(launch.training_rows().path).to_pylist()
    return rows, data, report


def write(folder: Path, rows: Sequence[Any]) -> str:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompt_ids(question: str) -> list[int]:
    return [START, *f"user\n{question}".encode(), END, NEWLINE, START, *b"assistant\n"]


def test_an_environment_s_own_problems_are_the_rows() -> None:
    rows, data, report = prepared()
    problems = list(Arithmetic(count=6).problems())
    assert [json.loads(row["problem"]) for row in rows] == problems
    assert [row["row_id"] for row in rows] == list(range(6))
    assert [row["where"] for row in rows] == [f"arithmetic[{n}]" for n in range(6)]
    assert [row["prompt_ids"] for row in rows] == [prompt_ids(problem["question"]) for problem in problems]
    assert (data.train.rows, data.train.trained_tokens, report.shape) == (6, 0, "problem")
    assert data.raw["train"]["kind"] == "environment"


def test_as_many_as_are_asked_for() -> None:
    rows, _, _ = prepared(max_rows=4)
    assert [json.loads(row["problem"]) for row in rows] == list(Arithmetic(count=6).problems())[:4]
    with pytest.raises(ConfigError) as refused:
        prepared(max_rows=_MOST + 1)
    assert str(refused.value) == (
        f"max_rows: {_MOST + 1} problems are more than the {_MOST} that are taken of an environment\n"
        f"  fix: max_rows: {_MOST}, or write them to a file and name it as dataset"
    )


def test_held_out_problems_are_others() -> None:
    rows, data, _ = prepared(held_out="0.5")
    assert (len(rows), data.held_out.rows) == (3, 3)
    assert data.held_out.digest != data.train.digest


def test_columns_of_a_data_set_take_the_names_that_the_environment_reads(tmp_path: Path) -> None:
    path = write(tmp_path, [{"task": "1 + 1", "result": 2, "source": "a"}, {"task": "2 + 2", "result": 4}])
    rows, data, _ = prepared(dataset=path, columns={"question": "task", "answer": "result"})
    assert [json.loads(row["problem"]) for row in rows] == [
        {"question": "1 + 1", "answer": 2, "source": "a"},
        {"question": "2 + 2", "answer": 4},
    ]
    assert rows[0]["prompt_ids"] == prompt_ids("1 + 1")
    assert data.raw["train"]["kind"] == "file"
    with pytest.raises(DataError) as refused:
        prepared(dataset=path, columns={"question": "tasks"})
    assert str(refused.value) == (
        f"dataset {path}: `columns` names 'tasks' for 'question', and row 0 has result, source, task\n"
        "  fix: columns: {question: one of those}"
    )


def test_a_problem_that_can_not_be_taken_is_left_out_with_the_reason(tmp_path: Path) -> None:
    rows = [{"question": "1 + 1", "answer": 2}, {"question": "2 + 2"}, {"question": "3 + 3", "answer": 6}]
    kept, _, report = prepared(dataset=write(tmp_path, rows), row_limits={"invalid": 0.5})
    assert [row["row_id"] for row in kept] == [0, 2]
    ((row_id, where, reason),) = report.findings["invalid"].examples
    assert (row_id, where) == (1, "problems.jsonl:2")
    assert reason.startswith("the environment can't take it: DataError: problem: the problem has no answer")


def test_a_prompt_beyond_max_length_is_left_out_and_not_cut(tmp_path: Path) -> None:
    rows = [{"question": "1 + 1", "answer": 2}, {"question": "1 + 1" + " + 0" * 20, "answer": 2}]
    kept, _, report = prepared(dataset=write(tmp_path, rows), row_limits={"untrained": 0.5, "truncated": 0.5})
    assert [row["row_id"] for row in kept] == [0]
    long = len(prompt_ids(rows[1]["question"]))
    assert [reason for _, _, reason in report.findings["truncated"].examples] == [
        f"a prompt of {long} tokens, max_length is 64; left out"
    ]
    assert [reason for _, _, reason in report.findings["untrained"].examples] == [
        "its prompt is longer than max_length"
    ]


def test_the_same_problems_are_the_same_data(tmp_path: Path) -> None:
    rows = [{"question": "1 + 1", "answer": 2}, {"question": "2 + 2", "answer": 4}]
    _, one, _ = prepared(dataset=write(tmp_path, rows))
    _, same, _ = prepared(dataset=write(tmp_path, rows), learning_rate=1.0, pass_at=9)
    assert (one.train.digest, one.key) == (same.train.digest, same.key)
    # What a problem is worth is part of the data, though its prompt is the same.
    _, other, _ = prepared(dataset=write(tmp_path, [rows[0], {**rows[1], "answer": 5}]))
    assert other.train.digest != one.train.digest
