"""The built-in scorers, by exact scores."""

import pytest

from kitchen_resources.errors import ConfigError, EvaluationError
from kitchen_resources.formulas.scoring import (
    BUILT_IN,
    Score,
    contains,
    exact_match,
    numeric,
    regex,
    token_f1,
)


def test_built_in_scorers_are_found_by_name() -> None:
    assert list(BUILT_IN) == ["exact_match", "contains", "regex", "numeric", "token_f1"]
    assert [scorer("42", "42") for scorer in BUILT_IN.values()] == [
        Score(1.0, True),
        Score(1.0, True),
        Score(1.0, True, {"pattern": "42"}),
        Score(1.0, True, {"predicted": 42.0, "expected": 42.0, "difference": 0.0}),
        Score(1.0, True, {"precision": 1.0, "recall": 1.0}),
    ]


@pytest.mark.parametrize(
    ("prediction", "expected", "arguments", "passed"),
    [
        ("Paris", "Paris", {}, True),
        ("paris", "Paris", {}, False),
        ("paris", "Paris", {"case_sensitive": False}, True),
        ("STRASSE", "straße", {"case_sensitive": False}, True),
        ("Paris ", "Paris", {}, False),
        (" New \n York ", "New York", {"normalize_whitespace": True}, True),
        ("NewYork", "New York", {"normalize_whitespace": True}, False),
        ("", "", {}, True),
    ],
)
def test_exact_match(prediction: str, expected: str, arguments: dict[str, bool], passed: bool) -> None:
    assert exact_match(prediction, expected, **arguments) == Score(float(passed), passed)


@pytest.mark.parametrize(
    ("prediction", "expected", "arguments", "passed"),
    [
        ("The answer is 42.", "42", {}, True),
        ("The answer is 43.", "42", {}, False),
        ("It is PARIS", "Paris", {}, False),
        ("It is PARIS", "Paris", {"case_sensitive": False}, True),
        ("42", "The answer is 42", {}, False),
    ],
)
def test_contains(prediction: str, expected: str, arguments: dict[str, bool], passed: bool) -> None:
    assert contains(prediction, expected, **arguments) == Score(float(passed), passed)


def test_an_empty_expected_text_would_be_in_everything() -> None:
    for scorer, where in ((contains, "expected"), (regex, "expected")):
        with pytest.raises(EvaluationError) as refused:
            scorer("anything", "")
        assert refused.value.where == where


@pytest.mark.parametrize(
    ("prediction", "expected", "pattern", "passed"),
    [
        ("order 66 now", r"\d+", None, True),
        ("order now", r"\d+", None, False),
        ("order 66", "never read", r"order \d\d$", True),
        ("Order 66", "never read", r"(?i)ORDER", True),
        ("café", r"^caf.$", None, True),
        ("42\n", r"^42$", None, False),
    ],
)
def test_regex(prediction: str, expected: str, pattern: str | None, passed: bool) -> None:
    assert regex(prediction, expected, pattern=pattern) == Score(
        float(passed), passed, {"pattern": pattern or expected}
    )


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "(a+)+$", r"(\w+\s?)*!", ".*.*.*.*x"])
def test_patterns_that_hang_a_backtracking_engine_end(pattern: str) -> None:
    # (a|aa)+$ would take 2**20_000 steps in `re`.
    assert not regex("a" * 20_000 + "b", pattern).passed


@pytest.mark.parametrize("pattern", ["[", r"(a)\1", "(?=a)", "(?:(?:(?:a{1000}){1000}){1000}){1000}", "\ud800"])
def test_patterns_that_cannot_be_run_are_refused(pattern: str) -> None:
    with pytest.raises(EvaluationError, match="RE2") as refused:
        regex("aa", "never read", pattern=pattern)
    assert refused.value.where == "pattern"


