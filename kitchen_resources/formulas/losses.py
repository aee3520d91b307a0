"""Losses of preference optimisation, distillation and reinforcement learning, in plain floats.

They are the yardstick of what backends compute on tensors, and stay finite at any margin.
"""

import math
from collections.abc import Mapping, Sequence, Sized

from kitchen_resources.errors import ConfigError, DataError


def dpo_loss(
    policy_chosen: Sequence[float],
    policy_rejected: Sequence[float],
    reference_chosen: Sequence[float],
    reference_rejected: Sequence[float],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[float, dict[str, float]]:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    The mean over pairs of `-log sigmoid(m)` with `m = beta * ((pc - rc) - (pr - rr))`. With label smoothing
    (conservative DPO, Mitchell 2023) it is `-(1 - s) * log sigmoid(m) - s * log sigmoid(-m)`.

    Args:
        policy_chosen: Log probability of each chosen answer under the policy, in nats, summed over its tokens. Shape
            [pairs].
        policy_rejected: The same of the rejected answers. Shape [pairs].
        reference_chosen: The same of the chosen answers under the reference. Shape [pairs].
        reference_rejected: The same of the rejected answers under the reference. Shape [pairs].
        beta: How dearly leaving the reference is paid; above 0.
        label_smoothing: Share `s` of pairs taken to be the wrong way round, from 0 to below 0.5.

    Returns:
        The loss, and metrics: `loss`; `accuracy`, the share of pairs whose chosen answer gained more than the rejected
        one, so that ties are wrong; `chosen_reward` and `rejected_reward`, the mean of `beta` times the log-ratio to the
        reference; `margin`, the mean of `m`; `beta`; `num_pairs`.

    Raises:
        DataError: There is no pair, the lengths differ, or a number or a log-ratio is not finite.
        ConfigError: `beta` or `label_smoothing` is out of its bounds.
    """
    _require_above_zero("beta", beta)
    if not 0.0 <= label_smoothing < 0.5:
        raise ConfigError(
            f"{label_smoothing} is not from 0 to below 0.5", where="label_smoothing", fix="write label_smoothing: 0.1"
        )
    given = {
        "policy_chosen": policy_chosen,
        "policy_rejected": policy_rejected,
        "reference_chosen": reference_chosen,
        "reference_rejected": reference_rejected,
    }
    _require_alike(given, "pair")
    chosen = [policy - reference for policy, reference in zip(policy_chosen, reference_chosen, strict=True)]
    rejected = [policy - reference for policy, reference in zip(policy_rejected, reference_rejected, strict=True)]
    margins = [beta * (better - worse) for better, worse in zip(chosen, rejected, strict=True)]
    _require_finite("margins", margins)
    losses = [
        -(1.0 - label_smoothing) * _log_sigmoid(margin) - label_smoothing * _log_sigmoid(-margin)
        for margin in margins
    ]
    loss = _mean(losses)
    return loss, {
        "loss": loss,
        "accuracy": _mean([float(better > worse) for better, worse in zip(chosen, rejected, strict=True)]),
        "chosen_reward": beta * _mean(chosen),
        "rejected_reward": beta * _mean(rejected),
        "margin": _mean(margins),
        "beta": beta,
        "num_pairs": float(len(margins)),
    }


def distillation_loss(
    student_logits: Sequence[Sequence[float]],
    teacher_logits: Sequence[Sequence[float]],
    targets: Sequence[int],
    *,
    alpha: float,
    temperature: float,
) -> tuple[float, dict[str, float]]:
    """Distillation by logits (Hinton et al. 2015, arXiv:1503.02531), the mean over tokens.

    `alpha * T^2 * KL(teacher_T || student_T) + (1 - alpha) * CE`: the divergence of the distributions at temperature T,
    whose gradients shrink by `1/T^2`, and the cross entropy of the targets at temperature 1.

    Args:
        student_logits: Shape [tokens][vocabulary].
        teacher_logits: Same shape.
        targets: Id of the token that comes next at each place. Shape [tokens].
        alpha: Share of the teacher's distribution, from 0 to 1.
        temperature: T, above 0.

    Returns:
        The loss, and metrics: `loss`, `kl` (at temperature T, without the factor `T^2`) and `cross_entropy`, in nats a
        token.

    Raises:
        DataError: There is no token, shapes differ, a target is no id of the vocabulary, or a logit is not finite.
        ConfigError: `alpha` or `temperature` is out of its bounds.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"{alpha} is not from 0 to 1", where="alpha", fix="write alpha: 0.5")
    _require_above_zero("temperature", temperature)
    _require_same_length(
        {"student_logits": student_logits, "teacher_logits": teacher_logits, "targets": targets}, "token"
    )
    divergences, entropies = [], []
    for index, (student, teacher, target) in enumerate(zip(student_logits, teacher_logits, targets, strict=True)):
        _require_alike({f"student_logits[{index}]": student, f"teacher_logits[{index}]": teacher}, "logit")
        if not 0 <= target < len(student):
            raise DataError(
                f"{target} is no id of a vocabulary of {len(student)}",
                where=f"targets[{index}]",
                fix="leave out the tokens that have no target",
            )
        divergences.append(_kl(_log_softmax(teacher, temperature), _log_softmax(student, temperature)))
        entropies.append(-_log_softmax(student, 1.0)[target])
    kl, cross_entropy = _mean(divergences), _mean(entropies)
    loss = alpha * temperature**2 * kl + (1.0 - alpha) * cross_entropy
    return loss, {"loss": loss, "kl": kl, "cross_entropy": cross_entropy}


