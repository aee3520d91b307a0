"""Figures of an evaluation: likelihoods, and how sure a mean or a share is.

What was not measured is NaN or an error, never 0.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

from kitchen_resources.errors import ConfigError, EvaluationError

# Above this many degrees of freedom the expansion for Student's t is exact to 1e-11 at 99.9 %.
_EXPANSION_FROM = 1000


def mean_nll(logprobs: Sequence[float], weights: Sequence[float]) -> float:
    """Mean negative log likelihood per weight, in nats: `-sum(logprob * weight) / sum(weight)`.

    Args:
        logprobs: Log probability of each target token, in nats. Shape [tokens].
        weights: Loss weight of each of these tokens, from 0 up. Shape [tokens].

    Returns:
        The mean; NaN when the weights sum to 0; infinite when a token with weight was impossible.

    Raises:
        EvaluationError: The lengths differ, or a weight is negative or not finite.
    """
    nll, weight = _weighted_nll(logprobs, weights)
    return nll / weight if weight else math.nan


def bits_per_byte(logprobs: Sequence[float], weights: Sequence[float], n_bytes: int) -> float:
    """Bits that the model spends on a byte of text: `-sum(logprob * weight) / (ln 2 * n_bytes)`.

    Unlike the NLL per token it compares models of different tokenizers.

    Args:
        logprobs: As in `mean_nll`.
        weights: As in `mean_nll`.
        n_bytes: UTF-8 bytes of the text that the weighted tokens stand for.

    Returns:
        Bits per byte; NaN when the weights sum to 0 or there are no bytes.

    Raises:
        EvaluationError: As in `mean_nll`, or `n_bytes` is negative.
    """
    if n_bytes < 0:
        raise EvaluationError(f"{n_bytes} is below 0", where="n_bytes", fix="count the bytes of the scored text")
    nll, weight = _weighted_nll(logprobs, weights)
    return nll / (math.log(2.0) * n_bytes) if weight and n_bytes else math.nan


def perplexity(nll: float) -> float:
    """`exp(nll)` of a mean NLL in nats: infinite beyond the range of a float, NaN for NaN."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def wilson_interval(passed: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): it holds at few rows and at shares near 0 and 1.

    Args:
        passed: Rows that passed.
        n: Rows in all.
        confidence: How often such an interval covers the true share, above 0 and below 1.

    Returns:
        Lower and upper bound, within 0 and 1.

    Raises:
        EvaluationError: There are no rows, or `passed` is not from 0 to `n`.
        ConfigError: The confidence is out of its bounds.
    """
    if n < 1:
        raise EvaluationError("nothing was scored", where="n", fix="evaluate at least one row")
    if not 0 <= passed <= n:
        raise EvaluationError(f"{passed} is not from 0 to n = {n}", where="passed", fix="count each row once")
    z = _normal_critical(confidence)
    share = passed / n
    shrink = 1.0 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n))
    # At the ends the bound is 0 or 1 by algebra; rounding would leave 1e-17 beside it.
    low = 0.0 if passed == 0 else centre - half
    high = 1.0 if passed == n else centre + half
    return low, high


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of a mean: `mean -+ t * s / sqrt(n)`, `s` with n - 1 in the denominator.

    It is not cut to the range of the values, and has no width when all of them are equal.

    Args:
        values: One finite number a row.
        confidence: How often such an interval covers the true mean, above 0 and below 1.

    Returns:
        Lower and upper bound; (NaN, NaN) for a single value, whose spread is not known.

    Raises:
        EvaluationError: There are no values, or one is not finite.
        ConfigError: The confidence is out of its bounds.
    """
    n = len(values)
    if n == 0:
        raise EvaluationError("nothing was scored", where="values", fix="evaluate at least one row")
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise EvaluationError(f"{value} is not finite", where=f"values[{index}]", fix="leave out unmeasured rows")
    _check_confidence(confidence)
    if n == 1:
        return math.nan, math.nan
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = t_critical(confidence, n - 1) * math.sqrt(variance / n)
    return mean - half, mean + half


