"""Row by row: raw rows to examples, and examples to rendered rows of a Parquet file."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.datasets.port import Example, PreparedSplit, RawDataset, RawRow
from kitchen_resources.datasets.questions import question_of
from kitchen_resources.datasets.report import RowReport
from kitchen_resources.datasets.schemas import invalid_rows
from kitchen_resources.datasets.shapes import Normalize, RowProblem, shape_of
from kitchen_resources.errors import DataError
from kitchen_resources.recipes.recipe import Recipe

_CHUNK = 1000
_SAMPLES = 3

Outcome = Example | tuple[RawRow, str]
"""An example, or a row and what is wrong with it."""


def normalized_examples(
    raw: RawDataset, columns: Mapping[str, str], max_rows: int | None, conversational: bool
) -> Iterator[Outcome]:
    """The rows of a data set as examples, in order, checked against the schema in chunks of 1,000.

    Raises:
        DataError: The columns are of no known shape, or a row can't be read at all.
    """
    rows = islice(raw.rows(), max_rows)
    normalize: Normalize | None = None
    while chunk := list(islice(rows, _CHUNK)):
        if normalize is None:
            normalize = shape_of(
                chunk[0].value, columns, reference=f"dataset {raw.reference}", conversational=conversational
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
        _example_json(example).encode()
    except UnicodeEncodeError as error:
        raise RowProblem("holds half of a surrogate pair, which is no character") from error
    except (TypeError, ValueError) as error:
        raise RowProblem(f"holds what is not a JSON value: {error}") from error


class RowWriter:
    """Renders examples and writes them to a Parquet file, in row groups of 1,000.

    Columns: row_id, where, input_ids, labels (-100 where nothing is learned), example (JSON); `weights` when they
    may be fractional; and for held-out rows prompt_ids and expected (null where a row has no answer to compare).
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
        self._recipe = recipe
        self._renderer = renderer
        self._report = report
        self._trained = trained
        self._named = named
        self.fractional: tuple[int, str] | None = None
        self._weights = getattr(recipe, "train_on", "") == "customized"
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
        import numpy

        try:
            rendered = self._render(example)
            question = ([], None) if self._trained else question_of(example, self._renderer)
        except DataError as error:
            self._found("invalid", example, error.what)
            return
        ids, weights = rendered.input_ids, rendered.weights
        longest = self._recipe.max_length
        if self._trained:
            self._report.count_length(len(ids))
        if len(ids) > longest:
            self._found("truncated", example, f"{len(ids)} tokens, max_length is {longest}")
            self._report.cut_tokens += len(ids) - longest
            ids, weights = ids[:longest], weights[:longest]
        if not any(weights):
            self._found("untrained", example, self._why_untrained(rendered))
            return
        row: dict[str, Any] = {
            "row_id": example.row_id,
            "where": example.where,
            "input_ids": ids,
            "labels": [token if weight else -100 for token, weight in zip(ids, weights, strict=True)],
            "example": _example_json(example),
        }
        if self._weights:
            row["weights"] = weights
            if self.fractional is None and any(weight not in (0.0, 1.0) for weight in weights):
                self.fractional = (example.row_id, example.where)
        if not self._trained:
            row["prompt_ids"], row["expected"] = question
        if self._trained and len(self._report.samples) < _SAMPLES:
            learned = rendered.trained_text(self._renderer.tokenizer)
            self._report.samples.append(
                {"row_id": example.row_id, "text": rendered.text[:2000], "learned": learned[:2000]}
            )
        self._digest.update(len(ids).to_bytes(8, "little"))
        self._digest.update(numpy.asarray(ids, "<i4").tobytes() + numpy.asarray(weights, "<f4").tobytes())
        self.rows += 1
        self.tokens += len(ids)
        self.trained_tokens += sum(1 for weight in weights if weight)
        self._pending.append(row)
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

    def _render(self, example: Example) -> Any:
        if example.shape == "messages":
            return self._renderer.conversation(list(example.messages), tools=list(example.tools) or None)
        if example.shape == "prompt_completion":
            return self._renderer.completion(example.prompt, example.completion)
        return self._renderer.text(example.text)

    def _why_untrained(self, rendered: Any) -> str:
        if any(rendered.weights):
            return f"all that would be learned lies beyond max_length {self._recipe.max_length}"
        return f"train_on {getattr(self._recipe, 'train_on', '')} picks no token of it"

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._pending:
            return
        table = pyarrow.Table.from_pylist(self._pending, schema=self._schema())
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self.path, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._pending = []

    def _schema(self) -> Any:
        import pyarrow

        ids = pyarrow.list_(pyarrow.int32())
        fields = [
            ("row_id", pyarrow.int64()),
            ("where", pyarrow.string()),
            ("input_ids", ids),
            ("labels", ids),
            ("example", pyarrow.string()),
        ]
        if self._weights:
            fields.append(("weights", pyarrow.list_(pyarrow.float32())))
        if not self._trained:
            fields += [("prompt_ids", ids), ("expected", pyarrow.string())]
        return pyarrow.schema(fields)


def _example_json(example: Example) -> str:
    value: dict[str, Any] = {"text": example.text}
    if example.shape == "messages":
        value = {"messages": list(example.messages), **({"tools": list(example.tools)} if example.tools else {})}
    elif example.shape == "prompt_completion":
        value = {"prompt": example.prompt, "completion": example.completion}
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
