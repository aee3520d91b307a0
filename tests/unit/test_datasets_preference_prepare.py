"""Pairs from end to end: the Parquet columns and digest, samples, disjoint splits, and what moves their identity."""

import hashlib
import json
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest

from kitchen_resources.datasets.prepare import fetch_split, fetch_training_rows
from kitchen_resources.embedded.tokenizer import chat_template
from kitchen_resources.errors import ConfigError, DataError
from tests.unit.dataset_rows import chat, write_jsonl
from tests.unit.preference_rows import BAD, GOOD, Q, asked_ids, found, pair, preferring, prepare, said_ids
from tests.unit.preparing import END, PAD, Pantry, recipe_of

ASKED = len(asked_ids("Q"))


@pytest.fixture
def pantry() -> Pantry:
    return Pantry()


def digest_of(*rows: tuple[list[int], list[int], list[int]]) -> str:
    """What the digest of prepared pairs is by its definition: of each list its length, and its ids as int32."""
    hasher = hashlib.sha256()
    for lists in rows:
        for ids in lists:
            hasher.update(len(ids).to_bytes(8, "little") + numpy.asarray(ids, "<i4").tobytes())
    return hasher.hexdigest()


# What is written


def test_pairs_as_prepared_rows(pantry: Pantry, tmp_path: Path) -> None:
    rows = [pair("Q", "good", "no"), pair([Q], [{**GOOD, "content": "größe"}], [Q, BAD])]
    prepared, report = prepare(pantry, tmp_path, rows)
    ids = [
        (asked_ids("Q"), said_ids(chosen), said_ids(other)) for chosen, other in (("good", "no"), ("größe", "bad"))
    ]
    question = '{"prompt": [{"role": "user", "content": "Q"}], '
    assert pantry.rows(prepared.train) == [
        {
            "row_id": 0,
            "where": "rows.jsonl:1",
            "prompt_ids": ids[0][0],
            "chosen_ids": ids[0][1],
            "rejected_ids": ids[0][2],
            "example": question
            + '"chosen": [{"role": "assistant", "content": "good"}], "rejected": [{"role": "assistant", "content": "no"}]}',
        },
        {
            "row_id": 1,
            "where": "rows.jsonl:2",
            "prompt_ids": ids[1][0],
            "chosen_ids": ids[1][1],
            "rejected_ids": ids[1][2],
            "example": question
            + '"chosen": [{"role": "assistant", "content": "größe"}], "rejected": [{"role": "assistant", "content": "bad"}]}',
        },
    ]
    learned = [5 + 3, 8 + 4]
    assert (prepared.train.rows, prepared.train.tokens) == (2, 2 * ASKED + sum(learned))
    assert prepared.train.trained_tokens == sum(learned)
    assert prepared.train.digest == digest_of(*ids)
    assert (prepared.held_out, prepared.packs, prepared.trained, prepared.fractional) == (
        None,
        None,
        prepared.train,
        "",
    )
    assert (prepared.pad_token_id, prepared.stop_token_ids) == (PAD, (END,))
    assert (report.shape, report.rows_read, report.rows_trained) == ("preference", 2, 2)
    assert (report.tokens, report.trained_tokens) == (prepared.train.tokens, prepared.train.trained_tokens)
    # A length is that of the longer side with its prompt.
    assert (report.longest, report.lengths) == (ASKED + 8, {32: 2})
    assert found(report) == {}


def test_the_schema_of_the_file_is_that_of_held_out_rows_too(pantry: Pantry, tmp_path: Path) -> None:
    prepared, _ = prepare(pantry, tmp_path, [pair(f"Q{index}", "good", "bad") for index in range(4)], held_out="0.5")
    ids = pyarrow.list_(pyarrow.int32())
    for split in (prepared.train, prepared.held_out):
        file = fetch_split(pantry.content, split, tmp_path / f"{split.blob}.parquet")
        schema = pyarrow.parquet.read_schema(file)
        assert list(zip(schema.names, schema.types, strict=True)) == [
            ("row_id", pyarrow.int64()),
            ("where", pyarrow.string()),
            ("prompt_ids", ids),
            ("chosen_ids", ids),
            ("rejected_ids", ids),
            ("example", pyarrow.string()),
        ]
    local = fetch_training_rows(pantry.content, prepared, tmp_path / "train.parquet")
    assert (local.rows, local.packed, local.digest) == (2, False, prepared.train.digest)


