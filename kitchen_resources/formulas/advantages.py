"""Returns and advantages of reinforcement learning, and the penalty for leaving the reference model."""

import math
from collections.abc import Sequence

from kitchen_resources.errors import ConfigError, DataError

# Keeps `normalize` finite where all values are equal; then it gives zeros.
_VARIANCE_FLOOR = 1e-8


def discounted_returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """Return from each step on: `R_t = r_t + gamma * R_(t+1)`, with nothing after the last.

    Args:
        rewards: Reward of each step of one episode. Shape [steps].
        gamma: Discount of a step, from 0 to 1.

    Returns:
        Shape [steps].

    Raises:
        DataError: A reward is not finite.
        ConfigError: `gamma` is out of its bounds.
    """
    _require_finite("rewards", rewards)
    _require_share("gamma", gamma)
    returns = []
    after = 0.0
    for reward in reversed(rewards):
        after = reward + gamma * after
        returns.append(after)
    return returns[::-1]


def gae(rewards: Sequence[float], values: Sequence[float], *, gamma: float = 0.99, lam: float = 0.95) -> list[float]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    `A_t = delta_t + gamma * lam * A_(t+1)` with `delta_t = r_t + gamma * V_(t+1) - V_t`; the episode ends after its
    last step, so that the value there is 0.

    Args:
        rewards: Reward of each step of one episode. Shape [steps].
        values: Value that was expected at each step. Shape [steps].
        gamma: Discount of a step, from 0 to 1.
        lam: 0 trusts the values, 1 the rewards; from 0 to 1.

    Returns:
        Shape [steps].

    Raises:
        DataError: The lengths differ, or a number is not finite.
        ConfigError: `gamma` or `lam` is out of its bounds.
    """
    if len(rewards) != len(values):
        raise DataError(
            f"{len(rewards)} rewards but {len(values)} values", where="values", fix="give one value a step"
        )
    _require_finite("rewards", rewards)
    _require_finite("values", values)
    _require_share("gamma", gamma)
    _require_share("lam", lam)
    advantages = []
    advantage = value_after = 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        advantage = reward + gamma * value_after - value + gamma * lam * advantage
        value_after = value
        advantages.append(advantage)
    return advantages[::-1]


def normalize(values: Sequence[float]) -> list[float]:
    """`(value - mean) / sqrt(variance + 1e-8)`, with the variance over all of them.

    Args:
        values: Any numbers. Shape [n].

    Returns:
        Shape [n]; up to one value is returned as it is.

    Raises:
        DataError: A number is not finite.
    """
    _require_finite("values", values)
    if len(values) < 2:
        return list(values)
    centered = group_centered(values)
    deviation = math.sqrt(math.fsum(value**2 for value in centered) / len(values) + _VARIANCE_FLOOR)
    return [value / deviation for value in centered]


def group_centered(rewards: Sequence[float]) -> list[float]:
    """Reward over the mean of its group (GRPO without its division, as in Dr. GRPO, arXiv:2503.20783).

    Args:
        rewards: Rewards of the samples of one prompt. Shape [group].

    Returns:
        Shape [group]; zeros when all are equal.

    Raises:
        DataError: A reward is not finite.
    """
    _require_finite("rewards", rewards)
    mean = math.fsum(rewards) / len(rewards) if rewards else 0.0
    return [reward - mean for reward in rewards]


def kl_penalty(
    sampled_T: Sequence[Sequence[float]],
    reference_T: Sequence[Sequence[float]],
    mask_T: Sequence[Sequence[float]],
    *,
    coef: float,
    discount: float = 0.0,
) -> list[list[float]]:
    """What to add to the advantages of tokens so that the policy stays near the reference.

    With `d = logprob sampled - logprob reference` it is `coef * mask * (mean of d - d)`, the mean over all tokens with
    mask, so that it moves no advantage on average. As in tinker-cookbook's `incorporate_kl_penalty`.

    Args:
        sampled_T: Log probabilities of the sampled tokens under the policy that sampled, in nats. Shape
            [sequences][tokens], the sequences of any length.
        reference_T: The same under the reference. Same shape.
        mask_T: 1 for tokens that were sampled, 0 for those that were given. Same shape.
        coef: Weight of the penalty, from 0 up.
        discount: Share at which a token also answers for those after it, from 0 (not at all) to 1.

    Returns:
        Same shape.

    Raises:
        DataError: Shapes differ, or the log probability of a sampled token is not finite.
        ConfigError: `coef` or `discount` is out of its bounds.
    """
    if not (math.isfinite(coef) and coef >= 0.0):
        raise ConfigError(f"{coef} is not a finite number from 0 up", where="coef", fix="write coef: 0.1")
    _require_share("discount", discount)
    shapes = [[len(sequence) for sequence in given] for given in (sampled_T, reference_T, mask_T)]
    if not shapes[0] == shapes[1] == shapes[2]:
        raise DataError("sequences of different lengths", where="mask_T", fix="give one number a token to each")
    differences_T = []
    for index, tokens in enumerate(zip(sampled_T, reference_T, mask_T, strict=True)):
        # A given token doesn't count even when its logprob is -inf, and -inf * 0 would be NaN.
        differences = [(a - b) * mask if mask else 0.0 for a, b, mask in zip(*tokens, strict=True)]
        _require_finite(f"sampled_T[{index}] - reference_T[{index}]", differences)
        differences_T.append(differences)
    tokens_in_all = math.fsum(mask for masks in mask_T for mask in masks)
    if not tokens_in_all:
        return [[0.0] * length for length in shapes[0]]
    mean = math.fsum(difference for differences in differences_T for difference in differences) / tokens_in_all
    penalty_T = [
        [coef * mask * (mean - difference) for difference, mask in zip(differences, masks, strict=True)]
        for differences, masks in zip(differences_T, mask_T, strict=True)
    ]
    return [discounted_returns(penalty, discount) for penalty in penalty_T]


def _require_finite(where: str, values: Sequence[float]) -> None:
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise DataError(f"{value} is not finite", where=f"{where}[{index}]", fix="leave out what failed")


def _require_share(where: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{value} is not from 0 to 1", where=where, fix=f"write {where}: 0.99")
