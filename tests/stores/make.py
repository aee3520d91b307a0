"""Makes a store as this version writes it: a finished and registered run, and one that stopped inside epoch 2.

    python -m tests.stores.make tests/stores/format-2

A store that is committed is never made again: that versions to come still read it is what it is for. Another format
gets a folder of its own beside it.
"""

import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg

import kitchen_assets as kitchen
from kitchen_resources.errors import TrainingDiverged
from kitchen_resources.training.trl import session

FINISHED: dict[str, Any] = {
    "model": "embedded:tiny",
    "dataset": "embedded:dates",
    "max_rows": 120,
    "held_out": "0.1",
    "epochs": 3,
    "batch_size": 16,
    "learning_rate": 3.0e-3,
    "warmup_ratio": None,
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
    "evaluations": [],
    "eval_every": 0,
    "checkpoint_steps": 3,
}
"""108 rows to train on, 12 held out; 3 epochs of 7 steps."""

STOPPED: dict[str, Any] = {**FINISHED, "seed": 1}
STOPPED_AT = 12
"""The step that the second run didn't come to."""


def resources(root: Path) -> dict[str, Any]:
    """Run config of the ports: a store, a quiet console, one thread."""
    return {
        "blobs": {"store": {"local": {"path": str(root)}}},
        "telemetry": {"console": False},
        "trainer": {"backend": {"trl": {"threads": 1}}},
    }


def make(root: Path) -> None:
    """Make the store in a new folder."""
    with dg.DagsterInstance.ephemeral() as instance:
        kitchen.run("supervised", FINISHED, resources(root), instance=instance)
        _stop_inside(root, instance)
    for name in (".temp", ".locks", ".scratch"):
        shutil.rmtree(root / name)
    for path in root.rglob("*"):
        # As a checkout has them.
        path.chmod(0o755 if path.is_dir() else 0o644)


def _stop_inside(root: Path, instance: dg.DagsterInstance) -> None:
    """Start the second run, and stop it inside its second epoch."""
    real = session.EpochAttempt.step

    def stop(self: Any, metrics: Any, rows: list[int]) -> None:
        if metrics.global_step == STOPPED_AT:
            raise TrainingDiverged("stopped on purpose", where=f"step {STOPPED_AT}")
        real(self, metrics, rows)

    with mock.patch.object(session.EpochAttempt, "step", stop):
        try:
            kitchen.run("supervised", STOPPED, resources(root), instance=instance)
        except TrainingDiverged:
            return
    raise AssertionError("the second run was to stop")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
