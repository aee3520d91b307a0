"""Rows of every file format: values, places, and what is said of a file that can't be read."""

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from kitchen_resources.datasets.files import is_data_file, read_rows
from kitchen_resources.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"prompt": "größe", "completion": "a, b"},
    {"prompt": 'say "hi"', "completion": "two\nlines"},
]
TABLE = pyarrow.Table.from_pylist(ROWS)


@pytest.fixture(autouse=True)
def longest_cell() -> Iterator[None]:
    """The longest cell is a setting of the csv module, so of the whole process."""
    before = csv.field_size_limit()
    yield
    csv.field_size_limit(before)


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(path: Path, data: bytes | str | None = None) -> list[tuple[str, dict[str, Any]]]:
    if data is not None:
        write(path, data)
    return [(place, dict(row)) for place, row in read_rows(path, path.name)]


def refusal(path: Path, data: bytes | str | None = None) -> str:
    with pytest.raises(DataError) as refused:
        read(path, data)
    return str(refused.value)


def write_stream(path: Path, table: pyarrow.Table, rows: int | None = None) -> Path:
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def write_file(path: Path, table: pyarrow.Table, rows: int | None = None) -> Path:
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


# Which files hold rows


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow", "A.JSONL"]
)
def test_data_files_are_known_by_their_suffix(name: str) -> None:
    assert is_data_file(Path(name))


@pytest.mark.parametrize("name", ["a.txt", "a", "jsonl", ".csv", "a.csv.gz"])
def test_other_files_are_not(name: str) -> None:
    assert not is_data_file(Path(name))


@pytest.mark.parametrize(("name", "kind"), [("a.txt", ".txt"), ("rows", "(no suffix)")])
def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path, name: str, kind: str) -> None:
    assert refusal(tmp_path / name, "x") == (
        f"{name}: files of type {kind} can't be read\n"
        "  fix: use one of .arrow, .csv, .json, .jsonl, .ndjson, .parquet, .tsv"
    )


# JSON lines


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".JSONL"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    name = f"a{suffix}"
    assert read(tmp_path / name, lines) == [(f"{name}:1", ROWS[0]), (f"{name}:2", ROWS[1])]


def test_json_lines_with_blank_lines_a_byte_order_mark_and_other_line_ends(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n \t\n{"text": "b"}\n\n'
    assert read(tmp_path / "a.jsonl", data) == [("a.jsonl:1", {"text": "a"}), ("a.jsonl:4", {"text": "b"})]


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", '{"text": "a\u2028b\x85c"}\n') == [("a.jsonl:1", {"text": "a\u2028b\x85c"})]


def test_a_malformed_line_is_named_after_the_rows_before_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "".join(f'{{"text": "{n}"}}\n' for n in range(16)) + '{"text": x}\n')
    rows = read_rows(path, "a.jsonl")
    assert [row["text"] for _, row in islice(rows, 16)] == [str(n) for n in range(16)]
    with pytest.raises(DataError) as refused:
        next(rows)
    assert str(refused.value) == (
        "a.jsonl:17: line 17 is not valid JSON: Expecting value at column 10\n"
        "  fix: correct it; each line of a .jsonl file is one JSON object"
    )


@pytest.mark.parametrize(
    ("line", "kind"), [("[1]", "list"), ('"text"', "str"), ("3", "int"), ("null", "NoneType"), ("true", "bool")]
)
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: str, kind: str) -> None:
    assert refusal(tmp_path / "a.jsonl", '{"text": "a"}\n' + line) == (
        f'a.jsonl:2: a row must be a JSON object, this one is {kind}\n  fix: {{"messages": […]}}'
    )


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    data = '{"text": "a"}\n{"text": "é"}\n'.encode("latin-1")
    assert refusal(tmp_path / "a.jsonl", data) == (
        "a.jsonl:2: line 2 is not UTF-8: invalid continuation byte\n  fix: save the file as UTF-8"
    )


def test_lines_of_utf16_are_refused(tmp_path: Path) -> None:
    data = '{"text": "a"}\n{"text": "b"}\n'.encode("utf-16")
    assert refusal(tmp_path / "a.jsonl", data).startswith("a.jsonl:1: line 1 is not UTF-8: ")


