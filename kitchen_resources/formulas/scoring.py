"""Scorers: how well one predicted text answers what was expected.

Each takes a prediction and the row's expected answer and returns a `Score`. They are pure: the same two texts
give the same score on every machine.
"""

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Context, Decimal
from typing import Any

from kitchen_resources.errors import ConfigError, EvaluationError

# A number at the start of a text: sign, digits with or without commas at every third, fraction, exponent.
# What follows may not go on with the number: `1,5` and `1.2.3` are no numbers, `1, 2` begins with 1.
_NUMBER = re.compile(
    r"\s*([+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![0-9]|[.,][0-9])"
)
_EXACT = Context(prec=60)


@dataclass(frozen=True)
class Score:
    """What a scorer says of one prediction.

    Attributes:
        score: From 0 to 1.
        passed: Whether the prediction counts as right.
        details: What the score was made from, as JSON values.
    """

    score: float
    passed: bool
    details: dict[str, Any] = field(default_factory=dict)


def exact_match(
    prediction: str, expected: str, *, case_sensitive: bool = True, normalize_whitespace: bool = False
) -> Score:
    """1 when the two texts are the same, else 0.

    Args:
        prediction: The model's text. Nothing is stripped from it unless `normalize_whitespace` is set.
        expected: The row's answer.
        case_sensitive: Whether upper and lower case differ.
        normalize_whitespace: Whether runs of white space count as one space, and none at the ends.
    """
    left, right = (_folded(text, case_sensitive) for text in (prediction, expected))
    if normalize_whitespace:
        left, right = " ".join(left.split()), " ".join(right.split())
    return _all_or_nothing(left == right)


def contains(prediction: str, expected: str, *, case_sensitive: bool = True) -> Score:
    """1 when the expected text is somewhere in the prediction, else 0.

    Raises:
        EvaluationError: `expected` is empty, and so in every text.
    """
    if not expected:
        raise EvaluationError(
            "the expected text is empty: every prediction contains it", where="expected", fix="drop the row"
        )
    return _all_or_nothing(_folded(expected, case_sensitive) in _folded(prediction, case_sensitive))


def regex(prediction: str, expected: str, *, pattern: str | None = None) -> Score:
    r"""1 when the pattern is found somewhere in the prediction, else 0.

    The pattern may come from a data row, so it runs in RE2, through pyarrow: time grows with the length of
    the text and never exponentially, and memory is bounded. In exchange there are no look-arounds and no back
    references, `\d` and `\w` are ASCII, and `$` is the very end of the text, also before a last line break.

    Args:
        prediction: The model's text.
        expected: The row's pattern, used when `pattern` is None.
        pattern: One pattern for all rows.

    Raises:
        EvaluationError: The pattern is empty, or RE2 can't read it.
    """
    import pyarrow
    import pyarrow.compute

    wanted = expected if pattern is None else pattern
    where = "expected" if pattern is None else "pattern"
    if not wanted:
        raise EvaluationError("the pattern is empty: it is in every text", where=where, fix="write what to look for")
    try:
        found = pyarrow.compute.match_substring_regex(pyarrow.scalar(prediction, pyarrow.string()), pattern=wanted)
    except ValueError as error:  # ArrowInvalid is one, and so is a text that is not valid Unicode
        raise EvaluationError(
            f"pattern {wanted[:80]!r} can't be used: {error}",
            where=where,
            fix="write it in RE2's syntax: no look-around, no back reference, counts up to 1000",
        ) from error
    return _all_or_nothing(bool(found.as_py()), pattern=wanted)


def numeric(prediction: str | float, expected: str | float, *, tolerance: float = 1e-4) -> Score:
    """1 when the prediction starts with a number that is at most `tolerance` away from the expected one.

    Otherwise the score is `1 - difference / max(|expected|, 1)`, at least 0; 0 when the prediction doesn't
    start with a number. Differences are taken in decimal, so that the tolerance is inclusive as it is
    written: 2.0001 is 1e-4 away from 2, which the floats deny.

    White space before the number and any text behind it are passed over, on both sides: `42abc` is 42.
    `1,000` is 1000, where a plain prefix parser reads 1; `.5` is 0.5; a decimal comma, as in `1,5`, is not a
    number.

    Args:
        prediction: The model's text.
        expected: The row's number.
        tolerance: The largest difference that passes.

    Raises:
        EvaluationError: The expected answer is not a finite number.
        ConfigError: The tolerance is not a finite number from 0 up.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(
            f"{tolerance} is not a finite number from 0 up", where="tolerance", fix="write tolerance: 1.0e-4"
        )
    goal, guess = _number(expected), _number(prediction)
    if goal is None:
        raise EvaluationError(
            f"{str(expected)[:80]!r} is not a number",
            where="expected",
            fix="write it as 1234.5, or use exact_match",
        )
    if guess is None:
        return Score(0.0, False, {"predicted": None, "expected": float(goal)})
    difference = abs(_EXACT.subtract(guess, goal))
    passed = difference <= Decimal(repr(float(tolerance)))
    score = 1.0 if passed else max(0.0, 1.0 - float(difference) / max(abs(float(goal)), 1.0))
    details = {"predicted": float(guess), "expected": float(goal), "difference": float(difference)}
    return Score(score, passed, details)


def token_f1(prediction: str, expected: str, *, threshold: float = 0.5) -> Score:
    """F1 of the two sets of words: the harmonic mean of precision and recall, in the manner of SQuAD.

    Words are what white space divides, without case and punctuation; how often one occurs doesn't count. Two
    texts without any word score 1 when they are the same and 0 when they aren't. A language written without
    spaces has one word a sentence here: use another scorer for it.

    Args:
        prediction: The model's text.
        expected: The row's answer.
        threshold: The lowest score that passes, 0 to 1.

    Raises:
        ConfigError: The threshold is out of its bounds.
    """
    if not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"{threshold} is not from 0 to 1", where="threshold", fix="write threshold: 0.5")
    guess, goal = _words(prediction), _words(expected)
    common = len(guess & goal)
    if not guess and not goal:
        precision = recall = score = float(prediction.split() == expected.split())
    else:
        precision = common / len(guess) if guess else 0.0
        recall = common / len(goal) if goal else 0.0
        score = 2 * common / (len(guess) + len(goal))
    return Score(score, score >= threshold, {"precision": precision, "recall": recall})


BUILT_IN: dict[str, Callable[..., Score]] = {
    scorer.__name__: scorer for scorer in (exact_match, contains, regex, numeric, token_f1)
}


def _all_or_nothing(passed: bool, **details: Any) -> Score:
    return Score(float(passed), passed, details)


def _folded(text: str, case_sensitive: bool) -> str:
    return text if case_sensitive else text.casefold()


def _number(value: str | float) -> Decimal | None:
    match = _NUMBER.match(str(value).replace("\N{MINUS SIGN}", "-"))
    if match is None:
        return None
    digits = match[1].replace(",", "")
    return Decimal(digits) if math.isfinite(float(digits)) else None


def _words(text: str) -> set[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return set("".join(character for character in folded if not _is_punctuation(character)).split())


def _is_punctuation(character: str) -> bool:
    # Punctuation and mathematical, currency and modifier symbols, of all scripts. Other symbols, emoji among
    # them, carry meaning of their own.
    category = unicodedata.category(character)
    return category[0] == "P" or category in ("Sm", "Sc", "Sk")