def pass_at_k(n: int, passed: int, k: int) -> float:
    """Chance that at least one of `k` attempts at a problem passes, from `n` attempts (Chen et al. 2021, eq. 1).

    `1 - C(n - passed, k) / C(n, k)`: unbiased, where `1 - (1 - passed / n) ** k` is not.

    Args:
        n: Attempts that were scored.
        passed: Attempts of them that passed.
        k: Attempts that one has, from 1 to `n`.

    Returns:
        From 0 to 1.

    Raises:
        EvaluationError: `passed` is not from 0 to `n`, or `k` not from 1 to `n`: fewer attempts than `k` say nothing
            unbiased of it.
    """
    if not 0 <= passed <= n:
        raise EvaluationError(f"{passed} is not from 0 to n = {n}", where="passed", fix="count each attempt once")
    if not 1 <= k <= n:
        raise EvaluationError(f"{k} is not from 1 to n = {n}", where="k", fix="make at least k attempts")
    return 1.0 - math.comb(n - passed, k) / math.comb(n, k)


def t_critical(confidence: float, degrees_of_freedom: int) -> float:
    """The `t` with `P(|T| < t) = confidence` for Student's distribution.

    Right to about 1e-11 of its value up to a confidence of 0.9999.

    Up to 1000 degrees of freedom it inverts the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4 by
    bisection; above, it is the expansion 26.7.5 around the normal quantile.

    Args:
        confidence: Above 0 and below 1.
        degrees_of_freedom: From 1.

    Raises:
        ConfigError: A number is out of its bounds.
    """
    _check_confidence(confidence)
    if degrees_of_freedom < 1:
        raise ConfigError(
            f"{degrees_of_freedom} is below 1", where="degrees_of_freedom", fix="take two values or more"
        )
    if degrees_of_freedom > _EXPANSION_FROM:
        return _t_by_expansion(_normal_critical(confidence), degrees_of_freedom)
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _t_coverage(middle, degrees_of_freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees_of_freedom) * math.tan(high)


def _t_coverage(angle: float, degrees_of_freedom: int) -> float:
    """`P(|T| < t)` at `t = sqrt(degrees_of_freedom) * tan(angle)`: positive terms only, none cancel."""
    odd = degrees_of_freedom % 2
    cosine = math.cos(angle)
    term = cosine if odd else 1.0
    total = term if degrees_of_freedom > 1 else 0.0
    for k in range(2 + odd, degrees_of_freedom, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if odd:
        return 2.0 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def _t_by_expansion(z: float, degrees_of_freedom: int) -> float:
    v = float(degrees_of_freedom)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / v + g2 / v**2 + g3 / v**3 + g4 / v**4


def _normal_critical(confidence: float) -> float:
    _check_confidence(confidence)
    return NormalDist().inv_cdf(0.5 + confidence / 2.0)


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"{confidence} is not between 0 and 1", where="confidence", fix="write confidence: 0.95")


def _weighted_nll(logprobs: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    if len(logprobs) != len(weights):
        raise EvaluationError(
            f"{len(logprobs)} logprobs but {len(weights)} weights",
            where="weights",
            fix="give one weight a token",
        )
    for index, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0.0):
            raise EvaluationError(
                f"{weight} is not a finite number from 0 up",
                where=f"weights[{index}]",
                fix="give loss weights",
            )
    # A masked token doesn't count even when its logprob is -inf, and -inf * 0 would be NaN.
    terms = (-logprob * weight for logprob, weight in zip(logprobs, weights, strict=True) if weight)
    return math.fsum(terms), math.fsum(weights)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Student's t interval of a ratio of sums, such as a loss per token over rows of unequal length.

    Linearised (Cochran, Sampling Techniques, 3rd ed., eq. 6.4): the standard error is that of the residuals
    `numerator - ratio * denominator`, over the mean denominator.

    Args:
        numerators: One finite number a row.
        denominators: One positive number a row.
        confidence: How often such an interval covers the true ratio, above 0 and below 1.

    Returns:
        Lower and upper bound; (NaN, NaN) for a single row.

    Raises:
        EvaluationError: There are no rows, or the denominators sum to 0.
        ConfigError: The confidence is out of its bounds.
    """
    n = len(numerators)
    total = math.fsum(denominators)
    if n == 0 or total <= 0:
        raise EvaluationError("nothing was scored", where="denominators", fix="evaluate at least one row")
    _check_confidence(confidence)
    if n == 1:
        return math.nan, math.nan
    ratio = math.fsum(numerators) / total
    residuals = [top - ratio * bottom for top, bottom in zip(numerators, denominators, strict=True)]
    variance = math.fsum(residual**2 for residual in residuals) / (n - 1)
    half = t_critical(confidence, n - 1) * math.sqrt(variance / n) / (total / n)
    return ratio - half, ratio + half