@pytest.mark.parametrize(
    ("value", "said"), [("1" * 5000, "Exceeds the limit"), ("[" * 100_000, "maximum recursion depth exceeded")]
)
def test_values_beyond_what_can_be_parsed_are_named_too(tmp_path: Path, value: str, said: str) -> None:
    message = refusal(tmp_path / "a.jsonl", f'{{"text": "a"}}\n{{"text": {value}}}')
    assert message.startswith(f"a.jsonl:2: can't be read: {said}")


# JSON


def test_a_json_list(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode()
    assert read(tmp_path / "a.json", data) == [("a.json[0]", ROWS[0]), ("a.json[1]", ROWS[1])]


def test_a_json_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.json", '{"rows": []}') == (
        "a.json: a .json file must hold one list of rows\n"
        "  fix: wrap the rows in [ ], or write one row a line and name the file .jsonl"
    )


def test_an_item_that_is_no_object_is_refused_with_its_number(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.json", '[{"a": 1}, 2]').startswith(
        "a.json[1]: a row must be a JSON object, this one"
    )


def test_malformed_json_is_named_with_line_and_column(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.json", '[{"a": 1},\n {"a": }\n]').startswith(
        "a.json:2: line 2 is not valid JSON: Expecting value at column 8\n"
    )


def test_json_lines_in_a_json_file_are_told_what_they_are(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.json", '{"a": 1}\n{"a": 2}\n') == (
        "a.json:2: line 2 is not valid JSON: Extra data at column 1\n"
        "  fix: correct it; each line of a .jsonl file is one JSON object"
    )


def test_json_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    data = '[{"a": "x"},\n\n{"a": "é"}]'.encode("latin-1")
    assert refusal(tmp_path / "a.json", data).startswith("a.json:3: line 3 is not UTF-8: ")


# CSV


@pytest.mark.parametrize(("suffix", "dialect"), [(".csv", "excel"), (".tsv", "excel-tab"), (".CSV", "unix")])
def test_csv(tmp_path: Path, suffix: str, dialect: str) -> None:
    name = f"a{suffix}"
    with (tmp_path / name).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "completion"], dialect=dialect)
        writer.writeheader()
        writer.writerows(ROWS)
    assert read(tmp_path / name) == [(f"{name}:2", ROWS[0]), (f"{name}:3", ROWS[1])]


def test_a_row_of_csv_is_named_by_its_first_line(tmp_path: Path) -> None:
    data = '\ufeffa,b\r\n"1\r\n2",3\r\n\r\n4,\r\n'
    assert read(tmp_path / "a.csv", data) == [
        ("a.csv:2", {"a": "1\r\n2", "b": "3"}),
        ("a.csv:5", {"a": "4", "b": ""}),
    ]


def test_a_tab_is_no_separator_of_csv_nor_a_comma_of_tsv(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "a\tb\n1\t2\n") == [("a.csv:2", {"a\tb": "1\t2"})]
    assert read(tmp_path / "a.tsv", "a,b\n1,2\n") == [("a.tsv:2", {"a,b": "1,2"})]


@pytest.mark.parametrize(("row", "said"), [("1,2,3", "more"), ("1", "fewer")])
def test_a_row_with_another_number_of_cells_is_refused(tmp_path: Path, row: str, said: str) -> None:
    assert refusal(tmp_path / "a.csv", f"a,b\n1,2\n\n{row}\n1,2\n") == (
        f"a.csv:4: has {said} cells than the header's 2\n  fix: quote cells that hold the separator"
    )


def test_an_empty_cell_is_not_a_missing_one(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "a,b\n,\n") == [("a.csv:2", {"a": "", "b": ""})]


@pytest.mark.parametrize(
    ("data", "said"),
    [('a,b\n1,2\n"x"y,2\n3,4\n', "',' expected after '\"'"), ('a,b\n1,2\n"x,2\n3,4\n', "unexpected end of data")],
)
def test_wrong_quotes_are_named_where_the_row_begins(tmp_path: Path, data: str, said: str) -> None:
    assert refusal(tmp_path / "a.csv", data) == (
        f"a.csv:3: not valid CSV: {said}\n  fix: close its quotes, and double those inside a cell"
    )


