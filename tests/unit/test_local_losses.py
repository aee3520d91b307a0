"""The named losses of the local client, by numbers worked out by hand, and their gradients."""

import math
from collections.abc import Mapping, Sequence

import pytest
import torch

from kitchen_resources.training.local.losses import LOSSES
from kitchen_resources.training.port import LOSSES as NAMES

LOGPROBS = [[-1.0, -2.0], [-0.5, 0.0]]
SAMPLED = [[-1.5, -1.0], [-0.5, 0.0]]
ADVANTAGES = [[2.0, -1.0], [1.0, 0.0]]
# Of the second row the last place is filler.
MASK = [[1.0, 1.0], [1.0, 0.0]]
UP, DOWN = math.exp(0.5), math.exp(-1.0)


def worked_out(name: str, **config: float) -> tuple[float, list[list[float]]]:
    """The loss and its gradient by the log-probabilities."""
    loss, needed, settings = LOSSES[name]
    assert set(config) <= set(settings)
    given: Mapping[str, Sequence[Sequence[float]]] = {"logprobs": SAMPLED, "advantages": ADVANTAGES, "weights": MASK}
    assert set(needed) <= set(given)
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    value = loss(logprobs, {key: torch.tensor(rows) for key, rows in given.items()}, {**settings, **config})
    (gradient,) = torch.autograd.grad(value, logprobs)
    return float(value.detach()), gradient.tolist()


def alike(found: list[list[float]], expected: list[list[float]]) -> bool:
    return found == [pytest.approx(row, rel=1e-6) for row in expected]


def test_all_of_the_port_are_there() -> None:
    assert tuple(LOSSES) == NAMES


def test_cross_entropy() -> None:
    value, gradient = worked_out("cross_entropy")
    assert value == pytest.approx(3.5)
    assert alike(gradient, [[-1.0, -1.0], [-1.0, 0.0]])


def test_importance_sampling() -> None:
    value, gradient = worked_out("importance_sampling")
    assert value == pytest.approx(-(2 * UP - DOWN + 1))
    assert alike(gradient, [[-2 * UP, DOWN], [-1.0, 0.0]])


def test_ppo_has_no_gradient_beyond_its_clip() -> None:
    value, gradient = worked_out("ppo")
    # A ratio of 1.65 with a gain is clipped; one of 0.37 with a loss too, for 0.8 is the worse.
    assert value == pytest.approx(-(2 * 1.2 - 0.8 + 1))
    assert alike(gradient, [[0.0, 0.0], [-1.0, 0.0]])
    value, gradient = worked_out("ppo", clip_low_threshold=0.1, clip_high_threshold=9.0)
    assert value == pytest.approx(-(2 * UP - DOWN + 1))
    assert alike(gradient, [[-2 * UP, DOWN], [-1.0, 0.0]])


def test_cispo_clips_a_weight_that_is_not_differentiated() -> None:
    value, gradient = worked_out("cispo", clip_high_threshold=1.5)
    assert value == pytest.approx(-(1.5 * 2 * -1.0 + DOWN * -1 * -2.0 + 1.0 * -0.5))
    assert alike(gradient, [[-3.0, DOWN], [-1.0, 0.0]])


def test_dro_pays_for_the_distance() -> None:
    value, gradient = worked_out("dro", beta=0.5)
    gains = -1.0 * 2 + -2.0 * -1 + -0.5
    assert value == pytest.approx(-(gains - 0.25 * (0.25 + 1.0)))
    assert alike(gradient, [[-2.0 + 0.25, 1.0 - 0.5], [-1.0, 0.0]])
