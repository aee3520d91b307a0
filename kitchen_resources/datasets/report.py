"""The row report: what was found in a data set, with row ids and reasons, and whether it may be trained on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kitchen_resources.errors import DataError
from kitchen_resources.recipes.blocks import RowLimits

EXAMPLES_KEPT = 20

KINDS = {
    "invalid": "wrong type, role or shape; not trained on",
    "untrained": "no token would be trained; not trained on",
    "truncated": "longer than max_length, cut",
    "duplicates": "repeats an earlier row exactly",
    "overlap": "a held-out row whose prompt is also trained on",
}
"""Kinds of finding of one row after another, named as fields of `RowLimits`."""

COMPARED = {
    "near_duplicates": "nearly repeats an earlier row: four fifths of both, by runs of five words",
    "contaminated": "holds a question of an evaluation, or 13 words of it in a row",
    "template_drift": "learned after other tokens than a server gives the model",
}
"""Kinds that are found by comparing prepared rows, likewise; see `inspection`."""

ALL_KINDS = {**KINDS, **COMPARED}


@dataclass
class Finding:
    """All rows with one kind of defect: how many of how many, and the first of them by id, place and reason."""

    kind: str
    count: int = 0
    of: int = 0
    examples: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of rows, 0 to 1."""
        return self.count / self.of if self.of else 0.0

    def add(self, row_id: int, where: str, reason: str) -> None:
        """Count a row, and keep it when it is among the first."""
        self.count += 1
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append((row_id, where, reason))


@dataclass
class PairLengths:
    """How the lengths of chosen and rejected answers differ.

    A model can learn to write more where the chosen answers are the longer ones (Singhal et al. 2023,
    arXiv:2310.03716), and its accuracy on held-out pairs is then no sign of better answers.
    """

    pairs: int = 0
    chosen_longer: int = 0
    same_length: int = 0
    chosen_tokens: int = 0
    rejected_tokens: int = 0

    def add(self, chosen: int, rejected: int) -> None:
        """Count a pair whose answers have so many tokens."""
        self.pairs += 1
        self.chosen_longer += chosen > rejected
        self.same_length += chosen == rejected
        self.chosen_tokens += chosen
        self.rejected_tokens += rejected

    def measures(self) -> dict[str, float]:
        """What the lengths say of the pairs, of which there is at least one.

        Returns:
            `pairs`: their number. `chosen_longer`, `same_length`: shares. `mean_chosen_tokens`, `mean_rejected_tokens`.
            `longer_accuracy`: share that a reader gets right who always takes the longer answer, and tosses a coin where
            there is none; 0.5 is no bias.
        """
        return {
            "pairs": self.pairs,
            "chosen_longer": self.chosen_longer / self.pairs,
            "same_length": self.same_length / self.pairs,
            "mean_chosen_tokens": self.chosen_tokens / self.pairs,
            "mean_rejected_tokens": self.rejected_tokens / self.pairs,
            "longer_accuracy": (self.chosen_longer + self.same_length / 2) / self.pairs,
        }


@dataclass
class RowReport:
    """See the module.

    Attributes:
        shape: Shape of the rows.
        rows_read: Raw rows.
        rows_trained: Rows to train on.
        rows_held_out: Rows kept from training.
        tokens: Tokens of the training rows.
        trained_tokens: Tokens of them that have a loss.
        cut_tokens: Tokens beyond `max_length` that were cut.
        longest: Tokens of the longest row, before it was cut.
        lengths: Rows by length in tokens: upper bound -> count, in powers of two.
        findings: By kind.
        samples: A few training rows: id, what the model reads, what it learns; of pairs prompt, chosen and rejected.
        pairs: Of preference pairs, what their lengths give away: see `PairLengths.measures`. Else empty.
    """

    shape: str = ""
    rows_read: int = 0
    rows_trained: int = 0
    rows_held_out: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    cut_tokens: int = 0
    longest: int = 0
    lengths: dict[int, int] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=lambda: {kind: Finding(kind) for kind in KINDS})
    samples: list[dict[str, Any]] = field(default_factory=list)
    pairs: dict[str, float] = field(default_factory=dict)

    def count_length(self, tokens: int) -> None:
        """Add a row's length to the histogram."""
        self.longest = max(self.longest, tokens)
        bound = 1 << max(tokens - 1, 0).bit_length()
        self.lengths[bound] = self.lengths.get(bound, 0) + 1

    def exceeded(self, limits: RowLimits) -> dict[str, str]:
        """The kinds of finding whose share is above the recipe's limit: kind -> what to say."""
        said = {}
        for kind, finding in self.findings.items():
            limit = getattr(limits, kind)
            if finding.count and finding.share > limit:
                said[kind] = (
                    f"{finding.count} of {finding.of} rows ({finding.share:.2%}, limit {limit:.2%}): {ALL_KINDS[kind]}. "
                    + "; ".join(f"row {row_id} ({where}): {reason}" for row_id, where, reason in finding.examples[:3])
                )
        return said

    def require(self, limits: RowLimits, where: str) -> None:
        """Refuse the data set when a limit is exceeded.

        Raises:
            DataError: Naming kind, share, limit and the first rows.
        """
        exceeded = self.exceeded(limits)
        if exceeded:
            kinds = ", ".join(exceeded)
            raise DataError(
                "\n".join(f"{kind}: {said}" for kind, said in exceeded.items()),
                where=where,
                fix=f"correct those rows, or accept them: row_limits: {{{kinds.split(', ')[0]}: SHARE}}",
            )

    def as_json(self) -> dict[str, Any]:
        """The report as stored: without what its rows have no use for, so that it is the same as it was before."""
        stored = {
            **asdict(self),
            "lengths": {str(bound): count for bound, count in sorted(self.lengths.items())},
        }
        return stored if self.pairs else {name: value for name, value in stored.items() if name != "pairs"}


def report_from_json(value: Mapping[str, Any]) -> RowReport:
    """A stored report."""
    findings = {kind: finding_from_json(item) for kind, item in value["findings"].items()}
    lengths = {int(bound): count for bound, count in value["lengths"].items()}
    return RowReport(**{**value, "findings": findings, "lengths": lengths})


def finding_from_json(value: Mapping[str, Any]) -> Finding:
    """A stored finding."""
    examples = [(row_id, where, reason) for row_id, where, reason in value["examples"]]
    return Finding(value["kind"], value["count"], value["of"], examples)
