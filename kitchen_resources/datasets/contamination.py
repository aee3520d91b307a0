"""Training rows that hold text of an evaluation, so that its result says what was learned by heart."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kitchen_resources.formulas.similarity import runs, words

GRAM = 13
"""Words in a row that two texts have in common by chance hardly ever (Brown et al. 2020, arXiv:2005.14165, C)."""

_SHOWN = 200


@dataclass(frozen=True)
class EvaluationRow:
    """A row of an evaluation.

    Attributes:
        evaluation: Its name.
        row_id: Number of the raw row.
        where: Its place.
        asked: Its questions.
        answered: Its answers.
    """

    evaluation: str
    row_id: int
    where: str
    asked: list[str]
    answered: list[str]


class Evaluations:
    """The text of evaluations, as runs of 13 words, and as questions of fewer words.

    A run that several of their rows hold says nothing of any of them: instructions and templates are of that kind. In
    memory are 12 bytes a word.

    Args:
        rows: The rows of all evaluations.
    """

    def __init__(self, rows: Iterable[EvaluationRow]) -> None:
        import numpy

        self._places: list[tuple[str, int, str]] = []
        hashes, owners = array("Q"), array("I")
        for number, row in enumerate(rows):
            self._places.append((row.evaluation, row.row_id, row.where))
            held = numpy.unique(_grams(row.asked, row.answered)[0])
            hashes.frombytes(held.tobytes())
            owners.extend([number] * len(held))
        found, first, counts = numpy.unique(
            numpy.frombuffer(hashes, numpy.uint64), return_index=True, return_counts=True
        )
        self._hashes = found[counts == 1]
        self._owners = numpy.frombuffer(owners, numpy.uint32)[first[counts == 1]]

    def __len__(self) -> int:
        """How many rows they have."""
        return len(self._places)

    def find(self, asked: list[str], answered: list[str]) -> str:
        """What a training row holds of them, or "".

        Args:
            asked: Its questions.
            answered: Its answers.
        """
        import numpy

        if not len(self._hashes):
            return ""
        held, texts = _grams(asked, answered)
        places = numpy.searchsorted(self._hashes, held)
        places[places == len(self._hashes)] = 0
        hits = numpy.flatnonzero(self._hashes[places] == held)
        if not len(hits):
            return ""
        hit = int(hits[0])
        evaluation, row_id, where = self._places[int(self._owners[places[hit]])]
        text, whole = texts(hit)
        said = "asks what it asks" if whole else f"holds {GRAM} words of it"
        return f"{said}, row {row_id} of evaluation {evaluation} ({where}): {text[:_SHOWN]!r}"


def _grams(asked: list[str], answered: list[str]) -> tuple[Any, Any]:
    """Hashes of a row's runs and short questions; and what tells the text of the one at a place."""
    import numpy

    parts: list[Any] = []
    spans: list[tuple[list[str], bool]] = []
    for text, is_question in [*((text, True) for text in asked), *((text, False) for text in answered)]:
        found = words(text)
        # Short answers are given to many questions.
        if found and (is_question or len(found) >= GRAM):
            short = len(found) < GRAM
            # A short question isn't the beginning of a longer one, which has other hashes: it has other lengths.
            parts.append(runs(found, GRAM))
            spans.append((found, short))

    def text_at(place: int) -> tuple[str, bool]:
        for part, (found, short) in zip(parts, spans, strict=True):
            if place < len(part):
                return " ".join(found if short else found[place : place + GRAM]), short
            place -= len(part)
        raise IndexError(place)

    return (numpy.concatenate(parts) if parts else numpy.empty(0, numpy.uint64)), text_at
