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
    # In one piece: TRL refuses columns whose offsets differ, and those of a piece begin at 0 again.
    table = pyarrow.parquet.read_table(source, columns=["row_id", "input_ids", "labels"]).combine_chunks()
    unpacked = table.select(["input_ids", "labels"]).append_column("row_ids", _row_id_per_token(table))
    packed = pack_dataset(datasets.Dataset(unpacked), max_length, "bfd", {"keep_in_memory": True})
    result = packed.with_format("arrow")[:].select(["input_ids", "labels", "seq_lengths", "row_ids"])
    result = result.set_column(3, "row_ids", pyarrow.array(_row_ids_of_packs(result)))
    pyarrow.parquet.write_table(result, target, compression="zstd")
    return PreparedSplit(
        blob=content.put_file(target).sha256,
        rows=result.num_rows,
        tokens=rows.tokens,
        trained_tokens=rows.trained_tokens,
        digest=_digest(result),
    )


def _row_id_per_token(table: Any) -> Any:
    import numpy
    import pyarrow
    import pyarrow.compute

    lengths = pyarrow.compute.list_value_length(table["input_ids"]).to_numpy()
    offsets = numpy.concatenate([[0], numpy.cumsum(lengths)])
    return pyarrow.ListArray.from_arrays(
        pyarrow.array(offsets, pyarrow.int32()), numpy.repeat(table["row_id"].to_numpy(), lengths)
    )


def _row_ids_of_packs(table: Any) -> list[Any]:
    import numpy

    firsts = []
    for row_ids, lengths in zip(table["row_ids"], table["seq_lengths"], strict=True):
        ends = numpy.cumsum(lengths.values.to_numpy())
        firsts.append(row_ids.values.to_numpy()[ends - lengths.values.to_numpy()])
    return firsts


def _digest(table: Any) -> str:
    hasher = hashlib.sha256()
    for name in ("input_ids", "labels", "seq_lengths"):
        for values in table[name]:
            hasher.update(len(values).to_bytes(8, "little") + values.values.to_numpy().astype("<i4").tobytes())
    return hasher.hexdigest()