@pytest.mark.parametrize(
    ("prediction", "expected", "arguments", "score"),
    [
        ("42", "42", {}, 1.0),
        ("42.001", "42", {"tolerance": 0.01}, 1.0),
        ("42.001", "42", {"tolerance": 0.001}, 1.0),  # inclusive, which the floats' difference is not
        ("2.0001", "2", {}, 1.0),
        ("2.00010001", "2", {}, 1 - 1.0001e-4 / 2),
        ("43", "42", {"tolerance": 0.5}, 1 - 1 / 42),
        ("0.7", "0.2", {}, 0.5),  # a difference of 0.5 against 1, the least divisor
        ("500", "42", {}, 0.0),
        ("42abc", "42", {}, 1.0),
        ("42 apples", "42 pears", {}, 1.0),
        ("  42.", "42", {}, 1.0),
        ("1,000", "1000", {}, 1.0),
        ("1,234,567.5", 1234567.5, {}, 1.0),
        ("1, 2, 3", "1", {}, 1.0),
        (".5", "0.5", {}, 1.0),
        ("0.5", ".5", {}, 1.0),
        ("-.5e1", "-5", {}, 1.0),
        ("+3", 3, {}, 1.0),
        ("\N{MINUS SIGN}3", "-3", {}, 1.0),
        ("1e-3", "0.001", {"tolerance": 0.0}, 1.0),
        ("0.30000000000000004", "0.3", {"tolerance": 0.0}, 1 - 4e-17),
        (42, "42", {}, 1.0),
    ],
)
def test_numeric(prediction: str | float, expected: str | float, arguments: dict[str, float], score: float) -> None:
    result = numeric(prediction, expected, **arguments)
    assert result.score == pytest.approx(score, rel=1e-12)


def test_numeric_passes_within_the_tolerance_only() -> None:
    assert numeric("42.001", "42", tolerance=0.01).passed
    assert not numeric("43", "42", tolerance=0.5).passed
    assert not numeric("42.0010000000000000001", "42", tolerance=0.001).passed
    assert numeric("43", "42", tolerance=0.5).details == {
        "predicted": 43.0,
        "expected": 42.0,
        "difference": 1.0,
    }


@pytest.mark.parametrize(
    "prediction", ["", "about 42", "1,5", "12,34", "1.2.3", "1,0000", "nan", "inf", "1e999", "-", "."]
)
def test_what_does_not_start_with_a_number_scores_zero(prediction: str) -> None:
    assert numeric(prediction, "1") == Score(0.0, False, {"predicted": None, "expected": 1.0})


@pytest.mark.parametrize("expected", ["", "forty-two", "nan", float("inf"), "1,5", True])
def test_an_expected_answer_that_is_no_number_is_refused(expected: str | float) -> None:
    with pytest.raises(EvaluationError, match="is not a number") as refused:
        numeric("1", expected)
    assert refused.value.where == "expected"


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_bad_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(ConfigError, match="tolerance"):
        numeric("1", "1", tolerance=tolerance)


@pytest.mark.parametrize(
    ("prediction", "expected", "score"),
    [
        ("the quick brown", "the quick brown fox", 6 / 7),
        ("hello", "world", 0.0),
        ("", "", 1.0),
        ("", "word", 0.0),
        ("word", "", 0.0),
        ("The FOX!", "the fox", 1.0),
        ("fox fox fox", "fox", 1.0),  # sets: how often doesn't count
        ("don't", "dont", 1.0),
        ("$1,000", "1000", 1.0),
        ("«Привет», мир…", "привет мир", 1.0),
        ("¿Qué?", "que\u0301", 1.0),  # composed and decomposed are one
        ("good 👍", "good 👎", 0.5),
        ("!", "!", 1.0),
        ("+", "-", 0.0),
        ("a b", "b c", 0.5),
    ],
)
def test_token_f1(prediction: str, expected: str, score: float) -> None:
    result = token_f1(prediction, expected)
    assert result.score == pytest.approx(score, rel=1e-12)
    assert result.passed is (score >= 0.5)


def test_token_f1_tells_precision_and_recall_and_passes_from_the_threshold_on() -> None:
    result = token_f1("the quick brown", "the quick brown fox")
    assert result.details == {"precision": 1.0, "recall": 0.75}
    assert token_f1("a b", "b c", threshold=0.5).passed
    assert not token_f1("a b", "b c", threshold=0.51).passed
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="threshold"):
            token_f1("a", "a", threshold=threshold)
