"""Packing: several rows in one sequence, each seeing only itself, with the row ids kept aside."""

import hashlib
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.datasets.port import PreparedSplit


def pack(source: Path, target: Path, content: ContentStore, rows: PreparedSplit, max_length: int) -> PreparedSplit:
    """Pack prepared rows by TRL's own best-fit-decreasing, and put them into the store.

    TRL drops other columns before it packs, so the row ids travel as a list column as long as the tokens; one id a
    sequence is kept. The packs are the ones that `SFTTrainer(packing=True)` makes of the same rows.

    Args:
        source: Parquet of the rows, none longer than `max_length`.
        target: Where to write the packs: input_ids, labels, seq_lengths, row_ids.
        content: The store.
        rows: What `source` is.
        max_length: Tokens of a full pack.
    """
    import datasets
    import pyarrow
    import pyarrow.parquet
    from trl import pack_dataset

    datasets.disable_progress_bars()
    table = pyarrow.parquet.read_table(source, columns=["row_id", "input_ids", "labels"])
    lengths = pyarrow.compute.list_value_length(table["input_ids"])
    ids = pyarrow.array(
        [[row_id] * length for row_id, length in zip(table["row_id"].to_pylist(), lengths.to_pylist(), strict=True)]
    )
    unpacked = pyarrow.table({"input_ids": table["input_ids"], "labels": table["labels"], "row_ids": ids})
    packed = pack_dataset(datasets.Dataset(unpacked), max_length, "bfd", {"keep_in_memory": True})
    result = packed.with_format("arrow")[:].select(["input_ids", "labels", "seq_lengths", "row_ids"])
    result = result.set_column(3, "row_ids", pyarrow.array([_first_of_each(*pair) for pair in _pairs(result)]))
    pyarrow.parquet.write_table(result, target, compression="zstd")
    return PreparedSplit(
        blob=content.put_file(target).sha256,
        rows=result.num_rows,
        tokens=rows.tokens,
        trained_tokens=rows.trained_tokens,
        digest=_digest(result),
    )


def _pairs(table: Any) -> Any:
    return zip(table["row_ids"].to_pylist(), table["seq_lengths"].to_pylist(), strict=True)


def _first_of_each(row_ids: list[int], lengths: list[int]) -> list[int]:
    firsts, start = [], 0
    for length in lengths:
        firsts.append(row_ids[start])
        start += length
    return firsts


def _digest(table: Any) -> str:
    import numpy

    hasher = hashlib.sha256()
    for name in ("input_ids", "labels", "seq_lengths"):
        for values in table[name].to_pylist():
            hasher.update(len(values).to_bytes(8, "little") + numpy.asarray(values, "<i4").tobytes())
    return hasher.hexdigest()
