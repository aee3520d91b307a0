"""The telemetry port: events with measurements and metadata, and the table of all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

EVENTS: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "workflow.run.start": ("A run starts.", (), ("workflow", "recipe", "run")),
    "workflow.run.stop": ("A run is over, well or not.", ("duration_s",), ("workflow", "recipe", "run", "success")),
    "workflow.run.exception": ("A run failed.", ("duration_s",), ("workflow", "recipe", "run", "error")),
    "stage.run.start": ("A stage starts.", (), ("stage", "recipe", "run")),
    "stage.run.stop": ("A stage is over.", ("duration_s",), ("stage", "recipe", "run", "success")),
    "stage.run.exception": ("A stage failed.", ("duration_s",), ("stage", "recipe", "run", "error")),
    "dataset.load": ("A raw data set was read.", ("rows",), ("recipe", "dataset", "digest")),
    "dataset.prepared": (
        "Rows were validated, split and rendered.",
        ("rows", "held_out_rows", "tokens", "trained_tokens"),
        ("recipe", "digest"),
    ),
    "training.step": (
        "An optimiser step is done.",
        (
            "loss",
            "learning_rate",
            "grad_norm",
            "tokens",
            "tokens_per_second",
            "duration_s",
            "host_memory_bytes",
            "device_memory_bytes",
            "<of the method>",
        ),
        ("recipe", "fingerprint", "epoch", "step", "total_steps"),
    ),
    "dpo.dataset_built": ("Pairs are ready to train on.", ("num_pairs", "num_batches"), ("recipe", "digest")),
    "dpo.step": (
        "An optimiser step of preference learning is done; what `training.step` says of it, in the method's terms.",
        ("loss", "accuracy?", "chosen_reward?", "rejected_reward?", "margin?"),
        ("recipe", "fingerprint", "epoch", "step", "total_steps", "beta", "num_pairs"),
    ),
    "rl.env_group_built": (
        "The problems of an environment are ready to be played.",
        ("group_size", "groups_per_batch"),
        ("recipe", "env_type"),
    ),
    "rl.rollout_complete": (
        "The episodes of a draw are played, before the steps on them.",
        ("num_trajectories", "reward_mean?", "reward_std?", "kl_divergence?", "entropy?", "solved?"),
        ("recipe", "fingerprint", "epoch", "rollout_index"),
    ),
    "rl.step": (
        "An optimiser step of reinforcement learning is done.",
        ("policy_loss", "num_trajectories", "reward_mean?", "reward_std?", "kl_divergence?", "entropy?", "solved?"),
        ("recipe", "fingerprint", "epoch", "step", "total_steps", "rollout_index"),
    ),
    "distillation.step": (
        "An optimiser step of a distillation is done.",
        ("loss", "num_sequences", "reverse_kl?", "kl?"),
        ("recipe", "fingerprint", "epoch", "step", "total_steps"),
    ),
    "training.epoch": (
        "An epoch is done.",
        ("tokens", "duration_s", "loss?", "tokens_per_second?", "cost_usd?"),
        ("recipe", "fingerprint", "epoch", "step"),
    ),
    "training.checkpoint": (
        "A checkpoint is published.",
        ("bytes", "duration_s"),
        ("recipe", "fingerprint", "epoch", "step", "state_digest"),
    ),
    "training.eval": (
        "A checkpoint was evaluated.",
        ("<evaluation>/<metric>",),
        ("recipe", "fingerprint", "epoch", "step"),
    ),
    "eval.complete": ("The final model was evaluated.", ("<evaluation>/<metric>",), ("recipe", "fingerprint")),
    "model.registered": ("A version was registered.", ("count",), ("recipe", "name", "version")),
}
"""Event -> what it says, its measurements, its metadata.

A name in angle brackets stands for any number of names; one with a question mark is there where the backend measures it.
"""


def declared(event: str) -> tuple[set[str], set[str]]:
    """Names of the measurements that an event always has, and of those that it has where the backend measures them."""
    names = {name for name in EVENTS[event][1] if "<" not in name}
    optional = {name for name in names if name.endswith("?")}
    return names - optional, {name.removesuffix("?") for name in optional}


METHOD_METRICS = ("reward", "accuracy", "kl")
"""What steps and epochs of some methods are told by besides their loss."""


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        name: One of `EVENTS`.
        time: Seconds since 1970, UTC.
        measurements: Numbers.
        metadata: What the numbers are about.
    """

    name: str
    time: float
    measurements: Mapping[str, float]
    metadata: Mapping[str, Any]


@runtime_checkable
class Handler(Protocol):
    """Takes events somewhere. What it raises is reported once, and never reaches the training."""

    def handle(self, event: Event) -> None:
        """Take one event."""
        ...

    def close(self) -> None:
        """Write out what is held back."""
        ...


@runtime_checkable
class Telemetry(Protocol):
    """Where events are sent."""

    def emit(self, name: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        """Send an event to every handler. Never raises for a handler's failure.

        Raises:
            KeyError: The event isn't in `EVENTS`: a mistake in the kitchen.
        """
        ...

    def close(self) -> None:
        """Close every handler; may be called twice."""
        ...
