"""`held_out` in all its forms, and the question and answer of a held-out row."""

from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.datasets.prepare import open_raw
from kitchen_resources.datasets.questions import question_of
from kitchen_resources.datasets.renderers import make_renderer
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.errors import ConfigError, DataError
from tests.unit.dataset_rows import chat, examples_of, write_jsonl
from tests.unit.preparing import BASE, END, NEWLINE, START, Pantry, chat_ids, recipe_of


@pytest.fixture
def pantry() -> Pantry:
    return Pantry()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", [chat(f"Q{index}", f"A{index}") for index in range(20)])


def counts(pantry: Pantry, path: Path, held_out: str, **fields: Any) -> tuple[int, int]:
    prepared, report = pantry.prepare(recipe_of(path, held_out=held_out, **fields))
    held = prepared.held_out.rows if prepared.held_out else 0
    assert (report.rows_trained, report.rows_held_out) == (prepared.train.rows, held)
    return prepared.train.rows, held


# A share


@pytest.mark.parametrize(
    ("held_out", "trained", "held"),
    [
        ("0", 20, 0),
        ("0.0", 20, 0),
        ("", 20, 0),
        (" ", 20, 0),
        ("0.1", 18, 2),
        (" 0.25 ", 15, 5),
        (".5", 10, 10),
        ("2e-1", 16, 4),
        ("0.999", 1, 19),
    ],
)
def test_a_share(pantry: Pantry, path: Path, held_out: str, trained: int, held: int) -> None:
    assert counts(pantry, path, held_out) == (trained, held)


@pytest.mark.parametrize("held_out", ["1", "1.5", "-0.1", "nan", "inf", "20"])
def test_what_is_no_share_is_refused(path: Path, held_out: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_raw(recipe_of(path, held_out=held_out), SourceDatasets())
    assert str(refused.value) == (
        f'held_out: must be a share from 0 to below 1, got {held_out}\n  fix: held_out: "0.1"'
    )


def test_one_row_is_not_split(pantry: Pantry, tmp_path: Path) -> None:
    assert counts(pantry, write_jsonl(tmp_path / "one.jsonl", [chat("Q", "A")]), "0.5") == (1, 0)


def test_the_share_is_of_the_rows_that_are_read_and_valid(pantry: Pantry, tmp_path: Path) -> None:
    rows = [*({"messages": "no"} for _ in range(10)), *(chat(f"Q{index}", "A") for index in range(20))]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert counts(pantry, path, "0.2") == (16, 4)
    assert counts(pantry, path, "0.2", max_rows=20) == (8, 2)


def test_held_out_rows_carry_their_question_and_answer(pantry: Pantry, path: Path) -> None:
    prepared, _ = pantry.prepare(recipe_of(path, held_out="0.1"))
    rows = pantry.rows(prepared.held_out)
    assert len(rows) == 2
    for row in rows:
        question, answer = f"Q{row['row_id']}", f"A{row['row_id']}"
        ids, labels = chat_ids(question, answer)
        assert (row["input_ids"], row["labels"]) == (ids, labels)
        assert row["prompt_ids"] == [START, *f"user\n{question}".encode(), END, NEWLINE, START, *b"assistant\n"]
        assert row["prompt_ids"] == ids[: len(row["prompt_ids"])]
        assert (row["expected"], row["where"]) == (answer, f"rows.jsonl:{row['row_id'] + 1}")
    trained = {row["row_id"] for row in pantry.rows(prepared.train)}
    assert trained | {row["row_id"] for row in rows} == set(range(20))


# Another data set


def test_a_file(pantry: Pantry, path: Path, tmp_path: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [chat("X", "Y"), chat("Z", "W")])
    recipe = recipe_of(path, held_out=f" {held} ", max_rows=1)
    prepared, report = pantry.prepare(recipe)
    # `max_rows` is of the training set.
    assert (prepared.train.rows, report.rows_read) == (1, 3)
    assert [(row["where"], row["expected"]) for row in pantry.rows(prepared.held_out)] == [
        ("held.jsonl:1", "Y"),
        ("held.jsonl:2", "W"),
    ]
    assert {name: raw["reference"] for name, raw in prepared.raw.items()} == {
        "train": str(path),
        "held_out": str(held),
    }


def test_a_split_of_the_data_set_and_one_to_train_on(pantry: Pantry, tmp_path: Path) -> None:
    for name, answer in (("train", "T"), ("test", "E"), ("dev", "D")):
        write_jsonl(tmp_path / f"d/{name}.jsonl", [chat(f"Q {name}", answer)])
    for split, held_out, expected in (
        ("train", "split:test", "TE"),
        ("dev", "split:train", "DT"),
        ("test", "split:val", "ED"),
    ):
        prepared, _ = pantry.prepare(recipe_of(tmp_path / "d", split=split, held_out=held_out))
        (trained,), (held,) = pantry.rows(prepared.train), pantry.rows(prepared.held_out)
        assert (trained["input_ids"][-3], held["input_ids"][-3]) == tuple(expected.encode())


def test_columns_are_those_of_both_sets(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"q": "Q", "a": "A"}])
    held = write_jsonl(tmp_path / "held.jsonl", [{"q": "R", "a": "B"}])
    columns = {"prompt": "q", "completion": "a"}
    prepared, _ = pantry.prepare(recipe_of(path, held_out=str(held), columns=columns))
    assert pantry.rows(prepared.held_out)[0]["input_ids"] == chat_ids("R", "B")[0]
    write_jsonl(held, [{"prompt": "R", "completion": "B"}])
    with pytest.raises(
        DataError, match=rf"^dataset {held}: `columns` names 'q' for 'prompt', and the data set has comp"
    ):
        pantry.prepare(recipe_of(path, held_out=str(held), columns=columns))


