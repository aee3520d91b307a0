"""Returns and advantages, by exact numbers."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from kitchen_resources.errors import ConfigError, DataError
from kitchen_resources.formulas.advantages import discounted_returns, gae, group_centered, kl_penalty, normalize


@pytest.mark.parametrize(
    ("rewards", "gamma", "returns"),
    [
        ([1, 2, 3], 1.0, [6, 5, 3]),
        ([1, 1, 1], 0.9, [2.71, 1.9, 1.0]),
        ([1, 2, 3], 0.0, [1, 2, 3]),
        ([], 0.9, []),
    ],
)
def test_discounted_returns(rewards: list[float], gamma: float, returns: list[float]) -> None:
    assert discounted_returns(rewards, gamma) == pytest.approx(returns, abs=1e-12)


def test_gae() -> None:
    assert gae([1, 1, 1], [0.5, 0.5, 0.5]) == pytest.approx([2.373067625, 1.46525, 0.5], abs=1e-12)
    # lam 1 gives the returns over the values, lam 0 the one step's surprise.
    assert gae([1, 2, 3], [0.5, 1.5, 2.0], gamma=1.0, lam=1.0) == pytest.approx([5.5, 3.5, 1.0], abs=1e-12)
    assert gae([1, 2, 3], [0.5, 1.5, 2.0], gamma=1.0, lam=0.0) == pytest.approx([2.0, 2.5, 1.0], abs=1e-12)
    assert gae([], []) == []


def test_normalize() -> None:
    expected = [-1.414213558837561, -0.7071067794187805, 0, 0.7071067794187805, 1.414213558837561]
    assert normalize([1, 2, 3, 4, 5]) == pytest.approx(expected, abs=1e-12)
    assert normalize([2, 2]) == [0.0, 0.0]
    assert normalize([1.0]) == [1.0]
    assert normalize([]) == []


def test_group_centered() -> None:
    assert group_centered([1, 0.5, 0]) == [0.5, 0.0, -0.5]
    assert group_centered([3, 3]) == [0.0, 0.0]
    assert group_centered([0.1] * 10) == [0.0] * 10  # a running sum gives 1.4e-17
    assert group_centered([]) == []


def test_kl_penalty_moves_no_advantage_on_average() -> None:
    sampled, reference = [[-0.5, -1.0], [-2.0, -0.25, -9.0]], [[-1.0, -1.0], [-1.0, -0.25, -1.0]]
    masks = [[1, 1], [1, 1, 0]]
    # Differences 0.5, 0, -1, 0 and one that doesn't count: their mean is -0.125.
    penalty = kl_penalty(sampled, reference, masks, coef=0.1)
    assert penalty == [
        pytest.approx([-0.0625, -0.0125], abs=1e-12),
        pytest.approx([0.0875, -0.0125, 0.0], abs=1e-12),
    ]
    assert math.fsum(value for row in penalty for value in row) == pytest.approx(0.0, abs=1e-15)


def test_kl_penalty_of_later_tokens_is_answered_for_by_a_discount() -> None:
    penalty = kl_penalty([[-0.5, -1.0]], [[-1.0, -1.0]], [[1, 1]], coef=1.0, discount=0.5)
    assert penalty == [pytest.approx([-0.25 + 0.5 * 0.25, 0.25], abs=1e-12)]


def test_kl_penalty_asks_nothing_of_given_tokens() -> None:
    assert kl_penalty([[-math.inf, -1.0]], [[-1.0, -1.0]], [[0, 1]], coef=1.0) == [[0.0, 0.0]]
    assert kl_penalty([[-1.0]], [[-2.0]], [[0]], coef=1.0) == [[0.0]]
    assert kl_penalty([], [], [], coef=1.0) == []


@pytest.mark.parametrize(
    ("call", "error", "where"),
    [
        (lambda: discounted_returns([1, math.nan], 0.9), DataError, r"rewards\[1\]"),
        (lambda: discounted_returns([1], 1.1), ConfigError, "gamma"),
        (lambda: gae([1], [1, 2]), DataError, "1 rewards but 2 values"),
        (lambda: gae([1], [math.inf]), DataError, r"values\[0\]"),
        (lambda: gae([1], [1], lam=-0.1), ConfigError, "lam"),
        (lambda: normalize([1, math.nan]), DataError, r"values\[1\]"),
        (lambda: group_centered([math.inf]), DataError, r"rewards\[0\]"),
        (lambda: kl_penalty([[1]], [[1]], [[1, 1]], coef=1.0), DataError, "different lengths"),
        (lambda: kl_penalty([[-math.inf]], [[-1]], [[1]], coef=1.0), DataError, r"sampled_T\[0\] - reference_T\[0\]"),
        (lambda: kl_penalty([[1]], [[1]], [[1]], coef=-1.0), ConfigError, "coef"),
        (lambda: kl_penalty([[1]], [[1]], [[1]], coef=1.0, discount=2.0), ConfigError, "discount"),
    ],
)
def test_what_has_no_answer_is_refused(call: Callable[[], Any], error: type[Exception], where: str) -> None:
    with pytest.raises(error, match=where):
        call()
