"""What a run returns to Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kitchen_resources.evaluation.final import FinalEvaluation, final_from_json
from kitchen_resources.launch import Launch
from kitchen_resources.training.model_files import files_from_json, write_model_folder


@dataclass(frozen=True)
class Compared:
    """A metric of the trained model, with its 95 % interval, and of the base.

    Attributes:
        value: Mean over the rows.
        n: Number of rows.
        low: Lower end of the interval; NaN when it isn't known.
        high: Upper end.
        base: The base model's value; None when it wasn't measured.
    """

    value: float
    n: int
    low: float
    high: float
    base: float | None


@dataclass(frozen=True)
class RunResult:
    """The result of a launch.

    Attributes:
        fingerprint: Identity of the run, 64 hexadecimal digits; "" of a dry run.
        model_path: Local folder that `from_pretrained` loads; None for a dry or simulated run.
        optimizer_steps: Optimiser steps that this call really did.
        epochs: Epochs that exist.
        checkpoints: The run's checkpoints by step: step, epoch, state_digest, payload, bytes.
        metrics: Training numbers of the model's epoch: loss, tokens, tokens_per_second …
        evaluation: By `<evaluation>/<metric>`.
        registered_version: Number of the version; None of a dry run.
        duration_s: Seconds that this call took.
        run_id: The Dagster run; "" of a dry run.
        notes: What preflight had to say.
    """

    fingerprint: str = ""
    model_path: str | None = None
    optimizer_steps: int = 0
    epochs: int = 0
    checkpoints: Sequence[Mapping[str, Any]] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, Compared] = field(default_factory=dict)
    registered_version: int | None = None
    duration_s: float = 0.0
    run_id: str = ""
    notes: tuple[str, ...] = ()


def collect(launch: Launch, duration_s: float) -> RunResult:
    """The result of a launch that is over, from what its stages noted."""
    model, evaluated = launch.read("model"), launch.read("evaluation")
    registered, steps = launch.read("registered"), launch.read(f"steps-{launch.run_id}")
    head = launch.checkpoints.head(model["fingerprint"])
    entry = head.at(model["step"])
    path: Path | None = None
    if not launch.simulated:
        files = files_from_json(model["files"])
        path = write_model_folder(launch.content, files, launch.cache / "models" / files.digest)
    return RunResult(
        fingerprint=model["fingerprint"],
        model_path=str(path) if path else None,
        optimizer_steps=steps["optimizer_steps"],
        epochs=head.last_epoch(),
        checkpoints=[
            {
                "step": e.step,
                "epoch": e.epoch,
                "epoch_complete": e.epoch_complete,
                "state_digest": e.state_digest,
                "payload": e.payload,
                "bytes": e.bytes,
            }
            for e in head.entries()
        ],
        metrics=dict(launch.checkpoints.manifest(entry).metrics) if entry else {},
        evaluation=compare(final_from_json(evaluated)) if evaluated else {},
        registered_version=registered["version"] if registered else None,
        duration_s=duration_s,
        run_id=launch.run_id,
    )


def compare(final: FinalEvaluation) -> dict[str, Compared]:
    """Trained against base, by metric."""
    return {
        name: Compared(
            value=measure.value,
            n=measure.n,
            low=measure.low,
            high=measure.high,
            base=final.base.measures[name].value if name in final.base.measures else None,
        )
        for name, measure in final.trained.measures.items()
    }
