"""Rows and data sets made by hand, for the tests of data sets."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kitchen_resources.datasets.port import Example, RawDataset, RawRow
from kitchen_resources.datasets.rows import Outcome, normalized_examples

Row = Mapping[str, Any]


def chat(question: str, answer: str) -> dict[str, Any]:
    """A row of one question and one answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_jsonl(path: Path, rows: Iterable[Row]) -> Path:
    """A file of rows; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def raw_of(*rows: Row) -> RawDataset:
    """A data set in memory, whose row 0 is at `rows:1`."""

    def read() -> Iterator[RawRow]:
        return (RawRow(index, f"rows:{index + 1}", row) for index, row in enumerate(rows))

    return RawDataset("rows", "file", "", {}, "", "", read)


def outcomes_of(rows: Iterable[Row], conversational: bool, columns: Mapping[str, str] | None) -> list[Outcome]:
    return list(normalized_examples(raw_of(*rows), columns or {}, None, conversational))


def examples_of(*rows: Row, conversational: bool = True, columns: Mapping[str, str] | None = None) -> list[Example]:
    """Rows as examples; a row that isn't valid fails the test with its reason."""
    outcomes = outcomes_of(rows, conversational, columns)
    invalid = [outcome for outcome in outcomes if not isinstance(outcome, Example)]
    assert not invalid, invalid
    return [outcome for outcome in outcomes if isinstance(outcome, Example)]


def reasons_of(*rows: Row, conversational: bool = True, columns: Mapping[str, str] | None = None) -> dict[int, str]:
    """What is wrong with rows: row id -> reason."""
    outcomes = outcomes_of(rows, conversational, columns)
    return {outcome[0].row_id: outcome[1] for outcome in outcomes if not isinstance(outcome, Example)}