def test_what_is_written_is_read_as_the_same_pairs(pantry: Pantry, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    template = tmp_path / "tools.jinja"
    template.write_text("{{ tools | tojson if tools else '' }}" + chat_template())
    rows = [pair("Q", "good", "bad", system="S", tools=[tool]), pair([Q], [GOOD], [BAD])]
    first, report = prepare(pantry, tmp_path, rows, chat_template=str(template))
    assert found(report) == {}
    written = [json.loads(row["example"]) for row in pantry.rows(first.train)]
    assert written[0]["tools"] == [tool]
    again, _ = prepare(pantry, tmp_path, written, chat_template=str(template))
    assert again.train.digest == first.train.digest


def test_raw_pairs_as_prepared_rows(pantry: Pantry, tmp_path: Path) -> None:
    rows = [pair("2+2=", "4", "five"), pair("3+3=", "6", "7")]
    prepared, report = prepare(pantry, tmp_path, rows, chat_template="none")
    first, _ = pantry.rows(prepared.train)
    assert (first["prompt_ids"], first["chosen_ids"]) == ([*b"2+2="], [ord("4"), END])
    assert (first["rejected_ids"], prepared.train.trained_tokens) == ([*b"five", END], 2 + 5 + 2 + 2)
    assert first["example"] == '{"prompt": "2+2=", "chosen": "4", "rejected": "five"}'
    assert report.samples[0] == {"row_id": 0, "prompt": "2+2=", "chosen": "4<|im_end|>", "rejected": "five<|im_end|>"}


def test_raw_pairs_without_a_prompt(pantry: Pantry, tmp_path: Path) -> None:
    rows = [
        {"chosen": "ab", "rejected": "a"},
        {"chosen": "<|im_end|>", "rejected": "b"},
        {"chosen": "c", "rejected": "d"},
    ]
    prepared, report = prepare(pantry, tmp_path, rows, chat_template="none")
    assert [row["row_id"] for row in pantry.rows(prepared.train)] == [0, 2]
    # The first token of an answer follows on nothing, so it isn't learned.
    assert (prepared.train.tokens, prepared.train.trained_tokens) == (3 + 2 + 2 + 2, 2 + 1 + 1 + 1)
    assert found(report) == {"untrained": {1: "an answer of one token after no prompt, which nothing predicts"}}


def test_samples_show_prompt_chosen_and_rejected(pantry: Pantry, tmp_path: Path) -> None:
    rows = [pair("Q", "same", "same"), *(pair(f"Q{index}", f"A{index}", "bad") for index in range(5))]
    _, report = prepare(pantry, tmp_path, rows)
    assert report.samples == [
        {
            "row_id": index + 1,
            "prompt": f"<|im_start|>user\nQ{index}<|im_end|>\n<|im_start|>assistant\n",
            "chosen": f"A{index}<|im_end|>",
            "rejected": "bad<|im_end|>",
        }
        for index in range(3)
    ]


# Splits


def test_no_prompt_is_on_both_sides(pantry: Pantry, tmp_path: Path) -> None:
    rows = [pair(f"Q{index % 12}", f"good {index}", "bad") for index in range(60)]
    prepared, report = prepare(pantry, tmp_path, rows, held_out="0.25", row_limits={})
    sides = [
        {tuple(row["prompt_ids"]) for row in pantry.rows(split)} for split in (prepared.train, prepared.held_out)
    ]
    assert [len(side) for side in sides] == [9, 3]
    assert not sides[0] & sides[1]
    assert (prepared.train.rows, prepared.held_out.rows, report.rows_held_out) == (45, 15, 15)


def test_a_held_out_prompt_that_is_also_trained_on_is_found(pantry: Pantry, tmp_path: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [pair("Q", "x", "y"), pair("R", "x", "y")])
    prepared, report = prepare(pantry, tmp_path, [pair("Q", "a", "b")], held_out=str(held))
    assert found(report) == {"overlap": {0: "its prompt is also in the training rows"}}
    assert prepared.held_out.digest == digest_of(*((asked_ids(q), said_ids("x"), said_ids("y")) for q in "QR"))


def test_raw_pairs_without_a_prompt_are_told_apart_by_their_answers(pantry: Pantry, tmp_path: Path) -> None:
    rows = [{"chosen": f"good {index}", "rejected": "bad"} for index in range(8)]
    turned = [{"chosen": "bad", "rejected": f"good {index}"} for index in range(8)]
    prepared, _ = prepare(pantry, tmp_path, rows + turned, held_out="0.25", chat_template="none", row_limits={})
    held = {row["row_id"] % 8 for row in pantry.rows(prepared.held_out)}
    assert (prepared.held_out.rows, len(held)) == (4, 2)
    assert held.isdisjoint(row["row_id"] % 8 for row in pantry.rows(prepared.train))


# Identity, and what is refused


def test_what_moves_the_digest_of_pairs(pantry: Pantry, tmp_path: Path) -> None:
    rows = [pair("Q", "good", "bad"), pair("R", "better", "worse")]
    base, _ = prepare(pantry, tmp_path, rows)
    alike = [{"q": "Q", "a": "good", "b": "bad"}, {"q": "R", "a": "better", "b": "worse"}]
    columns = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert prepare(pantry, tmp_path, alike, columns=columns)[0].train.digest == base.train.digest
    turned = [pair("Q", "bad", "good"), rows[1]]
    moved = [
        prepare(pantry, tmp_path, given, **fields)[0].train.digest
        for given, fields in (
            (turned, {}),
            (rows[::-1], {}),
            (rows, {"max_length": ASKED + 4}),
            (rows, {"chat_template": "role_colon"}),
        )
    ]
    assert len({base.train.digest, *moved}) == 5
    assert prepare(pantry, tmp_path, rows, beta=0.5)[0] == base


def test_the_method_moves_the_key(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{**chat("Q", "A"), **pair("Q", "good", "bad")}])
    learned, _ = pantry.prepare(recipe_of(path))
    compared, _ = pantry.prepare(preferring(path))  # type: ignore[arg-type]
    assert learned.key != compared.key
    assert (set(pantry.rows(learned.train)[0]) - {"row_id", "where", "example"}) == {"input_ids", "labels"}


