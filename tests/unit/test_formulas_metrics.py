"""Likelihoods and intervals, against values computed to 20 digits elsewhere."""

import math

import pytest

from kitchen_resources.errors import ConfigError, EvaluationError
from kitchen_resources.formulas.metrics import (
    bits_per_byte,
    mean_interval,
    mean_nll,
    perplexity,
    t_critical,
    wilson_interval,
)


def test_mean_nll() -> None:
    assert mean_nll([-1, -2, -3], [0, 1, 1]) == 2.5
    assert mean_nll([-1.0, -2.0], [1.0, 0.5]) == pytest.approx(2.0 / 1.5, rel=1e-15)
    assert mean_nll([-0.1] * 10, [1.0] * 10) == 0.1  # a running sum gives 0.09999999999999999


def test_a_mean_over_no_weight_is_not_a_number() -> None:
    assert math.isnan(mean_nll([-1.0, -2.0], [0.0, 0.0]))
    assert math.isnan(mean_nll([], []))
    assert math.isnan(bits_per_byte([-1.0], [0.0], 5))
    assert math.isnan(bits_per_byte([-1.0], [1.0], 0))


def test_impossible_tokens_count_only_with_weight() -> None:
    assert mean_nll([-math.inf, -2.0], [0.0, 1.0]) == 2.0
    assert mean_nll([-math.inf, -2.0], [1.0, 1.0]) == math.inf
    assert math.isnan(mean_nll([math.nan, -2.0], [1.0, 1.0]))


def test_bits_per_byte() -> None:
    assert bits_per_byte([-math.log(2.0)] * 8, [1] * 8, 4) == pytest.approx(2.0, rel=1e-15)
    assert bits_per_byte([-1.0, -2.0, -3.0], [0, 1, 1], 10) == pytest.approx(0.5 / math.log(2.0), rel=1e-15)


def test_likelihoods_refuse_what_does_not_fit() -> None:
    with pytest.raises(EvaluationError, match="2 logprobs but 1 weights"):
        mean_nll([-1.0, -2.0], [1.0])
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(EvaluationError) as refused:
            bits_per_byte([-1.0, -2.0], [1.0, weight], 3)
        assert refused.value.where == "weights[1]"
    with pytest.raises(EvaluationError) as refused:
        bits_per_byte([-1.0], [1.0], -1)
    assert refused.value.where == "n_bytes"


def test_perplexity() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(50257)) == pytest.approx(50257, rel=1e-12)
    assert perplexity(1000.0) == math.inf
    assert perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))


@pytest.mark.parametrize(
    ("passed", "n", "confidence", "low", "high"),
    [
        (8, 10, 0.95, 0.490162471536641703, 0.943317848545624745),
        (1, 2, 0.95, 0.0945312057342307131, 0.905468794265769287),
        (0, 10, 0.95, 0.0, 0.277532799862889253),
        (200, 200, 0.95, 0.981154673622733422, 1.0),
        (171, 200, 0.95, 0.799513324692184758, 0.897106493579955971),
        (3, 7, 0.9, 0.186443190363955996, 0.710522908986407176),
        (50, 1000, 0.99, 0.0350250757225324408, 0.070906972690533707),
        (1, 1, 0.5, 0.687315255917416691, 1.0),
    ],
)
def test_wilson_interval(passed: int, n: int, confidence: float, low: float, high: float) -> None:
    assert wilson_interval(passed, n, confidence=confidence) == pytest.approx((low, high), rel=1e-12)


def test_wilson_interval_is_closed_at_the_ends_and_symmetric() -> None:
    for n in (1, 7, 10, 200):
        assert wilson_interval(0, n)[0] == 0.0
        assert wilson_interval(n, n)[1] == 1.0
        assert 0.0 < wilson_interval(0, n)[1] < 1.0
        for passed in range(n + 1):
            low, high = wilson_interval(passed, n)
            mirrored = wilson_interval(n - passed, n)
            assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-14)
            assert 0.0 <= low < passed / n < high <= 1.0 or passed in (0, n)


@pytest.mark.parametrize(("passed", "n", "where"), [(0, 0, "n"), (-1, 5, "passed"), (6, 5, "passed")])
def test_wilson_interval_refuses_counts_that_cannot_be(passed: int, n: int, where: str) -> None:
    with pytest.raises(EvaluationError) as refused:
        wilson_interval(passed, n)
    assert refused.value.where == where


@pytest.mark.parametrize(
    ("confidence", "degrees_of_freedom", "expected"),
    [
        (0.95, 1, 12.706204736174704646),
        (0.95, 2, 4.3026527297494638523),
        (0.95, 3, 3.1824463052837095927),
        (0.95, 4, 2.7764451051977943578),
        (0.95, 5, 2.5705818356363155147),
        (0.95, 10, 2.2281388519862747484),
        (0.95, 29, 2.0452296421327042982),
        (0.95, 30, 2.04227245630123831),
        (0.95, 100, 1.9839715185235522866),
        (0.95, 999, 1.9623414611334499787),
        (0.95, 1000, 1.962339080826408485),
        (0.95, 1001, 1.9623367052808799185),
        (0.95, 100_000, 1.9599877075346096386),
        (0.8, 1, 3.0776835371752534026),
        (0.8, 4, 1.5332062740589439108),
        (0.99, 1, 63.656741162871580995),
        (0.99, 10, 3.1692726726169512346),
        (0.99, 5000, 2.5768129665562811215),
        (0.999, 1, 636.61924876871961621),
        (0.999, 2, 31.599054576443620733),
        (0.999, 1000, 3.3002826484239129098),
        (0.999, 1001, 3.3002728760660091287),
    ],
)
def test_student_t(confidence: float, degrees_of_freedom: int, expected: float) -> None:
    assert t_critical(confidence, degrees_of_freedom) == pytest.approx(expected, rel=1e-12)


def test_mean_interval() -> None:
    # mean 3, s = sqrt(2.5), n = 5: half a width of t(0.95, 4) * sqrt(0.5)
    half = 2.7764451051977943578 * math.sqrt(0.5)
    assert mean_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - half, 3 + half), rel=1e-12)
    assert mean_interval([0.0, 1.0], confidence=0.99) == pytest.approx(
        (0.5 - 63.656741162871580995 / 2, 0.5 + 63.656741162871580995 / 2), rel=1e-12
    )
    assert mean_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)


def test_the_mean_of_one_value_has_no_known_interval() -> None:
    assert all(math.isnan(bound) for bound in mean_interval([0.5]))


def test_mean_interval_refuses_what_was_not_measured() -> None:
    with pytest.raises(EvaluationError, match="nothing was scored"):
        mean_interval([])
    with pytest.raises(EvaluationError) as refused:
        mean_interval([0.5, math.nan])
    assert refused.value.where == "values[1]"


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 95, math.nan])
def test_a_bad_confidence_is_refused(confidence: float) -> None:
    for call in (
        lambda: wilson_interval(1, 2, confidence=confidence),
        lambda: mean_interval([0.5], confidence=confidence),
        lambda: t_critical(confidence, 3),
    ):
        with pytest.raises(ConfigError) as refused:
            call()
        assert refused.value.where == "confidence"


def test_t_needs_a_degree_of_freedom() -> None:
    with pytest.raises(ConfigError, match="degrees_of_freedom"):
        t_critical(0.95, 0)
