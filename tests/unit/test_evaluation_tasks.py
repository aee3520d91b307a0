"""From a recipe's evaluations to tasks: which rows are asked, in which tokens, and under which key."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from kitchen_resources.digests import digest_file
from kitchen_resources.errors import ConfigError, DataError
from kitchen_resources.evaluation.checkpoints import CheckpointEvaluations
from kitchen_resources.evaluation.port import EvaluationTask
from kitchen_resources.evaluation.tasks import evaluation_key, make_tasks
from kitchen_resources.launch import Launch
from tests.pretending import Pretence, ScriptedEvaluator, write_sums

START, END, PAD = 257, 258, 256


@pytest.fixture
def pretence(tmp_path: Path) -> Pretence:
    return Pretence(write_sums(tmp_path / "rows.jsonl"))


def tasks_of(launch: Launch) -> list[EvaluationTask]:
    return CheckpointEvaluations(launch).tasks


def prompt_of(text: str) -> list[int]:
    """Tokens of a question in ChatML, byte by byte."""
    return [START, *f"user\n{text}".encode(), END, *b"\n", START, *b"assistant\n"]


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat(question: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


# The recipe's own held-out rows.


def test_the_loss_on_held_out_rows_is_always_asked(pretence: Pretence) -> None:
    launch = pretence.launch()
    (task,) = tasks_of(launch)
    held_out = launch.prepared.held_out
    assert held_out is not None
    assert task.scored is not None
    assert digest_file(task.scored) == held_out.blob
    assert pyarrow.parquet.read_table(task.scored).num_rows == held_out.rows == 4
    expected = EvaluationTask(
        name="held_out",
        digest=held_out.digest,
        questions=[],
        scored=task.scored,
        scorer="exact_match",
        scorer_args={},
        max_tokens=128,
        batch_size=64,
        stop_token_ids=task.stop_token_ids,
        stop_strings=task.stop_strings,
        pad_token_id=PAD,
    )
    assert task == expected
    assert list(task.stop_token_ids) == [END]
    assert list(task.stop_strings) == []


def test_without_held_out_rows_nothing_is_asked(pretence: Pretence) -> None:
    evaluations = CheckpointEvaluations(pretence.launch(held_out="0"))
    assert evaluations.tasks == []
    assert not evaluations.asked


def test_answers_on_held_out_rows_come_with_their_loss(pretence: Pretence) -> None:
    launch = pretence.launch(
        evaluations=[{"name": "held_out", "scorer": "numeric", "max_tokens": 7, "batch_size": 3}]
    )
    (task,) = tasks_of(launch)
    assert task.scored is not None
    rows = pyarrow.parquet.read_table(task.scored).to_pylist()
    assert len(rows) == 4
    questions = [(q.where, list(q.prompt_ids), q.expected, q.prompt) for q in task.questions]
    assert questions == [
        (
            row["where"],
            prompt_of(f"{n} + {n}"),
            str(2 * n),
            f"<|im_start|>user\n{n} + {n}<|im_end|>\n<|im_start|>assistant\n",
        )
        for row in rows
        for n in (row["row_id"],)
    ]
    assert [q.where for q in task.questions] == [f"rows.jsonl:{row['row_id'] + 1}" for row in rows]
    assert (task.scorer, task.max_tokens, task.batch_size) == ("numeric", 7, 3)


def test_held_out_rows_under_another_name_are_a_task_of_their_own(pretence: Pretence) -> None:
    launch = pretence.launch(evaluations=[{"name": "sums", "samples": 3}, {"name": "again", "scorer": "contains"}])
    loss, sums, again = tasks_of(launch)
    assert (loss.name, len(loss.questions), loss.scored is not None) == ("held_out", 0, True)
    assert (sums.name, len(sums.questions), sums.scored) == ("sums", 3, None)
    assert (again.name, len(again.questions), again.scored) == ("again", 4, None)
    # The first ones.
    assert sums.questions == again.questions[:3]
    assert loss.digest == sums.digest == again.digest


def test_an_evaluation_of_held_out_rows_needs_some(pretence: Pretence) -> None:
    with pytest.raises(ConfigError) as refused:
        tasks_of(pretence.launch(held_out="0", evaluations=[{"name": "sums"}]))
    assert str(refused.value) == 'evaluations.sums: no rows are held out\n  fix: held_out: "0.1"'


def test_two_evaluations_of_one_name(pretence: Pretence) -> None:
    with pytest.raises(ConfigError) as refused:
        tasks_of(pretence.launch(evaluations=[{"name": "sums"}, {"name": "sums", "samples": 1}]))
    assert str(refused.value) == "evaluations: two evaluations have one name\n  fix: give each its own `name`"


# Other data sets.


def other(pretence: Pretence, tmp_path: Path, *rows: dict[str, Any], **changes: Any) -> EvaluationTask:
    """The task of an evaluation of other rows."""
    path = write(tmp_path / "other.jsonl", *rows)
    launch = pretence.launch(held_out="0", evaluations=[{"name": "other", "dataset": path, **changes}])
    (task,) = tasks_of(launch)
    return task


def test_rows_of_another_data_set(pretence: Pretence, tmp_path: Path) -> None:
    rows = [chat("one?", "1"), chat("two?", "2"), chat("three?", "3")]
    task = other(pretence, tmp_path, *rows, scorer="contains", scorer_args={"case_sensitive": False})
    assert [(q.where, list(q.prompt_ids), q.expected) for q in task.questions] == [
        ("other.jsonl:1", prompt_of("one?"), "1"),
        ("other.jsonl:2", prompt_of("two?"), "2"),
        ("other.jsonl:3", prompt_of("three?"), "3"),
    ]
    assert (task.name, task.scored, task.scorer) == ("other", None, "contains")
    assert task.scorer_args == {"case_sensitive": False}


def test_history_is_part_of_the_question_and_training_marks_are_not(pretence: Pretence, tmp_path: Path) -> None:
    first, second = chat("a", "b")["messages"], chat("c", "d")["messages"]
    marked = {"messages": [{**first[0]}, {**first[1], "trainable": True}, *second]}
    task = other(pretence, tmp_path, marked)
    asked = [START, *b"user\na", END, *b"\n", START, *b"assistant\nb", END, *b"\n"]
    assert list(task.questions[0].prompt_ids) == [*asked, *prompt_of("c")]
    assert task.questions[0].expected == "d"


def test_columns_of_another_data_set(pretence: Pretence, tmp_path: Path) -> None:
    columns = {"prompt": "q", "completion": "a"}
    task = other(pretence, tmp_path, {"q": "one?", "a": "1", "note": "x"}, columns=columns)
    assert [(list(q.prompt_ids), q.expected) for q in task.questions] == [(prompt_of("one?"), "1")]


def test_a_split_of_another_data_set(pretence: Pretence, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", chat("train?", "1"))
    write(folder / "test.jsonl", chat("test?", "2"))
    for split in ("train", "test"):
        evaluation = {"name": "other", "dataset": str(folder), "split": split}
        (task,) = tasks_of(pretence.launch(held_out="0", evaluations=[evaluation]))
        assert list(task.questions[0].prompt_ids) == prompt_of(f"{split}?")


def test_only_so_many_rows_are_read(pretence: Pretence, tmp_path: Path) -> None:
    rows = [chat(f"{n}?", str(n)) for n in range(5)]
    task = other(pretence, tmp_path, *rows, {"messages": "broken"}, samples=3)
    assert [q.expected for q in task.questions] == ["0", "1", "2"]


def test_rows_without_a_question_or_an_answer_are_passed_over(pretence: Pretence, tmp_path: Path) -> None:
    task_only = {"messages": [{"role": "user", "content": "no answer"}]}
    said_only = {"messages": [{"role": "assistant", "content": "no question"}]}
    task = other(pretence, tmp_path, chat("one?", "1"), task_only, said_only, chat("two?", "2"), samples=2)
    assert [(q.where, q.expected) for q in task.questions] == [("other.jsonl:1", "1"), ("other.jsonl:4", "2")]


def test_a_raw_prompt_of_no_token_asks_nothing(pretence: Pretence, tmp_path: Path) -> None:
    rows = [{"prompt": "", "completion": "x"}, {"prompt": "a", "completion": "b"}]
    path = write(tmp_path / "other.jsonl", *rows)
    evaluation = {"name": "other", "dataset": path}
    launch = pretence.launch(chat_template="none", held_out=path, evaluations=[evaluation, {"name": "held_out"}])
    for task in tasks_of(launch):
        assert [(list(q.prompt_ids), q.expected) for q in task.questions] == [([97], "b")]
    assert [task.name for task in tasks_of(launch)] == ["other", "held_out"]


def test_rows_without_any_answer_are_refused(pretence: Pretence, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        other(pretence, tmp_path, {"text": "one"}, {"text": "two"})
    assert str(refused.value) == (
        "evaluations.other: none of its rows has a question, and an answer to compare with\n"
        "  fix: give it rows whose last message is the assistant's"
    )


def test_a_row_that_cannot_be_asked_is_named(pretence: Pretence, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        other(pretence, tmp_path, chat("one?", "1"), {"messages": [{"role": "robot", "content": "x"}]})
    assert str(refused.value).startswith("evaluations.other: row 1 (other.jsonl:2): ")
    assert "robot" in str(refused.value)


def test_unknown_columns_are_refused(pretence: Pretence, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its columns are a, q, which is no known shape") as refused:
        other(pretence, tmp_path, {"q": "one?", "a": "1"})
    assert refused.value.where.startswith("dataset ")


def test_a_missing_data_set(pretence: Pretence, tmp_path: Path) -> None:
    evaluation = {"name": "other", "dataset": str(tmp_path / "missing.jsonl")}
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        tasks_of(pretence.launch(held_out="0", evaluations=[evaluation]))


# The key of what is asked.


def key_of(launch: Launch) -> str:
    return CheckpointEvaluations(launch).key


SUMS = {"name": "sums", "samples": 3}


@pytest.mark.parametrize(
    "changed",
    [
        {"evaluations": [{**SUMS, "name": "others"}]},
        {"evaluations": [{**SUMS, "samples": 2}]},
        {"evaluations": [{**SUMS, "scorer": "contains"}]},
        {"evaluations": [{**SUMS, "scorer_args": {"case_sensitive": False}}]},
        {"evaluations": [{**SUMS, "max_tokens": 64}]},
        {"evaluations": [SUMS, {"name": "more"}]},
        {"evaluations": []},
        {"held_out": "0.25"},
        {"seed": 1},
        {"chat_template": "role_colon"},
    ],
    ids=lambda changed: json.dumps(changed),
)
def test_what_is_asked_moves_the_key(pretence: Pretence, changed: dict[str, Any]) -> None:
    assert key_of(pretence.launch(evaluations=[SUMS])) != key_of(
        pretence.launch(**{"evaluations": [SUMS], **changed})
    )


@pytest.mark.parametrize(
    "changed",
    [{"evaluations": [{**SUMS, "batch_size": 1}]}, {"learning_rate": 1.0}, {"epochs": 7}, {"select": "best"}],
    ids=lambda changed: json.dumps(changed),
)
def test_how_it_is_asked_doesnt(pretence: Pretence, changed: dict[str, Any]) -> None:
    assert key_of(pretence.launch(evaluations=[SUMS])) == key_of(
        pretence.launch(**{"evaluations": [SUMS], **changed})
    )


def test_what_another_evaluator_finds_is_kept_apart(pretence: Pretence) -> None:
    others = replace(pretence, evaluator=ScriptedEvaluator(name="other"))
    assert key_of(pretence.launch()) != key_of(others.launch())


@pytest.mark.parametrize("part", ["rows", "columns", "template"])
def test_what_is_asked_of_another_data_set_moves_the_key(pretence: Pretence, tmp_path: Path, part: str) -> None:
    rows = [{"prompt": "one?", "completion": "1", "q": "eins?"}]
    first = other(pretence, tmp_path, *rows)
    if part == "rows":
        second = other(pretence, tmp_path, *rows, {"prompt": "two?", "completion": "2", "q": "zwei?"}, samples=1)
    elif part == "columns":
        second = other(pretence, tmp_path, *rows, columns={"prompt": "q", "completion": "completion"})
    else:
        launch = pretence.launch(
            held_out="0",
            chat_template="role_colon",
            evaluations=[{"name": "other", "dataset": str(tmp_path / "other.jsonl")}],
        )
        (second,) = tasks_of(launch)
    assert evaluation_key([first], "local") != evaluation_key([second], "local")


def test_the_same_file_elsewhere_is_the_same_question(pretence: Pretence, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tasks = [other(pretence, tmp_path / folder, chat("one?", "1")) for folder in ("a", "b")]
    assert evaluation_key([tasks[0]], "local") == evaluation_key([tasks[1]], "local")


def test_tasks_are_made_from_stored_rows(pretence: Pretence, tmp_path: Path) -> None:
    """Another process, or another machine, makes the same tasks from the store alone."""
    launch = pretence.launch(evaluations=[SUMS])
    made = [make_tasks(launch, tmp_path / folder) for folder in ("first", "second")]
    assert [task.spec() for task in made[0]] == [task.spec() for task in made[1]]
    assert made[0][0].scored != made[1][0].scored
