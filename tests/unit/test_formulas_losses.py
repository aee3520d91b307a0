"""Losses of preference, distillation and reinforcement: exact numbers, extremes, and torch's float64."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from kitchen_resources.errors import ConfigError, DataError
from kitchen_resources.formulas.losses import clipped_surrogate, distillation_loss, dpo_loss


def log_sigmoid(margin: float) -> float:
    return dpo_loss([margin], [0.0], [0.0], [0.0], beta=1.0)[0]


# Preference


def test_dpo_of_one_pair() -> None:
    chosen, rejected = math.fsum([-0.1, -0.2, -0.3]), math.fsum([-0.2, -0.4, -0.6])
    reference_chosen, reference_rejected = math.fsum([-0.7, -0.7, -0.6]), math.fsum([-0.3, -0.3, -0.4])
    loss, metrics = dpo_loss([chosen], [rejected], [reference_chosen], [reference_rejected], beta=0.1)
    assert loss == pytest.approx(0.6163437730407396, abs=1e-12)
    assert metrics.pop("loss") == loss
    assert (metrics.pop("accuracy"), metrics.pop("beta"), metrics.pop("num_pairs")) == (1.0, 0.1, 1.0)
    assert metrics == pytest.approx({"margin": 0.16, "chosen_reward": 0.14, "rejected_reward": -0.02}, abs=1e-12)


def test_dpo_starts_at_the_logarithm_of_two() -> None:
    chosen, rejected = [-3.0, -40.0], [-5.0, -1.0]
    loss, metrics = dpo_loss(chosen, rejected, chosen, rejected, beta=0.3)
    assert loss == math.log(2)
    # A tie is no preference.
    assert metrics == {
        "loss": loss,
        "accuracy": 0.0,
        "chosen_reward": 0.0,
        "rejected_reward": 0.0,
        "margin": 0.0,
        "beta": 0.3,
        "num_pairs": 2.0,
    }


def test_dpo_is_the_mean_over_pairs() -> None:
    chosen, rejected, references = [-1.0, -2.0, -6.0], [-2.0, -1.0, -6.0], [-4.0] * 3
    loss, metrics = dpo_loss(chosen, rejected, references, references, beta=2.0)
    each = [dpo_loss([c], [r], [-4.0], [-4.0], beta=2.0)[0] for c, r in zip(chosen, rejected, strict=True)]
    assert loss == pytest.approx(math.fsum(each) / 3, abs=1e-15)
    assert (metrics["accuracy"], metrics["num_pairs"]) == (1 / 3, 3.0)
    assert (metrics["chosen_reward"], metrics["rejected_reward"], metrics["margin"]) == (2.0, 2.0, 0.0)


def test_accuracy_is_of_log_ratios_also_where_beta_makes_the_rewards_equal() -> None:
    assert dpo_loss([1e-200], [0.0], [0.0], [0.0], beta=1e-200)[1]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("margin", "loss"),
    [
        (1e4, 0.0),
        (-1e4, 1e4),
        (750.0, 0.0),
        (-750.0, 750.0),
        (40.0, 4.248354255291589e-18),
        (-40.0, 40.0),
        (0.0, math.log(2)),
    ],
)
def test_log_sigmoid_at_any_margin(margin: float, loss: float) -> None:
    assert log_sigmoid(margin) == pytest.approx(loss, rel=1e-15)


def test_label_smoothing_takes_pairs_both_ways() -> None:
    loss, _ = dpo_loss([3.0], [0.0], [0.0], [0.0], beta=1.0, label_smoothing=0.25)
    assert loss == pytest.approx(0.75 * log_sigmoid(3.0) + 0.25 * log_sigmoid(-3.0), abs=1e-15)


# Distillation


def test_distillation_of_one_token() -> None:
    # The student is even; the teacher has 3/4 and 1/4, and at temperature 2 sqrt(3) to 1.
    teacher = [math.log(3.0), 0.0]
    loss, metrics = distillation_loss([[0.0, 0.0]], [teacher], [1], alpha=0.5, temperature=1.0)
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert metrics == pytest.approx(
        {"loss": 0.5 * kl + 0.5 * math.log(2), "kl": kl, "cross_entropy": math.log(2)}, abs=1e-15
    )
    assert metrics["loss"] == loss
    warm = math.sqrt(3.0) / (1 + math.sqrt(3.0))
    kl = warm * math.log(2 * warm) + (1 - warm) * math.log(2 * (1 - warm))
    loss, metrics = distillation_loss([[0.0, 0.0]], [teacher], [1], alpha=1.0, temperature=2.0)
    assert (loss, metrics["kl"]) == pytest.approx((4 * kl, kl), abs=1e-15)


def test_a_student_like_its_teacher_has_no_divergence_and_alpha_mixes() -> None:
    logits = [[1.0, -2.0, 0.5], [300.0, -300.0, 0.0]]
    loss, metrics = distillation_loss(logits, logits, [2, 0], alpha=1.0, temperature=3.0)
    assert (loss, metrics["kl"]) == (0.0, 0.0)
    loss, metrics = distillation_loss(logits, [[0.0, 0.0, 0.0]] * 2, [2, 0], alpha=0.0, temperature=3.0)
    assert loss == metrics["cross_entropy"]


def test_distillation_at_extremes() -> None:
    loss, metrics = distillation_loss([[1e4, -1e4]], [[-1e4, 1e4]], [1], alpha=0.5, temperature=1.0)
    assert metrics == {"loss": 2e4, "kl": 2e4, "cross_entropy": 2e4}
    assert loss == 2e4
    # A distribution of one point, at a temperature at which all other logits are infinitely far.
    assert distillation_loss([[1.0, 0.0]], [[1.0, 0.0]], [0], alpha=1.0, temperature=1e-320)[0] == 0.0


# Reinforcement


def test_the_surrogate_of_the_policy_that_sampled() -> None:
    loss, metrics = clipped_surrogate([-1.0, -2.0], [-1.0, -2.0], [0.5, -1.5], epsilon=0.2)
    assert (loss, metrics) == (0.5, {"loss": 0.5, "ratio": 1.0, "clip_fraction": 0.0})


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 2.0, -2.4, 1.0),  # above, and good: no more than 1.2 times
        (0.5, 2.0, -1.0, 0.0),  # below, and good: learned back
        (1.5, -2.0, 3.0, 0.0),  # above, and bad: learned back
        (0.5, -2.0, 1.6, 1.0),  # below, and bad: no less than 0.8 times
        (1.1, 2.0, -2.2, 0.0),
        (0.9, -2.0, 1.8, 0.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_the_surrogate_is_clipped_where_it_would_gain(
    ratio: float, advantage: float, loss: float, clipped: float
) -> None:
    found, metrics = clipped_surrogate([math.log(ratio)], [0.0], [advantage], epsilon=0.2)
    assert (found, metrics["ratio"]) == pytest.approx((loss, ratio), abs=1e-12)
    assert metrics["clip_fraction"] == clipped


def test_the_surrogate_may_be_clipped_higher_above() -> None:
    given = [math.log(2.0)], [0.0], [1.0]
    assert clipped_surrogate(*given, epsilon=0.2, epsilon_high=0.28)[0] == pytest.approx(-1.28, abs=1e-12)
    assert clipped_surrogate(*given, epsilon=0.2, epsilon_high=1.5)[0] == pytest.approx(-2.0, abs=1e-12)


def test_the_surrogate_at_extremes() -> None:
    assert clipped_surrogate([1e4], [0.0], [1.0], epsilon=0.2)[0] == -1.2
    assert clipped_surrogate([1e4], [0.0], [-1.0], epsilon=0.2)[0] == math.inf
    assert clipped_surrogate([1e4], [0.0], [0.0], epsilon=0.2)[0] == 0.0
    assert clipped_surrogate([-1e4], [0.0], [-1.0], epsilon=0.2)[0] == 0.8
    assert clipped_surrogate([-1e4], [0.0], [1.0], epsilon=0.2)[0] == 0.0


# The same on tensors


@pytest.fixture(scope="module")
def torch() -> Any:
    import torch

    return torch


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("seed", range(5))
def test_dpo_is_what_torch_says(torch: Any, seed: int, scale: float) -> None:
    draw = random.Random(seed)
    pairs, beta, smoothing = draw.randint(1, 9), draw.uniform(0.01, 2.0), draw.choice([0.0, 0.1, 0.4])
    given = [[draw.gauss(0.0, scale) for _ in range(pairs)] for _ in range(4)]
    pc, pr, rc, rr = (torch.tensor(values, dtype=torch.float64) for values in given)
    margin = beta * ((pc - rc) - (pr - rr))
    log_sigmoid = torch.nn.functional.logsigmoid
    expected = (-(1 - smoothing) * log_sigmoid(margin) - smoothing * log_sigmoid(-margin)).mean().item()
    loss, metrics = dpo_loss(*given, beta=beta, label_smoothing=smoothing)
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert metrics["margin"] == pytest.approx(margin.mean().item(), rel=1e-12)
    assert metrics["accuracy"] == pytest.approx((margin > 0).double().mean().item(), abs=1e-12)
    assert metrics["chosen_reward"] == pytest.approx((beta * (pc - rc)).mean().item(), rel=1e-12)
    assert metrics["rejected_reward"] == pytest.approx((beta * (pr - rr)).mean().item(), rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("seed", range(5))
def test_distillation_is_what_torch_says(torch: Any, seed: int, scale: float) -> None:
    draw = random.Random(seed)
    tokens, vocabulary = draw.randint(1, 6), draw.randint(2, 12)
    alpha, temperature = draw.random(), draw.uniform(0.3, 5.0)
    student, teacher = (
        [[draw.gauss(0.0, scale) for _ in range(vocabulary)] for _ in range(tokens)] for _ in range(2)
    )
    targets = [draw.randrange(vocabulary) for _ in range(tokens)]
    functional = torch.nn.functional
    s, t = (torch.tensor(logits, dtype=torch.float64) for logits in (student, teacher))
    kl = functional.kl_div(
        functional.log_softmax(s / temperature, -1),
        functional.log_softmax(t / temperature, -1),
        log_target=True,
        reduction="batchmean",
    ).item()
    entropy = functional.cross_entropy(s, torch.tensor(targets)).item()
    loss, metrics = distillation_loss(student, teacher, targets, alpha=alpha, temperature=temperature)
    assert (metrics["kl"], metrics["cross_entropy"]) == pytest.approx((kl, entropy), rel=1e-12, abs=1e-12)
    assert loss == pytest.approx(alpha * temperature**2 * kl + (1 - alpha) * entropy, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_surrogate_is_what_torch_says(torch: Any, seed: int, scale: float) -> None:
    draw = random.Random(seed)
    tokens, low, high = draw.randint(1, 20), draw.uniform(0.0, 0.5), draw.uniform(0.0, 0.5)
    given = [[draw.gauss(0.0, scale) for _ in range(tokens)] for _ in range(3)]
    new, old, advantages = (torch.tensor(values, dtype=torch.float64) for values in given)
    ratio = torch.exp(new - old)
    free, bounded = ratio * advantages, torch.clamp(ratio, 1 - low, 1 + high) * advantages
    loss, metrics = clipped_surrogate(*given, epsilon=low, epsilon_high=high)
    assert loss == pytest.approx(-torch.minimum(free, bounded).mean().item(), rel=1e-12, abs=1e-12)
    assert metrics["ratio"] == pytest.approx(ratio.mean().item(), rel=1e-12)
    assert metrics["clip_fraction"] == pytest.approx((bounded < free).double().mean().item(), abs=1e-12)


# What has no answer


def preferring(chosen: list[float], rejected: list[float], **options: Any) -> Any:
    return dpo_loss(chosen, rejected, [0.0] * len(chosen), [0.0] * len(rejected), **{"beta": 0.1, **options})


def distilling(student: Any, teacher: Any, targets: list[int], alpha: float = 0.5, temperature: float = 1.0) -> Any:
    return distillation_loss(student, teacher, targets, alpha=alpha, temperature=temperature)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: preferring([], []), DataError, "policy_chosen: there is no pair"),
        (lambda: preferring([1.0, 2.0], [1.0]), DataError, "policy_rejected: 2 policy_chosen but 1 policy_rejected"),
        (lambda: dpo_loss([1.0], [1.0], [1.0], [], beta=1.0), DataError, "reference_rejected: 1 policy_chosen but 0"),
        (lambda: preferring([1.0, math.nan], [1.0, 2.0]), DataError, r"policy_chosen\[1\]: nan is not finite"),
        (lambda: preferring([1.0], [-math.inf]), DataError, r"policy_rejected\[0\]: -inf is not finite"),
        (lambda: preferring([1e308], [-1e308]), DataError, r"margins\[0\]: inf is not finite"),
        (lambda: preferring([1.0], [1.0], beta=0.0), ConfigError, "beta: 0.0 is not a finite number above 0"),
        (lambda: preferring([1.0], [1.0], beta=-1.0), ConfigError, "beta"),
        (lambda: preferring([1.0], [1.0], beta=math.nan), ConfigError, "beta"),
        (lambda: preferring([1.0], [1.0], label_smoothing=0.5), ConfigError, "label_smoothing: 0.5 is not from 0"),
        (lambda: preferring([1.0], [1.0], label_smoothing=-0.1), ConfigError, "label_smoothing"),
        (lambda: distilling([], [], []), DataError, "student_logits: there is no token"),
        (lambda: distilling([[1.0]], [], [0]), DataError, "1 student_logits but 0 teacher_logits"),
        (
            lambda: distilling([[1.0, 2.0]], [[1.0]], [0]),
            DataError,
            r"2 student_logits\[0\] but 1 teacher_logits\[0\]",
        ),
        (lambda: distilling([[]], [[]], [0]), DataError, r"student_logits\[0\]: there is no logit"),
        (lambda: distilling([[1.0, math.nan]], [[1.0, 2.0]], [0]), DataError, r"student_logits\[0\]\[1\]: nan"),
        (lambda: distilling([[1.0]], [[-math.inf]], [0]), DataError, r"teacher_logits\[0\]\[0\]: -inf"),
        (lambda: distilling([[1.0]], [[1.0]], [1]), DataError, r"targets\[0\]: 1 is no id of a vocabulary of 1"),
        (lambda: distilling([[1.0]], [[1.0]], [-100]), DataError, r"targets\[0\]: -100 is no id"),
        (lambda: distilling([[1.0]], [[1.0]], [0], alpha=1.1), ConfigError, "alpha: 1.1 is not from 0 to 1"),
        (lambda: distilling([[1.0]], [[1.0]], [0], temperature=0.0), ConfigError, "temperature"),
        (lambda: clipped_surrogate([], [], [], epsilon=0.2), DataError, "logprobs: there is no token"),
        (
            lambda: clipped_surrogate([1.0], [1.0, 2.0], [1.0], epsilon=0.2),
            DataError,
            "1 logprobs but 2 old_logprobs",
        ),
        (lambda: clipped_surrogate([1.0], [1.0], [math.inf], epsilon=0.2), DataError, r"advantages\[0\]"),
        (lambda: clipped_surrogate([1.0], [1.0], [1.0], epsilon=1.1), ConfigError, "epsilon: 1.1"),
        (lambda: clipped_surrogate([1.0], [1.0], [1.0], epsilon=0.2, epsilon_high=-1.0), ConfigError, "epsilon_high"),
    ],
)
def test_what_has_no_answer_is_refused(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
