"""What is found by comparing prepared rows: with one another, with the evaluations, and with what serving shows a model.

Beside the prepared data and not in it: other evaluations leave the rows as they are.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.blobs.workplace import workplace
from kitchen_resources.datasets.contamination import EvaluationRow, Evaluations
from kitchen_resources.datasets.near_duplicates import NearDuplicates
from kitchen_resources.datasets.port import DatasetStore, Example, PreparedDataset, PreparedSplit
from kitchen_resources.datasets.questions import is_asked
from kitchen_resources.datasets.report import EXAMPLES_KEPT, Finding, finding_from_json
from kitchen_resources.datasets.rows import normalized_examples
from kitchen_resources.datasets.texts import texts_of, texts_of_example
from kitchen_resources.digests import canonical_json, digest_json
from kitchen_resources.errors import DataError
from kitchen_resources.formulas.similarity import words
from kitchen_resources.recipes.blocks import EvaluationConfig

INSPECTION_VERSION = 1
"""Raised by hand when the same rows would be found otherwise."""

_BATCH = 1000
_AROUND = 12


@dataclass(frozen=True)
class EvaluationRows:
    """The rows of an evaluation that trains nothing and is to be new to the model.

    Attributes:
        name: Of the evaluation.
        digest: Of the rows and of how they are read.
        rows: They.
    """

    name: str
    digest: str
    rows: Iterable[EvaluationRow]


def inspect(
    prepared: PreparedDataset, evaluations: Sequence[EvaluationRows], renderer: Any, content: ContentStore
) -> dict[str, Finding]:
    """Look for near duplicates, text of evaluations, and drift between training and serving; or find what was found.

    Args:
        prepared: The rows.
        evaluations: What is asked of the model later, but for a held-out share of the same data, whose prompts are
            others by the way it is split. A held-out data set of its own is compared without being named here.
        renderer: See `rendering.Renderer`.
        content: Where they are, and where the findings go.

    Returns:
        Findings by kind; see `report.COMPARED`.
    """
    named = [[each.name, each.digest] for each in evaluations]
    key = digest_json({"version": INSPECTION_VERSION, "prepared": prepared.key, "evaluations": named})
    found = content.blobs.get(f"inspected/{key}.json")
    if found is None:
        with workplace(content.blobs.scratch(), "inspect") as scratch, NearDuplicates(scratch) as near:
            findings = _Inspection(prepared, renderer, content, scratch, near).findings(evaluations)
        stored = {"prepared": prepared.key, "findings": {kind: asdict(each) for kind, each in findings.items()}}
        content.blobs.put_if_absent(f"inspected/{key}.json", canonical_json(stored))
        return findings
    return {kind: finding_from_json(each) for kind, each in json.loads(found.data)["findings"].items()}


def evaluation_rows(evaluation: EvaluationConfig, datasets: DatasetStore, conversational: bool) -> EvaluationRows:
    """The rows of an evaluation's own data set. Those that aren't valid are told of where they are asked.

    Args:
        evaluation: The evaluation.
        datasets: Where its data set is.
        conversational: Whether prompts and answers become conversations.

    Raises:
        DataError: There is no such data set, or it is of no known shape.
    """
    raw = datasets.open(evaluation.dataset, split=evaluation.split)

    def read() -> Iterator[EvaluationRow]:
        outcomes = normalized_examples(raw, evaluation.columns, None, conversational)
        examples = (outcome for outcome in outcomes if isinstance(outcome, Example) and is_asked(outcome))
        for example in islice(examples, evaluation.samples):
            yield EvaluationRow(evaluation.name, example.row_id, example.where, *texts_of_example(example))

    read_as = [raw.digest, dict(evaluation.columns), evaluation.samples, conversational]
    return EvaluationRows(evaluation.name, digest_json(read_as), read())


class _Inspection:
    def __init__(
        self, prepared: PreparedDataset, renderer: Any, content: ContentStore, folder: Path, near: NearDuplicates
    ) -> None:
        self._prepared = prepared
        self._renderer = renderer
        self._train = self._fetch(content, prepared.train, folder / "train.parquet")
        held_out = prepared.held_out
        self._held_out = self._fetch(content, held_out, folder / "held_out.parquet") if held_out else None
        self._near = near
        self._alike = 0

    @staticmethod
    def _fetch(content: ContentStore, split: PreparedSplit, path: Path) -> Path:
        content.get_file(split.blob, path)
        return path

    def findings(self, evaluations: Sequence[EvaluationRows]) -> dict[str, Finding]:
        """See `inspect`."""
        contaminated, drift = Finding("contaminated"), Finding("template_drift")
        asked_later = Evaluations(chain(self._own_held_out(), *(each.rows for each in evaluations)))
        for row in _rows(self._train, ["row_id", "where", "example", *self._token_column()]):
            example = json.loads(row["example"])
            asked, answered = self._compare(row["example"], example)
            if asked_later:
                contaminated.of += 1
                if said := asked_later.find(asked, answered):
                    contaminated.add(row["row_id"], row["where"], said)
            if "input_ids" in row and _is_answered(example):
                drift.of += 1
                if said := self._drift(example, row["input_ids"], row["labels"]):
                    drift.add(row["row_id"], row["where"], said)
        for row in _rows(self._held_out, ["example"]) if self._held_out else ():
            self._compare(row["example"], json.loads(row["example"]))
        return {each.kind: each for each in (self._near_duplicates(), contaminated, drift)}

    def _compare(self, text: str, example: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Look at a row for near duplicates; not at a problem, which may begin with the same words as all others.

        Returns:
            What it asks and what it answers; see `texts.texts_of`.
        """
        self._alike += "problem" not in example
        asked, answered = texts_of(example)
        self._near.add(text, [] if "problem" in example else words(" ".join((*asked, *answered))))
        return asked, answered

    def _own_held_out(self) -> Iterator[EvaluationRow]:
        """The rows of a held-out data set of its own, as an evaluation; none of a share of the same data."""
        if self._held_out is not None and "held_out" in self._prepared.raw:
            for row in _rows(self._held_out, ["row_id", "where", "example"]):
                yield EvaluationRow("held_out", row["row_id"], row["where"], *texts_of(json.loads(row["example"])))

    def _near_duplicates(self) -> Finding:
        """Near duplicates among the training rows, and of them among the held-out rows."""
        finding = Finding("near_duplicates", of=self._alike)
        found = self._near.find()
        places = self._places({place for pair in found[:EXAMPLES_KEPT] for place in pair[:2]})
        for row, other, likeness in found:
            if row in places:
                row_id, where = places[row]
                other_id, other_where = places[other]
                finding.add(row_id, where, f"as row {other_id} ({other_where}) in {likeness:.0%} of both")
            else:
                finding.count += 1
        return finding

    def _places(self, wanted: set[int]) -> dict[int, tuple[int, str]]:
        """Row id and place of rows by their number, the held-out ones after the training ones."""
        found: dict[int, tuple[int, str]] = {}
        number = 0
        for path, named in ((self._train, ""), (self._held_out, "held_out ")):
            for row in _rows(path, ["row_id", "where"]) if path and wanted else ():
                if number in wanted:
                    found[number] = (row["row_id"], named + row["where"])
                number += 1
        return found

    def _token_column(self) -> list[str]:
        """Where it isn't so by the way that rows are rendered, their tokens, to be held against a prompt's."""
        import pyarrow.parquet

        names = pyarrow.parquet.read_schema(self._train).names
        is_learned = self._renderer.train_on != "all_user_and_system_messages"
        wanted = "input_ids" in names and self._renderer.conversational and is_learned
        return ["input_ids", "labels"] if wanted else []

    def _drift(self, example: dict[str, Any], ids: list[int], labels: list[int]) -> str:
        """How what serving gives the model differs from what its answer was learned after, or ""."""
        *asked, _ = example["messages"]
        try:
            prompt: list[int] = self._renderer.generation_prompt(asked, tools=example.get("tools"))
        except DataError as error:
            return f"serving can't ask it: {error.what}"
        # A row that is cut before its answer is judged as far as it goes.
        at = next((place for place, (one, other) in enumerate(zip(prompt, ids, strict=False)) if one != other), None)
        if at is None or all(label == -100 for label in labels[at:]):
            return ""
        served, learned = (self._text(tokens[max(at - _AROUND, 0) : at + _AROUND]) for tokens in (prompt, ids))
        return f"token {at} differs: a server gives the model …{served!r}, and it learns after …{learned!r}"

    def _text(self, ids: list[int]) -> str:
        return str(
            self._renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )


def _is_answered(example: dict[str, Any]) -> bool:
    messages = example.get("messages", [])
    return len(messages) > 1 and messages[-1].get("role") == "assistant"


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            yield from batch.to_pylist()
