"""Scorers by name: the built-in ones, those of a code location, their options, and what their scores come to."""

import math
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.errors import ConfigError, EvaluationError
from kitchen_resources.evaluation import scorers
from kitchen_resources.evaluation.local import LocalEvaluator, _score, _score_measures
from kitchen_resources.evaluation.port import Measure
from kitchen_resources.evaluation.scorers import find_scorer, register_scorer, wrong_options
from kitchen_resources.formulas import scoring
from kitchen_resources.formulas.metrics import mean_interval, wilson_interval
from kitchen_resources.formulas.scoring import Score
from tests.tiny_models import evaluated, question, task, write_tiny_model

BUILT_IN = ("contains", "exact_match", "numeric", "regex", "token_f1")


@pytest.fixture(autouse=True)
def own_scorers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone when it is over."""
    monkeypatch.setattr(scorers, "_registered", {})


def lenient(prediction: str, expected: str, *, factor: float = 2.0, strict: bool = False) -> Score:
    return Score(min(1.0, factor * len(prediction) / 10), not strict)


def needing(prediction: str, expected: str, threshold: float) -> Score:
    return Score(threshold, True)


def open_ended(prediction: str, expected: str, *more: str, level: int, **options: Any) -> Score:
    return Score(float(level), bool(options))


# Names.


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_scorers_are_found_by_name(name: str) -> None:
    assert find_scorer(name) is getattr(scoring, name)


def test_an_unknown_scorer_is_refused_with_those_there_are() -> None:
    register_scorer("lenient", lenient)
    with pytest.raises(ConfigError) as unknown:
        find_scorer("exact")
    assert str(unknown.value) == (
        "evaluations.scorer: there is no scorer 'exact'\n"
        "  fix: one of contains, exact_match, judge, lenient, lm_eval, numeric, regex, token_f1, or register_scorer(…) yours"
    )


def test_own_scorers_are_registered_once() -> None:
    register_scorer("lenient", lenient)
    # A module that is imported under two names registers the same one again.
    register_scorer("lenient", lenient)
    assert find_scorer("lenient") is lenient
    for name in ("lenient", "exact_match"):
        with pytest.raises(ConfigError) as taken:
            register_scorer(name, needing)
        assert str(taken.value) == f"register_scorer: the scorer {name!r} exists already\n  fix: choose another name"
    assert find_scorer("lenient") is lenient
    assert find_scorer("exact_match") is scoring.exact_match


# Options.


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("exact_match", {}, None),
        ("exact_match", {"case_sensitive": False, "normalize_whitespace": True}, None),
        (
            "exact_match",
            {"case": False},
            "exact_match has no option 'case'; it has case_sensitive, normalize_whitespace",
        ),
        # What the kitchen gives is no option.
        (
            "exact_match",
            {"expected": "x"},
            "exact_match has no option 'expected'; it has case_sensitive, normalize_whitespace",
        ),
        ("numeric", {"tolerance": 0.5}, None),
        ("numeric", {"tolerance": -1}, "numeric can't take these options: -1 is not a finite number from 0 up"),
        ("numeric", {"tolerance": "much"}, "numeric can't take these options: must be real number, not str"),
        ("token_f1", {"threshold": 2.0}, "token_f1 can't take these options: 2.0 is not from 0 to 1"),
        ("regex", {"pattern": "a+"}, None),
        ("lenient", {}, None),
        ("lenient", {"factor": 3.0}, None),
        ("lenient", {"weight": 3.0}, "lenient has no option 'weight'; it has factor, strict"),
        ("needing", {"threshold": 0.5}, None),
        ("needing", {}, "needing needs the option 'threshold'"),
        ("open_ended", {"level": 1, "anything": "goes"}, None),
        ("open_ended", {"anything": "goes"}, "open_ended needs the option 'level'"),
        ("bare", {"x": 1}, "bare has no option 'x'; it has none"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], said: str | None) -> None:
    for scorer in (lenient, needing, open_ended):
        register_scorer(scorer.__name__, scorer)
    register_scorer("bare", lambda prediction, expected: Score(0.0, False))
    assert wrong_options(name, options) == said
    assert LocalEvaluator().check(name, options) == said


def test_options_of_an_unknown_scorer() -> None:
    said = LocalEvaluator().check("exact", {})
    assert said == (
        "there is no scorer 'exact'; one of contains, exact_match, judge, lm_eval, numeric, regex, token_f1, "
        "or register_scorer(…) yours"
    )


# Scores.


def score(name: str, answers: list[str], expected: list[str], **options: Any) -> list[Score]:
    questions = [question([1], text, where=f"rows:{n}") for n, text in enumerate(expected)]
    asked = task(questions, scorer=name, scorer_args=options)
    return _score(find_scorer(name), asked, answers)


def test_options_reach_the_scorer() -> None:
    assert [s.passed for s in score("exact_match", ["A", "b"], ["a", "b"])] == [False, True]
    assert [s.passed for s in score("exact_match", ["A", "b"], ["a", "b"], case_sensitive=False)] == [True, True]
    register_scorer("lenient", lenient)
    assert score("lenient", ["abc"], ["x"], factor=1.0, strict=True) == [Score(0.3, False)]


def test_what_a_scorer_raises_names_the_row() -> None:
    def fragile(prediction: str, expected: str) -> Score:
        return Score(1 / len(prediction), True)

    register_scorer("fragile", fragile)
    with pytest.raises(EvaluationError) as failed:
        score("fragile", ["a", " \n"], ["", ""])
    assert str(failed.value) == (
        "evaluation asked, rows:1: the scorer fragile failed: ZeroDivisionError('division by zero')\n"
        "  fix: correct the scorer or the row"
    )
    assert isinstance(failed.value.__cause__, ZeroDivisionError)


def test_what_a_scorer_refuses_names_the_row_too() -> None:
    with pytest.raises(EvaluationError) as refused:
        score("numeric", ["1", "2"], ["1", "two"])
    assert str(refused.value) == (
        "evaluation asked, rows:1: 'two' is not a number\n  fix: write it as 1234.5, or use exact_match"
    )


def test_wrong_options_are_not_the_rows_fault() -> None:
    with pytest.raises(ConfigError) as refused:
        score("token_f1", ["a"], ["a"], threshold=7.0)
    assert refused.value.where == "threshold"


@pytest.mark.parametrize("returned", [1.0, True, None, Score(math.nan, True), Score(math.inf, True)])
def test_a_scorer_returns_a_finite_score(returned: Any) -> None:
    register_scorer("loose", lambda prediction, expected: returned if expected == "bad" else Score(1.0, True))
    with pytest.raises(EvaluationError) as refused:
        score("loose", ["", ""], ["good", "bad"])
    assert str(refused.value) == (
        f"evaluation asked, rows:1: the scorer loose returned {returned!r}\n"
        "  fix: return kitchen_resources.formulas.scoring.Score(score, passed), with a finite score"
    )


# Measures.


def test_shares_have_wilsons_interval() -> None:
    low, high = wilson_interval(3, 8)
    scores = [Score(1.0, True)] * 3 + [Score(0.0, False)] * 5
    assert _score_measures(task(name="held_out"), scores) == {"held_out/exact_match": Measure(0.375, 8, low, high)}


def test_no_pass_is_a_zero_that_was_measured() -> None:
    _, high = wilson_interval(0, 4)
    assert _score_measures(task(), [Score(0.0, False)] * 4) == {"asked/exact_match": Measure(0.0, 4, 0.0, high)}


def test_partial_scores_have_students_interval_and_the_share_that_passed() -> None:
    values = [0.0, 0.5, 1.0, 0.75]
    scores = [Score(value, value >= 0.5) for value in values]
    low, high = mean_interval(values)
    share_low, share_high = wilson_interval(3, 4)
    assert _score_measures(task(scorer="token_f1"), scores) == {
        "asked/token_f1": Measure(0.5625, 4, low, high),
        "asked/token_f1_passed": Measure(0.75, 4, share_low, share_high),
    }


def test_a_score_that_passes_below_one_is_not_a_share() -> None:
    found = _score_measures(task(scorer="numeric"), [Score(1.0, True), Score(0.0, True)])
    assert found["asked/numeric"].value == 0.5
    assert found["asked/numeric_passed"].value == 1.0


def test_an_unknown_scorer_is_refused_before_any_answer_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_model(tmp_path / "model")
    made: list[Any] = []
    monkeypatch.setattr("kitchen_resources.evaluation.local._generate", lambda *args: made.append(args))
    with pytest.raises(ConfigError, match="there is no scorer 'exact'"):
        LocalEvaluator().evaluate(evaluated(model), [task([question([1])], scorer="exact")])
    assert made == []
