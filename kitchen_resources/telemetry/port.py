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
    "training.epoch": (
        "An epoch is done.",
        ("loss", "tokens", "tokens_per_second", "duration_s"),
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
"""Event -> what it says, its measurements, its metadata. A name in angle brackets stands for any number of names."""


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
