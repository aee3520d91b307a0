"""Training rows that hold text of an evaluation, so that its result says what was learned by heart."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from kitchen_resources.formulas.similarity import is_unspaced, plain, runs, words

GRAM, GRAM_UNSPACED = 13, 30
"""Words in a row that two texts have in common by chance hardly ever (Brown et al. 2020, arXiv:2005.14165, C); and
letters of a script without spaces."""

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
    asked: Sequence[str]
    answered: Sequence[str]


class Evaluations:
    """The text of evaluations, as runs of 13 words, and as questions of fewer words.

    A run that several *questions* hold says nothing of any of them: instructions and templates are of that kind. Rows
    that ask the same, in one evaluation or in several, are one question. In memory are 20 bytes a word.

    Args:
        rows: The rows of all evaluations.
    """

    def __init__(self, rows: Iterable[EvaluationRow]) -> None:
        import numpy

        self._places: list[tuple[str, int, str]] = []
        held, owners, questions = array("Q"), array("I"), array("Q")
        for number, row in enumerate(rows):
            self._places.append((row.evaluation, row.row_id, row.where))
            grams = numpy.unique(_grams(row.asked, row.answered)[0])
            held.frombytes(grams.tobytes())
            owners.extend([number] * len(grams))
            questions.extend([_hash("\n".join(map(plain, row.asked or row.answered)))] * len(grams))
        hashes, question = numpy.frombuffer(held, numpy.uint64), numpy.frombuffer(questions, numpy.uint64)
        # By hash, and then by question: of the first and the last of one hash it shows whether there are several.
        order = numpy.lexsort((question, hashes))
        hashes, question = hashes[order], question[order]
        begins = numpy.flatnonzero(numpy.diff(hashes, prepend=hashes[:1] ^ numpy.uint64(1))) if len(hashes) else order
        ends = numpy.append(begins[1:], len(hashes)) - 1 if len(hashes) else order
        alone = question[begins] == question[ends]
        self._hashes = hashes[begins][alone]
        self._owners = numpy.frombuffer(owners, numpy.uint32)[order][begins][alone]

    def __len__(self) -> int:
        """How many rows they have."""
        return len(self._places)

    def find(self, asked: Sequence[str], answered: Sequence[str]) -> str:
        """What a training row holds of them, or "".

        Args:
            asked: Its questions.
            answered: Its answers.
        """
        import numpy

        if not len(self._hashes):
            return ""
        held, text_at = _grams(asked, answered)
        places = numpy.searchsorted(self._hashes, held)
        places[places == len(self._hashes)] = 0
        hits = numpy.flatnonzero(self._hashes[places] == held)
        if not len(hits):
            return ""
        hit = int(hits[0])
        evaluation, row_id, where = self._places[int(self._owners[places[hit]])]
        return f"{text_at(hit)} row {row_id} of evaluation {evaluation} ({where})"


def _grams(asked: Sequence[str], answered: Sequence[str]) -> tuple[Any, Callable[[int], str]]:
    """Hashes of a row's runs of words, and of its question where that is short; and what tells of the one at a place."""
    import numpy

    parts: list[Any] = []
    spans: list[tuple[list[str], int]] = []
    is_short = bool(asked)
    for place, text in enumerate((*asked, *answered)):
        found = words(text)
        size = GRAM_UNSPACED if is_unspaced(found) else GRAM
        # Short answers are given to many questions.
        if len(found) >= size:
            parts.append(runs(found, size))
            spans.append((found, size))
            is_short = is_short and place >= len(asked)
    if is_short:
        question = "\n".join(map(plain, asked))
        parts.append(numpy.array([_hash(f"question {question}")], numpy.uint64))
        spans.append(([question], 0))

    def text_at(place: int) -> str:
        for part, (found, size) in zip(parts, spans, strict=True):
            if place < len(part):
                if not size:
                    return f"asks {found[0][:_SHOWN]!r}, as"
                return f"holds {' '.join(found[place : place + size])[:_SHOWN]!r}, {size} words of"
            place -= len(part)
        raise IndexError(place)

    return (numpy.concatenate(parts) if parts else numpy.empty(0, numpy.uint64)), text_at


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))