def clipped_surrogate(
    logprobs: Sequence[float],
    old_logprobs: Sequence[float],
    advantages: Sequence[float],
    *,
    epsilon: float,
    epsilon_high: float | None = None,
) -> tuple[float, dict[str, float]]:
    """PPO's clipped surrogate objective (Schulman et al. 2017, arXiv:1707.06347, eq. 7), negated: to be minimised.

    The mean over tokens of `-min(r * A, clip(r, 1 - epsilon, 1 + epsilon_high) * A)` with `r = exp(new - old)`.

    Args:
        logprobs: Log probability of each sampled token under the policy, in nats. Shape [tokens].
        old_logprobs: The same under the policy that sampled. Shape [tokens].
        advantages: Shape [tokens].
        epsilon: The ratio is clipped at 1 minus this; from 0 to 1.
        epsilon_high: It is clipped at 1 plus this; from 0 up. None for `epsilon`.

    Returns:
        The loss, and metrics: `loss`; `ratio`, the mean of `r` before it is clipped; `clip_fraction`, the share of tokens
        that have no gradient because the clipped term is the smaller one. Loss and ratio are infinite where the ratio is
        beyond the range of a float and no clip bounds it.

    Raises:
        DataError: There is no token, the lengths differ, or a number is not finite.
        ConfigError: `epsilon` or `epsilon_high` is out of its bounds.
    """
    if not 0.0 <= epsilon <= 1.0:
        raise ConfigError(f"{epsilon} is not from 0 to 1", where="epsilon", fix="write epsilon: 0.2")
    high = epsilon if epsilon_high is None else epsilon_high
    if not (math.isfinite(high) and high >= 0.0):
        raise ConfigError(f"{high} is not a finite number from 0 up", where="epsilon_high", fix="epsilon_high: null")
    _require_alike({"logprobs": logprobs, "old_logprobs": old_logprobs, "advantages": advantages}, "token")
    ratios = [_exp(new - old) for new, old in zip(logprobs, old_logprobs, strict=True)]
    terms, clipped = [], 0
    for ratio, advantage in zip(ratios, advantages, strict=True):
        # An infinite ratio times an advantage of 0 would be NaN.
        free = ratio * advantage if advantage else 0.0
        bounded = min(max(ratio, 1.0 - epsilon), 1.0 + high) * advantage
        terms.append(-min(free, bounded))
        clipped += bounded < free
    loss = _mean(terms)
    return loss, {"loss": loss, "ratio": _mean(ratios), "clip_fraction": clipped / len(terms)}


def _log_sigmoid(value: float) -> float:
    """`log(1 / (1 + exp(-value)))`, from the side on which the exponential is at most 1."""
    return -math.log1p(math.exp(-value)) if value >= 0.0 else value - math.log1p(math.exp(value))


def _log_softmax(logits: Sequence[float], temperature: float) -> list[float]:
    highest = max(logits)
    scaled = [(logit - highest) / temperature for logit in logits]
    log_sum = math.log(math.fsum(math.exp(value) for value in scaled))
    return [value - log_sum for value in scaled]


def _kl(logprobs: Sequence[float], other_logprobs: Sequence[float]) -> float:
    """`sum(p * (log p - log q))`, in nats; where p is 0, nothing is added."""
    pairs = zip(logprobs, other_logprobs, strict=True)
    return math.fsum(share * (p - q) for p, q in pairs if (share := math.exp(p)))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _require_alike(given: Mapping[str, Sequence[float]], each: str) -> None:
    _require_same_length(given, each)
    for name, values in given.items():
        _require_finite(name, values)


def _require_same_length(given: Mapping[str, Sized], each: str) -> None:
    (first, length), *others = ((name, len(values)) for name, values in given.items())
    for name, other in others:
        if other != length:
            raise DataError(f"{length} {first} but {other} {name}", where=name, fix=f"give one number a {each}")
    if not length:
        raise DataError(f"there is no {each}", where=first, fix=f"give at least one {each}")


def _require_finite(where: str, values: Sequence[float]) -> None:
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise DataError(f"{value} is not finite", where=f"{where}[{index}]", fix="leave out what failed")


def _require_above_zero(where: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise ConfigError(f"{value} is not a finite number above 0", where=where, fix=f"write {where}: 0.1")
