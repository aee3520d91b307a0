"""A teacher's answers in the place of those of the rows: which rows get one, and which are left out, and why."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.datasets.port import Example
from kitchen_resources.datasets.prepare import fetch_split
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.training.teacher_answers import ModelAnswers
from tests.rail import launch_of
from tests.unit.preparing import END

pytestmark = pytest.mark.heavy


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[int]]]:
    """Let the teacher answer what a test says; gives the list of the prompts that it is asked."""

    def answer(*texts: str) -> list[list[int]]:
        asked: list[list[int]] = []

        def sample(prompts: Sequence[list[int]]) -> list[list[int]]:
            asked.extend(prompts)
            return [
                list(text.removesuffix("…").encode()) + ([] if text.endswith("…") else [END])
                for text in texts[len(asked) - len(prompts) : len(asked)]
            ]

        monkeypatch.setattr(ModelAnswers, "_sampler", lambda self, renderer: sample)
        return asked

    return answer


def launch(**fields: Any) -> Launch:
    return launch_of(DistillationRecipe, mode="sequence", max_rows=4, **fields)


def rows_of(launch: Launch, split: str) -> list[dict[str, Any]]:
    import pyarrow.parquet

    found = getattr(launch.prepared, split)
    path = fetch_split(ContentStore(launch.ports.blobs), found, launch.cache / f"{split}.parquet")
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def learned(row: dict[str, Any]) -> str:
    """The text of the tokens that a row trains, without the end of the turn."""
    ids = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert ids[-1] == END
    return bytes(ids[:-1]).decode()


def test_the_student_learns_what_the_teacher_writes(answering: Callable[..., list[list[int]]]) -> None:
    asked = answering("one", "two", "three", "four")
    mine = launch()
    rows = rows_of(mine, "train")
    assert [learned(row) for row in rows] == ["one", "two", "three", "four"]
    assert len(asked) == 4
    for row, prompt in zip(rows, asked, strict=True):
        assert row["input_ids"][: len(prompt)] == prompt


def test_answers_that_can_not_be_learned_are_findings(answering: Callable[..., list[list[int]]]) -> None:
    answering("one", " \n", "three…", "four")
    mine = launch(max_tokens=5)
    prepared, report = mine.prepare()
    assert prepared.train.rows == 2
    untrained = report.findings["untrained"]
    assert (untrained.count, untrained.of) == (2, 4)
    assert [(row_id, reason) for row_id, _, reason in untrained.examples] == [
        (1, "the teacher's answer is empty"),
        (2, "the teacher's answer isn't over after max_tokens 5"),
    ]
    assert "untrained" in report.exceeded(mine.recipe.row_limits)


def test_held_out_rows_keep_the_answers_that_they_came_with(answering: Callable[..., list[list[int]]]) -> None:
    asked = answering("mine", "mine")
    mine = launch(held_out="0.5")
    kept = {learned(row) for row in rows_of(mine, "held_out")}
    assert {learned(row) for row in rows_of(mine, "train")} == {"mine"}
    assert len(asked) == 2
    assert len(kept) == 2
    assert all(len(answer) == len("1987-03-14") for answer in kept)


def test_what_makes_other_answers_makes_other_data(answering: Callable[..., list[list[int]]]) -> None:
    answering(*["one"] * 40)

    def key(**fields: Any) -> str:
        return launch(**fields).prepared.key

    same = {key(), key(alpha=0.1), key(learning_rate=1.0)}
    assert len(same) == 1
    sampled = [key(max_tokens=9), key(temperature=0.0), key(temperature=0.5), key(seed=3)]
    assert len({*same, *sampled}) == 5
    # A greedy answer has no chance in it, and so no seed.
    greedy = [
        ModelAnswers(made.recipe, made.models["teacher"], made.resolution).identity()  # type: ignore[arg-type]
        for made in (launch(temperature=0.0), launch(temperature=0.0, seed=3))
    ]
    assert greedy[0] == greedy[1]
    assert greedy[0]["seed"] is None
    other = replace(launch().models["teacher"], digest="0" * 64)
    mine = launch()
    assert ModelAnswers(mine.recipe, other, mine.resolution).identity()["model"] == "0" * 64  # type: ignore[arg-type]


def test_rows_without_a_question_are_left_out(answering: Callable[..., list[list[int]]]) -> None:
    asked = answering("one")
    mine = launch()
    rows = [
        Example(0, "rows:1", "messages", messages=({"role": "assistant", "content": "unasked"},)),
        Example(
            1,
            "rows:2",
            "messages",
            messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
        ),
    ]
    teacher = ModelAnswers(mine.recipe, mine.models["teacher"], mine.resolution)  # type: ignore[arg-type]
    left_out, answered = list(teacher.rewrite(rows))
    assert left_out == (rows[0], "it asks nothing that the teacher could answer")
    assert isinstance(answered, Example)
    assert answered.messages[-1] == {"role": "assistant", "content": "one"}
    assert len(asked) == 1
