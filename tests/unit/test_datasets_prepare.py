"""Preparing from end to end: the Parquet columns and values, findings, limits, and one preparation for all."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest

from kitchen_resources.datasets.prepare import (
    fetch_split,
    fetch_training_rows,
    open_raw,
    prepared_from_json,
    read_report,
)
from kitchen_resources.datasets.renderers import make_renderer
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.digests import digest_file, digest_json
from kitchen_resources.embedded.tokenizer import chat_template
from kitchen_resources.errors import CheckpointError, ConfigError, DataError
from tests.unit.dataset_rows import chat, write_jsonl
from tests.unit.preparing import BASE, END, PAD, Pantry, chat_ids, recipe_of

ACCEPT_ALL = dict.fromkeys(("invalid", "untrained", "truncated", "duplicates", "overlap"), 1.0)


@pytest.fixture
def pantry() -> Pantry:
    return Pantry()


def digest_of(*rows: tuple[list[int], list[int]]) -> str:
    """What the digest of prepared rows is by its definition: length, ids as int32, weights as float32."""
    hasher = hashlib.sha256()
    for ids, labels in rows:
        weights = [float(label != -100) for label in labels]
        hasher.update(len(ids).to_bytes(8, "little"))
        hasher.update(numpy.asarray(ids, "<i4").tobytes() + numpy.asarray(weights, "<f4").tobytes())
    return hasher.hexdigest()


def recorded(verb: Callable[..., Any], asked: list[str]) -> Callable[..., Any]:
    def call(*args: object, **kwargs: object) -> Any:
        asked.append(verb.__name__)
        return verb(*args, **kwargs)

    return call


def refusal(pantry: Pantry, path: Path, **fields: Any) -> str:
    with pytest.raises(DataError) as refused:
        pantry.prepare(recipe_of(path, **fields))
    return str(refused.value)


# What is written


def test_conversations_as_prepared_rows(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [chat("Q", "A"), chat("größe?", "XL")])
    prepared, report = pantry.prepare(recipe_of(path))
    (first, first_labels), (second, second_labels) = chat_ids("Q", "A"), chat_ids("größe?", "XL")
    assert pantry.rows(prepared.train) == [
        {
            "row_id": 0,
            "where": "rows.jsonl:1",
            "input_ids": first,
            "labels": first_labels,
            "example": '{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}',
        },
        {
            "row_id": 1,
            "where": "rows.jsonl:2",
            "input_ids": second,
            "labels": second_labels,
            "example": '{"messages": [{"role": "user", "content": "größe?"}, {"role": "assistant", "content": "XL"}]}',
        },
    ]
    tokens = len(first) + len(second)
    assert (prepared.train.rows, prepared.train.tokens, prepared.train.trained_tokens) == (2, tokens, 5)
    assert prepared.train.digest == digest_of((first, first_labels), (second, second_labels))
    assert (prepared.held_out, prepared.packs, prepared.trained) == (None, None, prepared.train)
    assert (prepared.pad_token_id, prepared.stop_token_ids, prepared.simulated) == (PAD, (END,), True)
    assert (report.shape, report.rows_read, report.rows_trained, report.rows_held_out) == ("messages", 2, 2, 0)
    assert (report.tokens, report.trained_tokens, report.cut_tokens) == (tokens, 5, 0)
    assert (report.longest, report.lengths) == (len(second), {32: 2})
    counts = {kind: (finding.count, finding.of) for kind, finding in report.findings.items()}
    assert counts == {**dict.fromkeys(ACCEPT_ALL, (0, 2)), "overlap": (0, 0)}


def test_raw_pairs_as_prepared_rows(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "2+2=", "completion": "4"}])
    prepared, report = pantry.prepare(recipe_of(path, chat_template="none"))
    assert pantry.rows(prepared.train) == [
        {
            "row_id": 0,
            "where": "rows.jsonl:1",
            "input_ids": [*b"2+2=4", END],
            "labels": [-100, -100, -100, -100, ord("4"), END],
            "example": '{"prompt": "2+2=", "completion": "4"}',
        }
    ]
    assert report.shape == "prompt_completion"
    assert report.samples == [{"row_id": 0, "text": "2+2=4<|im_end|>", "learned": "4<|im_end|>"}]


def test_text_as_prepared_rows(pantry: Pantry, tmp_path: Path) -> None:
    prepared, report = pantry.prepare(recipe_of(write_jsonl(tmp_path / "rows.jsonl", [{"text": "abc"}])))
    (row,) = pantry.rows(prepared.train)
    assert (row["input_ids"], row["labels"]) == ([*b"abc", END], [-100, *b"bc", END])
    assert (row["example"], report.shape) == ('{"text": "abc"}', "text")


def test_weights_are_kept_where_they_may_be_fractional(pantry: Pantry, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "Q", "trainable": False},
        {"role": "assistant", "content": "A", "weight": 0.25},
        {"role": "user", "content": "R", "weight": 0},
        {"role": "assistant", "content": "B", "trainable": True},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": messages}])
    prepared, _ = pantry.prepare(recipe_of(path, train_on="customized"))
    (row,) = pantry.rows(prepared.train)
    ids, _ = chat_ids("Q", "A")
    more, _ = chat_ids("R", "B")
    weights = [0.0] * (len(ids) - 3) + [0.25, 0.25, 0.0] + [0.0] * (len(more) - 3) + [1.0, 1.0, 0.0]
    assert (row["input_ids"], row["weights"]) == ([*ids, *more], weights)
    assert row["labels"] == [
        token if weight else -100 for token, weight in zip(row["input_ids"], weights, strict=True)
    ]
    assert prepared.train.trained_tokens == 4
    halved, _ = pantry.prepare(
        recipe_of(
            write_jsonl(path, [{"messages": [*messages[:3], {**messages[3], "trainable": None, "weight": 0.5}]}]),
            train_on="customized",
        )
    )
    assert halved.train.digest != prepared.train.digest
    assert pantry.rows(halved.train)[0]["labels"] == row["labels"]


def test_the_schema_of_the_file(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [chat(f"Q{index}", "A") for index in range(4)])
    prepared, _ = pantry.prepare(recipe_of(path, held_out="0.5"))
    ids = pyarrow.list_(pyarrow.int32())
    trained = {
        "row_id": pyarrow.int64(),
        "where": pyarrow.string(),
        "input_ids": ids,
        "labels": ids,
        "example": pyarrow.string(),
    }
    assert prepared.held_out is not None
    for split, columns in (
        (prepared.train, trained),
        (prepared.held_out, {**trained, "prompt_ids": ids, "expected": pyarrow.string()}),
    ):
        file = tmp_path / f"{split.blob}.parquet"
        schema = pyarrow.parquet.read_schema(fetch_split(pantry.content, split, file))
        assert dict(zip(schema.names, schema.types, strict=True)) == columns


def test_tools_are_rendered_and_kept(pantry: Pantry, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    row = {**chat("Q", "A"), "tools": [tool]}
    template = tmp_path / "tools.jinja"
    template.write_text("{{ tools | tojson if tools else '' }}" + chat_template())
    path = write_jsonl(tmp_path / "rows.jsonl", [row, chat("Q", "A")])
    prepared, _ = pantry.prepare(recipe_of(path, chat_template=str(template)))
    first, second = pantry.rows(prepared.train)
    assert json.loads(first["example"]) == row
    assert first["input_ids"] == [*json.dumps([tool]).encode(), *chat_ids("Q", "A")[0]]
    assert second["input_ids"] == chat_ids("Q", "A")[0]
    _, report = pantry.prepare(recipe_of(path))
    assert report.findings["invalid"].examples == [
        (0, "rows.jsonl:1", "the tool 'f' is not in what the template writes")
    ]


def test_samples_are_the_first_training_rows(pantry: Pantry, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "oops", "content": "x"}]}, *(chat(f"Q{index}", f"A{index}") for index in range(5))]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    _, report = pantry.prepare(recipe_of(path, row_limits={"invalid": 1.0}))
    assert report.samples == [
        {
            "row_id": index + 1,
            "text": f"<|im_start|>user\nQ{index}<|im_end|>\n<|im_start|>assistant\nA{index}<|im_end|>\n",
            "learned": f"A{index}<|im_end|>",
        }
        for index in range(3)
    ]


def test_more_rows_than_a_row_group_keep_their_order(pantry: Pantry, tmp_path: Path) -> None:
    rows = [{"text": f"{index:04}"} for index in range(2003)]
    prepared, report = pantry.prepare(recipe_of(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert [row["row_id"] for row in pantry.rows(prepared.train)] == list(range(2003))
    assert bytes(pantry.rows(prepared.train)[2002]["input_ids"][:4]) == b"2002"
    assert (prepared.train.rows, report.tokens) == (2003, 2003 * 5)


def test_max_rows_reads_no_further(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [chat("Q", "A"), chat("R", "B")])
    path.write_text(path.read_text() + "{")
    prepared, report = pantry.prepare(recipe_of(path, max_rows=2))
    assert [row["row_id"] for row in pantry.rows(prepared.train)] == [0, 1]
    assert report.rows_read == 2
    assert refusal(pantry, path, max_rows=3).startswith("rows.jsonl:3: line 3 is not valid JSON: ")


# What is refused


def test_a_malformed_line_leaves_nothing_behind(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [chat(f"Q{index}", "A") for index in range(16)])
    path.write_text(path.read_text() + '{"messages": oops}\n')
    assert refusal(pantry, path).startswith(
        "rows.jsonl:17: line 17 is not valid JSON: Expecting value at column 14\n"
    )
    assert list(pantry.blobs.list("")) == []
    assert list(pantry.blobs.scratch().iterdir()) == []


@pytest.mark.parametrize("data", ["\n \n", "\n"])
def test_a_file_of_blank_lines_is_refused(pantry: Pantry, tmp_path: Path, data: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(data)
    assert refusal(pantry, path) == f"dataset {path}: holds no rows\n  fix: write at least one row to it"


def test_unknown_columns_are_refused(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "Q", "answer": "A"}])
    said = refusal(pantry, path)
    assert said.startswith(f"dataset {path}: its columns are answer, question, which is no known shape (messages; ")
    assert said.endswith("\n  fix: columns: {prompt: question, completion: answer}")
    prepared, _ = pantry.prepare(recipe_of(path, columns={"prompt": "question", "completion": "answer"}))
    assert pantry.rows(prepared.train)[0]["input_ids"] == chat_ids("Q", "A")[0]


@pytest.mark.parametrize("row", [chat("Q", "A"), {"prompt": [{"role": "user", "content": "Q"}], "completion": "A"}])
def test_conversations_without_a_chat_template_are_refused(pantry: Pantry, tmp_path: Path, row: Any) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ConfigError) as refused:
        pantry.prepare(recipe_of(path, chat_template="none"))
    assert str(refused.value) == (
        "chat_template: the model has no chat template, and the data set holds conversations\n"
        "  fix: chat_template: chatml (or llama3, role_colon, or a path that ends in .jinja)"
    )
    assert list(pantry.blobs.scratch().iterdir()) == []


def test_rows_that_all_are_invalid_are_refused_by_name(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": [{"role": "bot", "content": "x"}]}] * 2)
    assert refusal(pantry, path, held_out="0.5") == (
        f"dataset {path}: invalid: 2 of 2 rows (100.00%, limit 0.00%): wrong type, role or shape; not trained on. "
        "row 0 (rows.jsonl:1): message 0: its role is none of system, developer, user, assistant, tool ('bot'); "
        "row 1 (rows.jsonl:2): message 0: its role is none of system, developer, user, assistant, tool ('bot')\n"
        "  fix: correct those rows, or accept them: row_limits: {invalid: SHARE}"
    )


def test_rows_that_all_train_nothing_are_refused_by_name(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "Q"}]}])
    assert refusal(pantry, path, train_on="all_assistant_messages") == (
        f"dataset {path}: untrained: 1 of 1 rows (100.00%, limit 0.00%): no token would be trained; not trained on. "
        "row 0 (rows.jsonl:1): train_on all_assistant_messages picks no token of it\n"
        "  fix: correct those rows, or accept them: row_limits: {untrained: SHARE}"
    )
    assert refusal(pantry, path, train_on="all_assistant_messages", row_limits=ACCEPT_ALL) == (
        f"dataset {path}: no training rows are left of 1\n"
        "  fix: correct the rows that are invalid or train nothing, or lower held_out"
    )


# Once for all


def test_what_was_prepared_is_found_and_nothing_is_rendered_again(
    pantry: Pantry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(
        write_jsonl(tmp_path / "rows.jsonl", [chat(f"Q{index}", "A") for index in range(6)]), held_out="0.5"
    )
    rendering = make_renderer(recipe, BASE)
    asked: list[str] = []
    for name in ("conversation", "generation_prompt"):
        monkeypatch.setattr(rendering.renderer, name, recorded(getattr(rendering.renderer, name), asked))
    first, report = pantry.prepare(recipe, rendering)
    assert sorted(asked) == ["conversation"] * 6 + ["generation_prompt"] * 3
    keys = list(pantry.blobs.list(""))
    assert [key for key in keys if key.startswith("prepared/")] == [f"prepared/{first.key}.json"]
    again, again_report = pantry.prepare(recipe, rendering)
    assert len(asked) == 9
    assert (again, again_report) == (first, report)
    assert list(pantry.blobs.list("")) == keys
    assert list(pantry.blobs.scratch().iterdir()) == []


def test_two_stores_hold_the_same_bytes(tmp_path: Path) -> None:
    rows = [chat(f"Q{index}", "A" * index) for index in range(1, 9)]
    recipe = recipe_of(write_jsonl(tmp_path / "rows.jsonl", rows), held_out="0.25")
    one, two = Pantry(), Pantry()
    assert one.prepare(recipe) == two.prepare(recipe)
    assert list(one.blobs.list("")) == list(two.blobs.list(""))


def test_prepared_data_come_back_as_they_were_stored(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [chat("Q", "A"), chat("R", "B")])
    prepared, report = pantry.prepare(recipe_of(path, held_out="0.5"))
    stored = pantry.blobs.get(f"prepared/{prepared.key}.json")
    assert stored is not None
    assert prepared_from_json(json.loads(stored.data)) == prepared
    packed = replace(prepared, held_out=None, packs=prepared.train)
    assert prepared_from_json(json.loads(json.dumps(asdict(packed)))) == packed
    assert packed.trained == packed.packs
    assert read_report(prepared, pantry.content) == report
    assert prepared.raw["train"]["files"] == {"rows.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert prepared.rendering["template_digest"] is not None


def test_training_rows_are_fetched_once_and_whole(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [chat("Q", "A"), chat("R", "B")])
    prepared, _ = pantry.prepare(recipe_of(path))
    local = fetch_training_rows(pantry.content, prepared, tmp_path / "cache/rows.parquet")
    assert (local.path, local.rows, local.packed) == (tmp_path / "cache/rows.parquet", 2, False)
    assert (local.pad_token_id, local.stop_token_ids, local.digest) == (PAD, (END,), prepared.train.digest)
    assert local.path.read_bytes() == pantry.content.get(prepared.train.blob)
    assert [path.name for path in local.path.parent.iterdir()] == ["rows.parquet"]
    pantry.blobs.delete(f"blobs/sha256/{prepared.train.blob}")
    assert fetch_training_rows(pantry.content, prepared, local.path) == local
    with pytest.raises(CheckpointError, match="is missing from the store"):
        fetch_split(pantry.content, prepared.train, tmp_path / "other.parquet")
    assert not (tmp_path / "other.parquet").exists()


def test_a_raw_digest_is_that_of_the_rows_and_of_the_share(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [chat("Q", "A")])
    other = write_jsonl(tmp_path / "other.jsonl", [chat("R", "A")])
    store = SourceDatasets()
    raw = open_raw(recipe_of(path, held_out="0.1"), store)
    assert raw.digest == digest_json([store.open(str(path)).digest, 0.1])
    both = open_raw(recipe_of(path, held_out=str(other)), store)
    digests = [store.open(str(source)).digest for source in (path, other)]
    assert both.digest == digest_json(digests)
    assert both.describe() == {
        name: {
            "reference": str(source),
            "kind": "file",
            "digest": digest,
            "revision": "",
            "files": {source.name: digest_file(source)},
        }
        for name, source, digest in zip(("train", "held_out"), (path, other), digests, strict=True)
    }
    assert list(raw.describe()) == ["train"]