def test_a_line_of_csv_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    data = ("text\n" + "a\n" * 9 + "é\n" + "a\n" * 10_000).encode("latin-1")
    assert refusal(tmp_path / "a.csv", data) == (
        "a.csv:11: line 11 is not UTF-8: invalid continuation byte\n  fix: save the file as UTF-8"
    )


def test_a_cell_may_be_as_long_as_a_document(tmp_path: Path) -> None:
    document = "word " * 40_000
    assert read(tmp_path / "a.csv", f"text\n{document}\n") == [("a.csv:2", {"text": document})]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    said = "two columns have the name 'text'\n  fix: rename one of them"
    assert refusal(tmp_path / "a.csv", "text,id,text\na,1,b\n") == f"a.csv:1: {said}"
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet") == f"a.parquet: {said}"


@pytest.mark.parametrize("data", ["a,b\n", "a,b"])
def test_a_header_alone_gives_no_row(tmp_path: Path, data: str) -> None:
    assert read(tmp_path / "a.csv", data) == []


# Parquet and Arrow


def test_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(TABLE, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [("a.parquet[0]", ROWS[0]), ("a.parquet[1]", ROWS[1])]


@pytest.mark.parametrize("write_arrow", [write_stream, write_file])
def test_both_formats_of_arrow(tmp_path: Path, write_arrow: Any) -> None:
    path = write_arrow(tmp_path / "a.arrow", TABLE, 1)
    assert read(path) == [("a.arrow[0]", ROWS[0]), ("a.arrow[1]", ROWS[1])]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_rows_are_numbered_across_batches(tmp_path: Path, suffix: str) -> None:
    table = pyarrow.table({"n": list(range(2500))})
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=700)
    else:
        write_stream(path, table, 700)
    rows = read(path)
    assert [row["n"] for _, row in rows] == list(range(2500))
    assert [place for place, _ in rows[::1200]] == [f"a{suffix}[0]", f"a{suffix}[1200]", f"a{suffix}[2400]"]


def test_a_parquet_file_is_read_in_batches_of_a_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"n": list(range(2500))}), tmp_path / "a.parquet")
    sizes: list[int] = []
    batches = pyarrow.parquet.ParquetFile.iter_batches

    def counted(self: Any, batch_size: int) -> Iterator[Any]:
        for batch in batches(self, batch_size):
            sizes.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counted)
    rows = read_rows(tmp_path / "a.parquet", "a.parquet")
    assert next(rows)[1] == {"n": 0}
    assert sizes == [1000]
    assert len(list(rows)) == 2499
    assert sizes == [1000, 1000, 500]


def test_keys_that_a_struct_never_had_are_gone_again(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "tool_calls": [
                    {"function": {"name": "f", "arguments": {"city": "Rome", "days": [1, 2]}}},
                    {"function": {"name": "g", "arguments": {"zip": 0, "exact": False}}},
                ],
            },
        ],
        "tools": None,
        "texts": ["a", None, ""],
    }
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([row, {**row, "tools": [{"name": "f"}]}]), tmp_path / "a.parquet"
    )
    (_, first), (_, second) = read(tmp_path / "a.parquet")
    # A column stays, null or not: it is what the shape of the rows is told by.
    assert first == row
    assert second == {**row, "tools": [{"name": "f"}]}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("junk", [b"PAR1PAR1PAR1", b"ARROW1\0\0ARROW1", b"\0" * 64, b'{"text": "a"}\n' * 9])
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str, junk: bytes) -> None:
    kind = {"a.parquet": "Parquet", "a.arrow": "Arrow"}[name]
    message = refusal(tmp_path / name, junk)
    assert message.startswith(f"{name}: not a readable {kind} file: ")
    assert message.endswith("\n  fix: write it again")


@pytest.mark.parametrize("write_arrow", [write_stream, write_file])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, write_arrow: Any) -> None:
    path = write_arrow(tmp_path / "a.arrow", TABLE)
    data = path.read_bytes()
    assert refusal(path, data[: len(data) // 2]).startswith("a.arrow: not a readable Arrow file: ")
