"""The interval of a ratio of sums, against values worked out by hand and by simulation."""

import math

import numpy
import pytest

from kitchen_resources.errors import ConfigError, EvaluationError
from kitchen_resources.formulas.metrics import mean_interval, ratio_interval

T_2 = 4.3026527297494638523
"""Student's t at 0.95 and 2 degrees of freedom."""


def test_ratio_interval_by_hand() -> None:
    # The ratio is 12/6 = 2, the residuals are 0, 2, -2, their variance 4, and the mean denominator is 2.
    half = T_2 * math.sqrt(4 / 3) / 2
    assert ratio_interval([2.0, 6.0, 4.0], [1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half), rel=1e-12)


def test_of_rows_of_one_length_it_is_the_interval_of_the_mean() -> None:
    values = [0.5, 2.0, 1.0, 4.5, 3.0]
    low, high = mean_interval(values)
    assert ratio_interval(values, [1.0] * 5) == pytest.approx((low, high), rel=1e-12)
    assert ratio_interval([7 * value for value in values], [7.0] * 5) == pytest.approx((low, high), rel=1e-12)
    assert ratio_interval(values, [1.0] * 5, confidence=0.8) == pytest.approx(
        mean_interval(values, confidence=0.8), rel=1e-12
    )


def test_rows_of_one_ratio_leave_no_doubt() -> None:
    assert ratio_interval([3.0, 30.0, 300.0], [1.0, 10.0, 100.0]) == pytest.approx((3.0, 3.0), abs=1e-12)


def test_long_rows_count_for_more() -> None:
    even = ratio_interval([1.0, 3.0, 1.0, 3.0], [1.0, 1.0, 1.0, 1.0])
    uneven = ratio_interval([1.0, 300.0, 1.0, 300.0], [1.0, 100.0, 1.0, 100.0])
    assert sum(even) / 2 == pytest.approx(2.0)
    assert sum(uneven) / 2 == pytest.approx(602 / 202)


def test_one_row_has_no_interval() -> None:
    assert all(math.isnan(bound) for bound in ratio_interval([2.0], [4.0]))


@pytest.mark.parametrize(("numerators", "denominators"), [([], []), ([0.0, 0.0], [0.0, 0.0])])
def test_nothing_scored_has_no_ratio(numerators: list[float], denominators: list[float]) -> None:
    with pytest.raises(EvaluationError, match="denominators: nothing was scored\n  fix: evaluate at least one row"):
        ratio_interval(numerators, denominators)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, math.nan])
def test_ratio_confidence_is_refused(confidence: float) -> None:
    for rows in ([1.0], [1.0, 2.0]):
        with pytest.raises(ConfigError) as refused:
            ratio_interval(rows, rows, confidence=confidence)
        assert refused.value.where == "confidence"


def test_it_covers_the_true_ratio_as_often_as_it_says() -> None:
    # Rows of 1 to 80 tokens; each token costs 2 nats on average, with a spread within and between rows.
    random = numpy.random.default_rng(3)
    covered = 0
    for _ in range(400):
        tokens = random.integers(1, 81, size=60)
        losses = [float(random.normal(2.0, 0.5) * n + random.normal(0.0, math.sqrt(n))) for n in tokens]
        low, high = ratio_interval(losses, tokens.tolist())
        covered += low <= 2.0 <= high
    assert 0.92 <= covered / 400 <= 0.98
