"""Packing is TRL's own, with the right row ids."""

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest

from kitchen_resources import embedded
from kitchen_resources.datasets.port import PreparedDataset
from kitchen_resources.datasets.prepare import fetch_training_rows
from tests.unit.dataset_rows import chat, write_jsonl
from tests.unit.preparing import Pantry, chat_ids, recipe_of

pytestmark = pytest.mark.heavy

LONGEST = 64


@pytest.fixture
def pantry() -> Pantry:
    return Pantry()


def rows_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = random.Random(seed)
    return [chat(f"Q{index}", "x" * generator.randrange(1, 38)) for index in range(count)]


def packed(
    pantry: Pantry, path: Path, **fields: Any
) -> tuple[PreparedDataset, list[dict[str, Any]], list[dict[str, Any]]]:
    """Prepared data, its rows and its packs."""
    prepared, _ = pantry.prepare(recipe_of(path, **{"packing": True, "max_length": LONGEST, **fields}))
    return prepared, pantry.rows(prepared.train), pantry.rows(prepared.packs)


def test_packs_by_hand(pantry: Pantry, tmp_path: Path) -> None:
    # 23, 46, 35 and 23 tokens: the longest first, each into the fullest pack with room for it.
    path = write_jsonl(
        tmp_path / "rows.jsonl", [chat("Q", "A"), chat("Q", "B" * 24), chat("Q", "C" * 13), chat("Q", "D")]
    )
    prepared, rows, packs = packed(pantry, path)
    assert [len(row["input_ids"]) for row in rows] == [23, 46, 35, 23]
    assert [(pack["row_ids"], pack["seq_lengths"]) for pack in packs] == [
        ([1], [46]),
        ([2, 0], [35, 23]),
        ([3], [23]),
    ]
    third, first = chat_ids("Q", "C" * 13), chat_ids("Q", "A")
    assert (packs[1]["input_ids"], packs[1]["labels"]) == (third[0] + first[0], third[1] + first[1])
    assert prepared.packs is not None
    assert (prepared.packs.rows, prepared.trained) == (3, prepared.packs)
    assert (prepared.packs.tokens, prepared.packs.trained_tokens) == (127, 2 + 25 + 14 + 2)
    assert (prepared.packs.tokens, prepared.packs.trained_tokens) == (
        prepared.train.tokens,
        prepared.train.trained_tokens,
    )


def test_every_row_is_in_one_pack_whole_and_no_pack_is_too_long(pantry: Pantry, tmp_path: Path) -> None:
    # TRL packs 1,000 rows at a time.
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": "no"}, *rows_of(2100)])
    _, rows, packs = packed(pantry, path)
    by_id = {row["row_id"]: row for row in rows}
    assert sorted(row_id for pack in packs for row_id in pack["row_ids"]) == list(range(1, 2101))
    for pack in packs:
        assert sum(pack["seq_lengths"]) == len(pack["input_ids"]) == len(pack["labels"]) <= LONGEST
        start = 0
        for row_id, length in zip(pack["row_ids"], pack["seq_lengths"], strict=True):
            row, end = by_id[row_id], start + length
            assert (pack["input_ids"][start:end], pack["labels"][start:end]) == (row["input_ids"], row["labels"])
            start = end
    assert len(packs) < 2000


def test_packs_are_those_of_trl_for_the_same_rows(pantry: Pantry, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer, pack_dataset

    _, rows, packs = packed(pantry, write_jsonl(tmp_path / "rows.jsonl", rows_of(2100)))
    columns = {name: [row[name] for row in rows] for name in ("input_ids", "labels")}
    ours = {name: [pack[name] for pack in packs] for name in ("input_ids", "labels", "seq_lengths")}
    assert pack_dataset(Dataset.from_dict(columns), LONGEST, "bfd", {"keep_in_memory": True})[:] == ours

    embedded.write_model(tmp_path / "model")
    trainer = SFTTrainer(
        model=str(tmp_path / "model"),
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            packing=True,
            max_length=LONGEST,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(columns),
    )
    assert trainer.train_dataset.with_format(None)[:] == ours


def test_the_digest_of_packs_is_of_their_tokens(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(30))
    prepared, _, packs = packed(pantry, path)
    hasher = hashlib.sha256()
    for name in ("input_ids", "labels", "seq_lengths"):
        for pack in packs:
            hasher.update(len(pack[name]).to_bytes(8, "little") + numpy.asarray(pack[name], "<i4").tobytes())
    assert prepared.packs is not None
    assert prepared.packs.digest == hasher.hexdigest() == prepared.trained.digest != prepared.train.digest
    longer, *_ = packed(pantry, path, max_length=100)
    assert longer.train.digest == prepared.train.digest
    assert longer.trained.digest != prepared.trained.digest
    renamed, *_ = packed(pantry, write_jsonl(tmp_path / "renamed.jsonl", rows_of(30)))
    assert renamed.trained.digest == prepared.trained.digest


def test_packing_moves_what_is_trained_and_not_the_rows(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(30))
    prepared, *_ = packed(pantry, path, held_out="0.2")
    plain, _ = pantry.prepare(recipe_of(path, max_length=LONGEST, held_out="0.2"))
    assert plain.key != prepared.key
    assert (plain.train, plain.held_out) == (prepared.train, prepared.held_out)
    assert (plain.packs, plain.trained) == (None, plain.train)


def test_packs_are_what_the_trainer_reads(pantry: Pantry, tmp_path: Path) -> None:
    prepared, _, packs = packed(pantry, write_jsonl(tmp_path / "rows.jsonl", rows_of(30)))
    local = fetch_training_rows(pantry.content, prepared, tmp_path / "packs.parquet")
    assert (local.packed, local.rows, local.digest) == (True, len(packs), prepared.trained.digest)
    table = pyarrow.parquet.read_table(local.path)
    assert table.column_names == ["input_ids", "labels", "seq_lengths", "row_ids"]
    assert table.to_pylist() == packs


def test_a_cut_row_is_packed_as_it_was_cut(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [chat("Q", "A" * 90), chat("Q", "B")])
    _, rows, packs = packed(pantry, path)
    assert [(pack["row_ids"], pack["seq_lengths"]) for pack in packs] == [([0], [LONGEST]), ([1], [23])]
    assert packs[0]["input_ids"] == rows[0]["input_ids"]
