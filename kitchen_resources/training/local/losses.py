"""The named losses, on the log-probabilities of a micro-batch's targets. Names and semantics are those of the Tinker API.

Each is a plain sum over tokens, so that micro-batches add up; the caller folds any normalisation into weights or
advantages. Where `weights` are given to a loss of reinforcement learning, they leave tokens out of it.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]
"""By name, what a loss needs besides the log-probabilities. Each of shape (rows, T), 0 behind a row's end."""

Loss = Callable[["torch.Tensor", Tensors, Mapping[str, float]], "torch.Tensor"]
"""From log-probabilities of shape (rows, T), inputs and settings to a scalar."""


def cross_entropy(logprobs: "torch.Tensor", inputs: Tensors, config: Mapping[str, float]) -> "torch.Tensor":
    """The weighted negative log-likelihood."""
    return -(logprobs * inputs["weights"]).sum()


def importance_sampling(logprobs: "torch.Tensor", inputs: Tensors, config: Mapping[str, float]) -> "torch.Tensor":
    """The policy gradient, corrected for sampling under other weights: `-sum ratio * advantage`."""
    return -(_ratio(logprobs, inputs) * inputs["advantages"] * inputs["weights"]).sum()


def ppo(logprobs: "torch.Tensor", inputs: Tensors, config: Mapping[str, float]) -> "torch.Tensor":
    """The clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7)."""
    ratio, advantages = _ratio(logprobs, inputs), inputs["advantages"]
    clipped = ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    return -((ratio * advantages).minimum(clipped * advantages) * inputs["weights"]).sum()


def cispo(logprobs: "torch.Tensor", inputs: Tensors, config: Mapping[str, float]) -> "torch.Tensor":
    """The policy gradient under a clipped weight that isn't itself differentiated (MiniMax 2025, arXiv:2506.13585)."""
    weight = _ratio(logprobs, inputs).clamp(config["clip_low_threshold"], config["clip_high_threshold"]).detach()
    return -(weight * inputs["advantages"] * logprobs * inputs["weights"]).sum()


def dro(logprobs: "torch.Tensor", inputs: Tensors, config: Mapping[str, float]) -> "torch.Tensor":
    """Direct reward optimisation (Richemond et al. 2024, arXiv:2405.19107): a gain less a square of the distance."""
    distance = (logprobs - inputs["logprobs"]) ** 2
    return -((logprobs * inputs["advantages"] - 0.5 * config["beta"] * distance) * inputs["weights"]).sum()


LOSSES: Mapping[str, tuple[Loss, tuple[str, ...], Mapping[str, float]]] = {
    "cross_entropy": (cross_entropy, ("weights",), {}),
    "importance_sampling": (importance_sampling, ("logprobs", "advantages"), {}),
    "ppo": (ppo, ("logprobs", "advantages"), {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}),
    "cispo": (cispo, ("logprobs", "advantages"), {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}),
    "dro": (dro, ("logprobs", "advantages"), {"beta": 0.05}),
}
"""By name: the loss, the inputs that a datum must have for it, and its settings with their defaults."""


def _ratio(logprobs: "torch.Tensor", inputs: Tensors) -> "torch.Tensor":
    """The probability of each target over the one it was sampled with."""
    return (logprobs - inputs["logprobs"]).exp()
