"""Prepared rows as lines for a service that renders them itself."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from kitchen_resources.datasets.port import LocalDataset
from kitchen_resources.errors import DataError
from kitchen_resources.training.hosted.rows import chat_line, write_lines

TALK: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be short.", "name": None},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]


def weights(train_on: str, talk: list[dict[str, Any]] = TALK) -> list[int | None]:
    return [message.get("weight") for message in chat_line({"messages": talk}, train_on)["messages"]]


def test_answers_have_a_weight_and_nothing_else_has() -> None:
    assert weights("last_assistant_message") == [None, None, 0, None, 1]
    assert weights("all_assistant_messages") == [None, None, 1, None, 1]


def test_ones_own_choice_of_answers() -> None:
    chosen = [{**message, "trainable": place == 2} for place, message in enumerate(TALK)]
    assert weights("customized", chosen) == [None, None, 1, None, 0]
    weighed = [{**message, "weight": 1.0 if place == 4 else 0} for place, message in enumerate(TALK)]
    assert weights("customized", weighed) == [None, None, 0, None, 1]


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ({"role": "user", "content": "Hi", "trainable": True}, r"message 0 \(user\) is trained"),
        ({"role": "assistant", "content": "Hi", "weight": 0.5}, "message 0 has the weight 0.5"),
    ],
)
def test_what_a_line_cannot_say_is_refused(message: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what):
        chat_line({"messages": [message]}, "customized")


def test_messages_lose_what_is_the_kitchens_and_keep_what_is_the_models() -> None:
    line = chat_line({"messages": TALK, "tools": [{"type": "function"}]}, "last_assistant_message")
    assert line["messages"][0] == {"role": "system", "content": "Be short."}
    assert line["tools"] == [{"type": "function"}]


def test_pairs() -> None:
    asked, better, worse = (
        TALK[1:2],
        [{"role": "assistant", "content": "Hello"}],
        [{"role": "assistant", "content": "?"}],
    )
    line = chat_line({"prompt": asked, "chosen": better, "rejected": worse}, "")
    assert line == {"input": {"messages": asked}, "preferred_output": better, "non_preferred_output": worse}


@pytest.mark.parametrize(
    "example", [{"text": "x"}, {"prompt": "x", "completion": "y"}, {"prompt": "x", "chosen": "y", "rejected": "z"}]
)
def test_raw_text_is_refused(example: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="is raw text"):
        chat_line(example, "last_assistant_message")


def test_the_rows_of_a_file_are_lines_in_their_order_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    def data(examples: list[dict[str, Any]]) -> LocalDataset:
        path = tmp_path / f"{len(examples)}.parquet"
        table = pyarrow.table(
            {"row_id": [10 + place for place in range(len(examples))], "example": [json.dumps(e) for e in examples]}
        )
        pyarrow.parquet.write_table(table, path)
        return LocalDataset(path=path, rows=len(examples), packed=False, pad_token_id=0)

    write_lines(
        data([{"messages": TALK}, {"messages": TALK[:3]}]), "last_assistant_message", tmp_path / "a" / "rows.jsonl"
    )
    lines = [json.loads(line) for line in (tmp_path / "a" / "rows.jsonl").read_text().splitlines()]
    assert [len(line["messages"]) for line in lines] == [5, 3]
    with pytest.raises(DataError, match="row 12"):
        write_lines(data([{"messages": TALK}, {"messages": TALK}, {"text": "x"}]), "customized", tmp_path / "b.jsonl")
