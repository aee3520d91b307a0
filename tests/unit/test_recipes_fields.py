"""Fields and bounds: each numeric field refuses what lies outside its bounds, found by walking over the class."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from recipe_cases import OTHER, nested, paths, recipe, value_at

from kitchen_resources.recipes.fields import FieldFacts, facts_of, recipe_field
from kitchen_resources.recipes.rules import check_values
from kitchen_resources.recipes.supervised import SupervisedRecipe

UNBOUNDED: set[str] = set()
"""Numeric fields that may be any finite number: a metric's value."""


def numeric() -> Iterator[tuple[str, FieldFacts, bool]]:
    """Path and facts of every numeric field, and whether it takes only whole numbers."""
    for path, field, facts in paths():
        text = str(field.annotation)
        if "int" in text or "float" in text:
            yield path, facts, "float" not in text


def just_outside(facts: FieldFacts, *, whole: bool) -> Iterator[tuple[float, str, str]]:
    """For each bound the nearest value that violates it, what is said, and what to write instead."""
    step = 1 if whole else 0
    if facts.minimum is not None:
        below = facts.minimum - 1 if step else math.nextafter(facts.minimum, -math.inf)
        yield below, f"must be at least {facts.minimum}", str(facts.minimum)
    if facts.above is not None:
        yield facts.above, f"must be greater than {facts.above}", f"a number above {facts.above}"
    if facts.maximum is not None:
        above = facts.maximum + 1 if step else math.nextafter(facts.maximum, math.inf)
        yield above, f"must be at most {facts.maximum}", str(facts.maximum)
    if facts.below is not None:
        yield facts.below, f"must be less than {facts.below}", f"a number below {facts.below}"


def just_inside(facts: FieldFacts, *, whole: bool) -> Iterator[float]:
    """For each bound the nearest value that keeps it."""
    yield from (bound for bound in (facts.minimum, facts.maximum) if bound is not None)
    if facts.above is not None:
        yield facts.above + 1 if whole else math.nextafter(facts.above, math.inf)
    if facts.below is not None:
        yield facts.below - 1 if whole else math.nextafter(facts.below, -math.inf)


OUTSIDE = [
    (path, facts, whole, bad, said, better)
    for path, facts, whole in numeric()
    for bad, said, better in just_outside(facts, whole=whole)
]
WITH_FLOATS = [(path, facts) for path, facts, whole in numeric() if not whole]


def typed(value: float, *, whole: bool) -> float:
    return int(value) if whole else float(value)


def problems_at(path: str, value: Any) -> list[tuple[str, str, str]]:
    """What is said of a recipe that is right but for the value at a path."""
    made = recipe(nested(path, value))
    assert value_at(made, path) == value or value != value
    return [problem for problem in check_values(made) if problem[0] == path]


def test_the_cases_are_all_the_fields_there_are() -> None:
    assert set(OTHER) == {path for path, _, _ in paths()}


def test_every_field_declares_what_it_is() -> None:
    assert {name for name, field in SupervisedRecipe.model_fields.items() if facts_of(field) is None} == set()
    for path, field, facts in paths():
        assert field.description, path
        assert field.description.endswith("."), path
        assert facts.moves in ("weights", "data", "base", "nothing"), path
        assert not field.is_required(), path


def test_every_numeric_field_has_a_lower_bound() -> None:
    without = {path for path, facts, _ in numeric() if facts.minimum is None and facts.above is None}
    assert without == UNBOUNDED
    assert len(OUTSIDE) >= 50


@pytest.mark.parametrize(
    ("path", "facts", "whole", "bad", "said", "better"), OUTSIDE, ids=[f"{c[0]} {c[4]}" for c in OUTSIDE]
)
def test_a_value_outside_a_bound_is_refused_by_name(
    path: str, facts: FieldFacts, whole: bool, bad: float, said: str, better: str
) -> None:
    bad = typed(bad, whole=whole)
    assert problems_at(path, bad) == [(path, f"{said}, got {bad}", f"{path}: {better}")]


@pytest.mark.parametrize(
    ("path", "facts", "whole", "bad", "said", "better"), OUTSIDE, ids=[f"{c[0]} {c[4]}" for c in OUTSIDE]
)
def test_the_value_to_write_instead_is_accepted(
    path: str, facts: FieldFacts, whole: bool, bad: float, said: str, better: str
) -> None:
    if not better.startswith("a number"):
        written = yaml.safe_load(f"value: {better}")["value"]
        assert problems_at(path, typed(written, whole=whole)) == []
        assert written == (facts.minimum if "least" in said else facts.maximum)
    for value in just_inside(facts, whole=whole):
        assert problems_at(path, typed(value, whole=whole)) == []


@pytest.mark.parametrize(("path", "facts"), WITH_FLOATS, ids=[path for path, _ in WITH_FLOATS])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_what_is_not_a_finite_number_is_refused(path: str, facts: FieldFacts, value: float) -> None:
    field, said, better = problems_at(path, value)[0]
    assert (field, said) == (path, f"must be a finite number, got {value}")
    assert better == f"{path}: {facts.nearest(value)}"
    assert "nan" not in better
    assert "inf" not in better.removeprefix(path).replace("finite", "")


def test_a_bound_is_written_in_full() -> None:
    (problem,) = problems_at("seed", 2**31 + 1)
    assert problem == ("seed", "must be at most 2147483648, got 2147483649", "seed: 2147483648")


@pytest.mark.parametrize("path", ["trainer_args", "evaluations.0.scorer_args"])
def test_a_number_in_a_free_form_value_is_finite_too(path: str) -> None:
    values = nested(path, {"a": {"b": [1.0, math.nan]}, "c": 2.0})
    found = [problem for problem in check_values(recipe(values)) if problem[0].startswith(path)]
    assert found == [(f"{path}.a.b.1", "must be a finite number, got nan", f"{path}.a.b.1: a finite number")]


def test_no_value_is_taken_for_out_of_bounds_where_there_is_none() -> None:
    assert check_values(recipe()) == []
    for path in UNBOUNDED:
        for value in (-1e30, 0.0, 1e30):
            assert problems_at(path, value) == []


@pytest.mark.parametrize(
    ("facts", "value", "nearest"),
    [
        (FieldFacts("nothing", minimum=1, maximum=5), -3, "1"),
        (FieldFacts("nothing", minimum=1, maximum=5), 8, "5"),
        (FieldFacts("nothing", minimum=0, below=1), math.inf, "a number below 1"),
        (FieldFacts("nothing", minimum=0, below=1), math.nan, "a finite number"),
        (FieldFacts("nothing", above=0), 0, "a number above 0"),
        (FieldFacts("nothing", above=0), math.inf, "a finite number"),
    ],
)
def test_what_to_write_instead(facts: FieldFacts, value: float, nearest: str) -> None:
    assert facts.nearest(value) == nearest


def test_facts_come_back_as_they_were_declared() -> None:
    declared: Any = recipe_field(
        1,
        "A number.",
        moves="data",
        minimum=0,
        above=-1,
        maximum=3,
        below=4,
        added_in=2,
        neutral=1,
        unordered=True,
    )
    assert facts_of(declared) == FieldFacts("data", 0, -1, 3, 4, 2, 1, True)
    assert (declared.default, declared.description) == (1, "A number.")
