"""Preference pairs and their recipes, for the tests of data sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kitchen_resources.datasets.port import Example
from kitchen_resources.datasets.report import RowReport
from kitchen_resources.datasets.rows import Outcome, normalized_examples
from kitchen_resources.recipes.preference import PreferenceRecipe
from tests.unit.dataset_rows import Row, raw_of, write_jsonl
from tests.unit.preparing import END, NEWLINE, START, Pantry

Q = {"role": "user", "content": "Q"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
S = {"role": "system", "content": "S"}
ACCEPT_ALL = dict.fromkeys(("invalid", "untrained", "truncated", "duplicates", "overlap"), 1.0)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def pair(prompt: Any, chosen: Any, rejected: Any, **others: Any) -> dict[str, Any]:
    """A row with a prompt and two answers."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **others}


def preferring(dataset: Path | str, **fields: Any) -> PreferenceRecipe:
    """A recipe that holds nothing out unless it says so."""
    return PreferenceRecipe(**{"model": "embedded:tiny", "dataset": str(dataset), "held_out": "0", **fields})


def _outcomes(rows: tuple[Row, ...], conversational: bool, columns: Mapping[str, str] | None) -> list[Outcome]:
    return list(normalized_examples(raw_of(*rows), columns or {}, None, conversational, "preference"))


def pairs_of(*rows: Row, conversational: bool = True, columns: Mapping[str, str] | None = None) -> list[Example]:
    """Rows as pairs; a row that isn't valid fails the test with its reason."""
    outcomes = _outcomes(rows, conversational, columns)
    invalid = [outcome for outcome in outcomes if not isinstance(outcome, Example)]
    assert not invalid, invalid
    return [outcome for outcome in outcomes if isinstance(outcome, Example)]


def reasons_of(*rows: Row, conversational: bool = True, columns: Mapping[str, str] | None = None) -> dict[int, str]:
    """What is wrong with rows: row id -> reason."""
    outcomes = _outcomes(rows, conversational, columns)
    return {outcome[0].row_id: outcome[1] for outcome in outcomes if not isinstance(outcome, Example)}


def asked_ids(question: str) -> list[int]:
    """Token ids of a question in the embedded template, up to where the assistant starts to write."""
    return [START, *f"user\n{question}".encode(), END, NEWLINE, START, *b"assistant\n"]


def said_ids(answer: str) -> list[int]:
    """Token ids of an answer in the embedded template, with the token that ends its turn."""
    return [*answer.encode(), END]


def prepare(pantry: Pantry, tmp_path: Path, rows: list[dict[str, Any]], **fields: Any) -> Any:
    """Rows in a file, prepared whatever is wrong with them: the prepared data and the report."""
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    return pantry.prepare(preferring(path, **{"row_limits": ACCEPT_ALL, **fields}))  # type: ignore[arg-type]


def found(report: RowReport) -> dict[str, dict[int, str]]:
    """What a report found: kind -> row id -> reason."""
    kinds = report.findings.items()
    return {kind: {row: why for row, _, why in finding.examples} for kind, finding in kinds if finding.count}
