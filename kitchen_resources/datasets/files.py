"""Reading rows from files: JSONL, JSON, CSV, Parquet, Arrow; each row with its place, and flat in memory."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kitchen_resources.errors import DataError

_BATCH = 1000
_LONGEST_CELL = 1 << 26  # the csv module's own limit, 128 KiB, is less than a document

Rows = Iterator[tuple[str, Mapping[str, Any]]]
"""Place and columns of each row."""


def read_rows(path: Path, name: str) -> Rows:
    """The rows of one file.

    Args:
        path: The file.
        name: What to call it in messages.

    Raises:
        DataError: A row is malformed, with its line; or the format isn't known.
    """
    return reader_of(path, name)(path, name)


def is_data_file(path: Path) -> bool:
    """Whether the file has a suffix that can be read."""
    return path.suffix.lower() in _READERS


def reader_of(path: Path, name: str) -> Callable[[Path, str], Rows]:
    """The reader of a file's format.

    Raises:
        DataError: It isn't known.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"files of type {path.suffix or '(no suffix)'} can't be read",
            where=name,
            fix=f"use one of {', '.join(sorted(_READERS))}",
        )
    return reader


def _jsonl(path: Path, name: str) -> Rows:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            place = f"{name}:{number}"
            yield place, _object(_parse(line, name, number), place)


def _json(path: Path, name: str) -> Rows:
    rows = _parse(path.read_bytes(), name)
    if not isinstance(rows, list):
        raise DataError(
            "a .json file must hold one list of rows",
            where=name,
            fix="wrap the rows in [ ], or write one row a line and name the file .jsonl",
        )
    for index, row in enumerate(rows):
        place = f"{name}[{index}]"
        yield place, _object(row, place)


def _csv(path: Path, name: str) -> Rows:
    csv.field_size_limit(_LONGEST_CELL)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=separator, strict=True)
        line = 1
        try:
            header = _distinct(next(reader, []), f"{name}:1")
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield f"{name}:{line}", _cells(header, cells, f"{name}:{line}")
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"not valid CSV: {error}",
                where=f"{name}:{line}",
                fix="close its quotes, and double those inside a cell",
            ) from error
        except UnicodeDecodeError as error:
            line = _line_not_utf8(path)
            raise DataError(
                f"line {line} is not UTF-8: {error.reason}", where=f"{name}:{line}", fix="save the file as UTF-8"
            ) from error


def _cells(header: list[str], cells: list[str], place: str) -> Mapping[str, str]:
    if len(cells) != len(header):
        raise DataError(
            f"has {'more' if len(cells) > len(header) else 'fewer'} cells than the header's {len(header)}",
            where=place,
            fix="quote cells that hold the separator",
        )
    return dict(zip(header, cells, strict=True))


def _line_not_utf8(path: Path) -> int:
    """The first line that isn't UTF-8; text is decoded in pieces, so the reader's own line is an earlier one."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _parquet(path: Path, name: str) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _arrow_batches(file.iter_batches(_BATCH), name)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a readable Parquet file: {error}", where=name, fix="write it again") from error


def _arrow(path: Path, name: str) -> Rows:
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(path)) as source:
            yield from _arrow_batches(_arrow_reader(source), name)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a readable Arrow file: {error}", where=name, fix="write it again") from error


def _arrow_reader(source: Any) -> Iterator[Any]:
    """Record batches of either Arrow format: the stream that `datasets` writes, or the file format."""
    import pyarrow
    import pyarrow.ipc

    try:
        reader = pyarrow.ipc.open_stream(source)
    except pyarrow.ArrowInvalid:
        file = pyarrow.ipc.open_file(source)
        return (file.get_batch(index) for index in range(file.num_record_batches))
    return iter(reader)


def _arrow_batches(batches: Iterator[Any], name: str) -> Rows:
    index = 0
    for batch in batches:
        _distinct(batch.schema.names, name)
        for row in batch.to_pylist():
            yield f"{name}[{index}]", {key: _struct_without_nulls(value) for key, value in row.items()}
            index += 1


def _struct_without_nulls(value: Any) -> Any:
    """Arrow gives every struct all keys of its column; those a row never had come back as null, and go again here."""
    if isinstance(value, dict):
        return {key: _struct_without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_struct_without_nulls(item) for item in value]
    return value


def _distinct(names: list[str], where: str) -> list[str]:
    """Column names, of which a row could hold only one of two that are the same."""
    twice = [column for column, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"two columns have the name {twice[0]!r}", where=where, fix="rename one of them")
    return names


def _parse(text: bytes, name: str, line: int | None = None) -> Any:
    """A JSON value; `line` is where in its file it stands, None for a whole file."""
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        line = line or text.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"line {line} is not UTF-8: {error.reason}", where=f"{name}:{line}", fix="save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        line = line or error.lineno
        raise DataError(
            f"line {line} is not valid JSON: {error.msg} at column {error.colno}",
            where=f"{name}:{line}",
            fix="correct it; each line of a .jsonl file is one JSON object",
        ) from error
    # Numbers of over 4,300 digits, and brackets nested a thousand deep.
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"can't be read: {error}", where=f"{name}:{line or 1}", fix="write the value as text"
        ) from error


def _object(row: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f"a row must be a JSON object, this one is {type(row).__name__}",
            where=place,
            fix='{"messages": […]}',
        )
    return row


_READERS: dict[str, Callable[[Path, str], Rows]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