@pytest.mark.parametrize(
    ("held_out", "said"),
    [
        (
            "10%",
            "held_out: dataset '10%': there is no such file or folder\n"
            '  fix: name a file, a folder, a hub id such as org/name, or embedded:NAME; or a share, held_out: "0.1"',
        ),
        (
            "split:test",
            "held_out: {path}: is one file and has no split 'test'\n"
            '  fix: split: train, or name a folder; or a share, held_out: "0.1"',
        ),
        (
            "split:",
            "held_out: {path}: is one file and has no split ''\n"
            '  fix: split: train, or name a folder; or a share, held_out: "0.1"',
        ),
    ],
)
def test_what_is_not_there_is_said_of_held_out(path: Path, held_out: str, said: str) -> None:
    with pytest.raises(DataError) as refused:
        open_raw(recipe_of(path, held_out=held_out), SourceDatasets())
    assert str(refused.value) == said.format(path=path)


def test_an_empty_held_out_set_is_refused(pantry: Pantry, path: Path, tmp_path: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [])
    with pytest.raises(DataError, match=r"^held_out: held.jsonl: is empty\n"):
        pantry.prepare(recipe_of(path, held_out=str(held)))
    held.write_text("\n")
    with pytest.raises(DataError, match=rf"^dataset {held}: holds no rows\n"):
        pantry.prepare(recipe_of(path, held_out=str(held)))


def test_a_held_out_set_of_which_no_row_is_valid_is_none(pantry: Pantry, path: Path, tmp_path: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [{"messages": "no"}])
    prepared, report = pantry.prepare(recipe_of(path, held_out=str(held)))
    assert (prepared.held_out, report.rows_held_out) == (None, 0)
    assert [where for _, where, _ in report.findings["invalid"].examples] == ["held_out held.jsonl:1"]


# Questions


def question(row: dict[str, Any], template: str | None = None) -> tuple[str, str | None]:
    rendering = make_renderer(recipe_of("x", chat_template=template), BASE)
    (example,) = examples_of(row, conversational=rendering.conversational)
    ids, expected = question_of(example, rendering.renderer)
    return rendering.renderer.tokenizer.decode(ids), expected


def test_the_question_is_all_before_the_last_answer() -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A", "trainable": False},
        {"role": "user", "content": "R"},
        {"role": "assistant", "content": "B", "weight": 0.5},
    ]
    asked = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    asked += "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n"
    assert question({"messages": messages}) == (asked, "B")


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Q"}],
        [{"role": "assistant", "content": "A"}],
        [{"role": "assistant", "content": "A"}, {"role": "user", "content": "Q"}],
        [{"role": "user", "content": "Q"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}],
    ],
)
def test_a_conversation_that_ends_with_no_answer_has_no_question(messages: list[dict[str, Any]]) -> None:
    assert question({"messages": messages}) == ("", None)


def test_questions_of_raw_text() -> None:
    assert question({"prompt": "2+2=", "completion": "4"}, "none") == ("2+2=", "4")
    assert question({"text": "T"}, "none") == ("", None)


def test_the_tools_are_in_the_question(tmp_path: Path) -> None:
    template = tmp_path / "tools.jinja"
    template.write_text(
        "{% for tool in tools or [] %}[{{ tool['name'] }}]{% endfor %}"
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    asked, expected = question({**chat("Q", "A"), "tools": [{"name": "f"}]}, str(template))
    assert (asked, expected) == ("[f]<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n", "A")


def test_rows_without_an_answer_are_held_out_for_their_loss(pantry: Pantry, tmp_path: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [{"text": "whole"}])
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "text"}])
    prepared, _ = pantry.prepare(recipe_of(path, held_out=str(held)))
    (row,) = pantry.rows(prepared.held_out)
    assert (row["prompt_ids"], row["expected"], row["input_ids"]) == ([], None, [*b"whole", END])
