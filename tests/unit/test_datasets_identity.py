"""When prepared data are the same: what moves their digest, what only their key, and what neither."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from kitchen_resources.datasets.port import PreparedDataset
from kitchen_resources.recipes.blocks import LoraConfig, RowLimits
from tests.unit.dataset_rows import chat, write_jsonl
from tests.unit.preparing import Pantry, recipe_of

PAIRS = [{"prompt": f"Q{index}, größe", "completion": f"A\n{index}"} for index in range(12)]
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "system", "content": "S"}, *chat(f"Q{index}", f"A{index}")["messages"]]}
    for index in range(12)
]
CHATS[3]["messages"][1]["name"] = "Ada"  # other messages have this key as null, in a columnar file
CHATS[5]["messages"] = CHATS[5]["messages"][1:]


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=True))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=5)


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    make = pyarrow.ipc.new_file if "file" in path.stem else pyarrow.ipc.new_stream
    with pyarrow.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table)


FORMATS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "rows.jsonl": write_jsonl,
    "rows.ndjson": write_jsonl,
    "rows.json": write_json,
    "rows.parquet": write_parquet,
    "stream.arrow": write_arrow,
    "file.arrow": write_arrow,
    "rows.csv": write_csv,
    "rows.tsv": write_csv,
}


@pytest.fixture
def pantry() -> Pantry:
    return Pantry()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", CHATS)


def digests(prepared: PreparedDataset) -> tuple[str, str | None]:
    return prepared.train.digest, prepared.held_out.digest if prepared.held_out else None


def prepared_of(pantry: Pantry, path: Path, **fields: Any) -> PreparedDataset:
    return pantry.prepare(recipe_of(path, **{"held_out": "0.25", **fields}))[0]


# The file


@pytest.mark.parametrize("rows", [PAIRS, CHATS], ids=["pairs", "conversations"])
def test_the_digest_is_of_the_rows_and_not_of_the_format(
    pantry: Pantry, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    found = {}
    for name, write in FORMATS.items():
        if rows is PAIRS or write is not write_csv:
            write(tmp_path / name, rows)
            prepared = prepared_of(pantry, tmp_path / name)
            assert (prepared.train.rows, prepared.held_out and prepared.held_out.rows) == (9, 3)
            found[name] = (*digests(prepared), prepared.train.tokens)
    assert len(found) == (8 if rows is PAIRS else 6)
    assert len(set(found.values())) == 1, found


def test_the_digest_is_of_the_rows_and_not_of_their_shape(pantry: Pantry, tmp_path: Path) -> None:
    shapes: dict[str, Callable[[str, str], dict[str, Any]]] = {
        "prompt": lambda q, a: {"prompt": q, "completion": a},
        "instruction": lambda q, a: {"output": a, "instruction": q, "input": ""},
        "messages": chat,
        "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    }
    found = set()
    for name, shape in shapes.items():
        path = write_jsonl(tmp_path / f"{name}.jsonl", [shape(row["prompt"], row["completion"]) for row in PAIRS])
        found.add(digests(prepared_of(pantry, path)))
    assert len(found) == 1


def test_a_moved_folder_moves_nothing_and_a_renamed_file_only_the_key(
    pantry: Pantry, path: Path, tmp_path: Path
) -> None:
    base = prepared_of(pantry, path)
    moved = prepared_of(pantry, write_jsonl(tmp_path / "elsewhere/rows.jsonl", CHATS))
    assert (moved.key, digests(moved)) == (base.key, digests(base))
    renamed = prepared_of(pantry, write_jsonl(tmp_path / "renamed.jsonl", CHATS))
    assert renamed.key != base.key
    assert digests(renamed) == digests(base)


def test_one_file_or_several_give_the_same_rows(pantry: Pantry, path: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d/train-1.jsonl", CHATS[:5])
    write_jsonl(tmp_path / "d/train-2.jsonl", CHATS[5:])
    several = prepared_of(pantry, tmp_path / "d")
    assert digests(several) == digests(prepared_of(pantry, path))
    assert [row["row_id"] for row in pantry.rows(several.train)] == [
        row["row_id"] for row in pantry.rows(prepared_of(pantry, path).train)
    ]


# The rows


def changed(rows: list[dict[str, Any]], change: str) -> list[dict[str, Any]]:
    rows = json.loads(json.dumps(rows))
    match change:
        case "question":
            rows[3]["messages"][1]["content"] += "?"
        case "answer":
            rows[3]["messages"][-1]["content"] = "B3"
        case "role":
            rows[3]["messages"][0]["role"] = "developer"
        case "a row more":
            rows.append(chat("new", "row"))
        case "a row less":
            del rows[3]
        case "order":
            rows[3], rows[4] = rows[4], rows[3]
        case "a row twice":
            rows.append(rows[3])
    return rows


@pytest.mark.parametrize("change", ["question", "answer", "role", "a row more", "a row less", "order", "a row twice"])
def test_a_changed_row_moves_key_and_digest(pantry: Pantry, path: Path, tmp_path: Path, change: str) -> None:
    base = prepared_of(pantry, path, held_out="0")
    other = prepared_of(pantry, write_jsonl(tmp_path / "other/rows.jsonl", changed(CHATS, change)), held_out="0")
    assert other.key != base.key
    assert other.train.digest != base.train.digest


def test_what_is_not_rendered_moves_the_key_alone(pantry: Pantry, path: Path, tmp_path: Path) -> None:
    base = prepared_of(pantry, path)
    labelled = [{**row, "id": index} for index, row in enumerate(CHATS)]
    other = prepared_of(pantry, write_jsonl(tmp_path / "other/rows.jsonl", labelled))
    assert other.key != base.key
    assert digests(other) == digests(base)


def test_a_changed_held_out_set_moves_its_digest_alone(pantry: Pantry, path: Path, tmp_path: Path) -> None:
    held = [
        prepared_of(pantry, path, held_out=str(write_jsonl(tmp_path / f"{n}/h.jsonl", [chat("X", n)]))) for n in "YZ"
    ]
    assert held[0].key != held[1].key
    assert held[0].train == held[1].train
    assert held[0].held_out != held[1].held_out
    assert held[0].train.digest == prepared_of(pantry, path, held_out="0").train.digest


# The recipe

MOVES_THE_DIGEST: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "share": {"held_out": "0.5"},
    "no share": {"held_out": "0"},
    "cut": {"max_length": 34},
    "template": {"chat_template": "role_colon"},
    "trained messages": {"train_on": "all_messages"},
    "first rows": {"max_rows": 11},
}
MOVES_THE_KEY: dict[str, dict[str, Any]] = {
    "length that cuts nothing": {"max_length": 2047},
    "as many rows as there are": {"max_rows": 12},
    "mode that picks the same": {"train_on": "all_assistant_messages"},
}
MOVES_NOTHING: dict[str, dict[str, Any]] = {
    "row limits": {"row_limits": RowLimits(invalid=0.5, truncated=0.0)},
    "epochs": {"epochs": 7},
    "learning rate": {"learning_rate": 1.0},
    "batch": {"batch_size": 3, "gradient_accumulation_steps": 2},
    "lora": {"lora": LoraConfig()},
    "checkpoints": {"checkpoint_steps": 5, "keep_last": 9},
    "share written otherwise": {"held_out": "2.5e-1 "},
    "template by name": {"chat_template": "chatml"},
}


@pytest.mark.parametrize("name", MOVES_THE_DIGEST)
def test_what_moves_the_digest(pantry: Pantry, path: Path, name: str) -> None:
    base, other = prepared_of(pantry, path), prepared_of(pantry, path, **MOVES_THE_DIGEST[name])
    assert other.key != base.key
    assert other.train.digest != base.train.digest


@pytest.mark.parametrize("name", MOVES_THE_KEY)
def test_what_moves_the_key_alone(pantry: Pantry, path: Path, name: str) -> None:
    base, other = prepared_of(pantry, path), prepared_of(pantry, path, **MOVES_THE_KEY[name])
    assert other.key != base.key
    assert digests(other) == digests(base)


@pytest.mark.parametrize("name", MOVES_NOTHING)
def test_what_moves_nothing(pantry: Pantry, path: Path, name: str) -> None:
    base = prepared_of(pantry, path)
    before = list(pantry.blobs.list(""))
    assert prepared_of(pantry, path, **MOVES_NOTHING[name]) == base
    assert list(pantry.blobs.list("")) == before


def test_the_mode_moves_what_is_learned_of_longer_conversations(pantry: Pantry, tmp_path: Path) -> None:
    messages = [*chat("Q", "A")["messages"], *chat("R", "B")["messages"]]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": messages}])
    last, every = (
        prepared_of(pantry, path, train_on=mode) for mode in ("last_assistant_message", "all_assistant_messages")
    )
    assert (last.train.tokens, last.train.trained_tokens) == (every.train.tokens, 2)
    assert every.train.trained_tokens == 4
    assert last.train.digest != every.train.digest


def test_the_seed_only_moves_a_split_by_share(pantry: Pantry, path: Path, tmp_path: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [chat("X", "Y")])
    assert prepared_of(pantry, path, held_out=str(held), seed=1) == prepared_of(pantry, path, held_out=str(held))
    by_share = [prepared_of(pantry, path, seed=seed) for seed in (0, 1)]
    assert [split.held_out.rows for split in by_share if split.held_out] == [3, 3]
    assert digests(by_share[0]) != digests(by_share[1])


def test_columns_move_the_key_and_names_do_not_move_the_digest(pantry: Pantry, tmp_path: Path) -> None:
    ours = prepared_of(pantry, write_jsonl(tmp_path / "rows.jsonl", PAIRS))
    rows = [{"q": row["prompt"], "a": row["completion"]} for row in PAIRS]
    theirs = prepared_of(
        pantry, write_jsonl(tmp_path / "theirs.jsonl", rows), columns={"prompt": "q", "completion": "a"}
    )
    assert theirs.key != ours.key
    assert digests(theirs) == digests(ours)