def test_columns_of_the_other_method_are_refused_by_name(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [pair("Q", "good", "bad")])
    with pytest.raises(
        DataError, match="pairs of answers to compare, and not rows to learn\n  fix: workflow: preference"
    ):
        pantry.prepare(recipe_of(path))
    with pytest.raises(DataError, match="its columns are messages, which are no pairs of answers"):
        prepare(pantry, tmp_path, [chat("Q", "A")])


def test_conversations_without_a_chat_template_are_refused(pantry: Pantry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model has no chat template, and the data set holds conversations"):
        prepare(pantry, tmp_path, [{"chosen": [Q, GOOD], "rejected": [Q, BAD]}], chat_template="none")
    assert list(pantry.blobs.scratch().iterdir()) == []


def test_more_pairs_than_a_row_group_keep_their_order(pantry: Pantry, tmp_path: Path) -> None:
    rows = [pair(f"{index:04}", "a", "b") for index in range(1005)]
    prepared, report = prepare(pantry, tmp_path, rows, chat_template="none")
    written = pantry.rows(prepared.train)
    assert [bytes(row["prompt_ids"]) for row in written] == [b"%04d" % index for index in range(1005)]
    assert (report.pairs["pairs"], report.pairs["longer_accuracy"]) == (1005, 0.5)
