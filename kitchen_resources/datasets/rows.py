"""Row by row: raw rows to examples, and examples to prepared rows of a Parquet file."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.datasets.port import Example, PreparedSplit, RawDataset, RawRow
from kitchen_resources.datasets.report import RowReport
from kitchen_resources.datasets.row_kinds import row_kind
from kitchen_resources.datasets.schemas import invalid_rows
from kitchen_resources.datasets.shapes import Normalize, RowProblem, shape_of
from kitchen_resources.errors import DataError
from kitchen_resources.recipes.recipe import Recipe

_CHUNK = 1000
_SAMPLES = 3

Outcome = Example | tuple[RawRow, str]
"""An example, or a row and what is wrong with it."""


def normalized_examples(
    raw: RawDataset,
    columns: Mapping[str, str],
    max_rows: int | None,
    conversational: bool,
    method: str = "supervised",
) -> Iterator[Outcome]:
    """The rows of a data set as examples, in order, checked against the schema in chunks of 1,000.

    Args:
        raw: The data set.
        columns: The recipe's names of its columns.
        max_rows: Read no more rows than these; None for all.
        conversational: Whether prompts and answers become conversations.
        method: The recipe's, which says what shapes its rows may have.

    Raises:
        DataError: The columns are of no known shape, or a row can't be read at all.
    """
    rows = islice(raw.rows(), max_rows)
    normalize: Normalize | None = None
    while chunk := list(islice(rows, _CHUNK)):
        if normalize is None:
            normalize = shape_of(
                chunk[0].value,
                columns,
                reference=f"dataset {raw.reference}",
                conversational=conversational,
                method=method,
            )
        yield from _checked(chunk, normalize)


def _checked(chunk: list[RawRow], normalize: Normalize) -> Iterator[Outcome]:
    outcomes: list[Outcome] = []
    for row in chunk:
        try:
            example = normalize(row)
            _require_json(example)
            outcomes.append(example)
        except RowProblem as problem:
            outcomes.append((row, str(problem)))
    problems = invalid_rows([outcome for outcome in outcomes if isinstance(outcome, Example)])
    for row, outcome in zip(chunk, outcomes, strict=True):
        yield (row, problems[row.row_id]) if row.row_id in problems else outcome


def _require_json(example: Example) -> None:
    """Columnar files hold what JSON and templates can't: dates, bytes, NaN; and JSON holds half characters."""
    try:
        example_json(example).encode()
    except UnicodeEncodeError as error:
        raise RowProblem("holds half of a surrogate pair, which is no character") from error
    except (TypeError, ValueError) as error:
        raise RowProblem(f"holds what is not a JSON value: {error}") from error


class RowWriter:
    """Renders examples and writes them to a Parquet file, in row groups of 1,000.

    Columns: row_id, where, those of the method's kind of rows (see `row_kinds`), and example (JSON).
    """

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        renderer: Any,
        report: RowReport,
        *,
        trained: bool,
        named: str = "",
    ) -> None:
        self.path = path
        self.rows = 0
        self.tokens = 0
        self.trained_tokens = 0
        self.fractional: tuple[int, str] | None = None
        self._kind = row_kind(recipe, renderer, report, trained=trained)
        self._report = report
        self._trained = trained
        self._named = named
        self._digest = hashlib.sha256()
        self._pending: list[dict[str, Any]] = []
        self._writer: Any = None

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def add(self, example: Example) -> None:
        """Render one example and write it; rows that can't be rendered or train nothing become findings."""
        try:
            row = self._kind.render(example)
        except DataError as error:
            self._found("invalid", example, error.what)
            return
        if self._trained:
            self._report.count_length(row.length)
        if row.truncated:
            self._found("truncated", example, row.truncated)
            self._report.cut_tokens += row.cut_tokens
        if row.untrained:
            self._found("untrained", example, row.untrained)
            return
        if row.fractional and self.fractional is None:
            self.fractional = (example.row_id, example.where)
        if self._trained and len(self._report.samples) < _SAMPLES:
            self._report.samples.append({"row_id": example.row_id, **row.sample()})
        self._digest.update(row.digested)
        self.rows += 1
        self.tokens += row.tokens
        self.trained_tokens += row.trained_tokens
        place = {"row_id": example.row_id, "where": example.where, "example": example_json(example)}
        self._pending.append({**place, **row.columns})
        if len(self._pending) == _CHUNK:
            self._flush()

    def store(self, content: ContentStore) -> PreparedSplit:
        """Put the written file into the store."""
        return PreparedSplit(
            blob=content.put_file(self.path).sha256,
            rows=self.rows,
            tokens=self.tokens,
            trained_tokens=self.trained_tokens,
            digest=self._digest.hexdigest(),
        )

    def _found(self, kind: str, example: Example, reason: str) -> None:
        self._report.findings[kind].add(example.row_id, f"{self._named}{example.where}", reason)

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._pending:
            return
        table = pyarrow.Table.from_pylist(self._pending, schema=self._kind.schema())
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self.path, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._pending = []


def example_json(example: Example) -> str:
    """An example as prepared files hold it: a JSON object of what its shape has.

    Raises:
        TypeError: It holds what JSON has no way to write.
        ValueError: It holds a number that is none.
    """
    value: dict[str, Any] = {"text": example.text}
    if example.shape == "messages":
        value = {"messages": list(example.messages)}
    elif example.shape == "prompt_completion":
        value = {"prompt": example.prompt, "completion": example.completion}
    elif example.shape == "preference":
        asked = list(example.messages) or example.prompt
        value = {"prompt": asked, "chosen": example.chosen, "rejected": example.rejected}
    elif example.shape == "problem":
        value = {"prompt": list(example.messages), "problem": json.loads(example.problem)}
    if example.tools:
        value["tools"] = list(example.tools)
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
