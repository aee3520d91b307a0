"""`dagster job execute` killed by SIGKILL again and again, and typed again each time: it ends as undisturbed."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.registry.store import StoreRegistry
from tests.workflows.cli import ROOT, command, environment, events, execute, write_config

KILLS = 5
EPOCHS = 7
RECIPE: dict[str, Any] = {
    "model": "embedded:tiny",
    "max_rows": 40,
    "epochs": EPOCHS,
    "batch_size": 16,
    "keep_last": 2,
}
NOOP: dict[str, Any] = {"trainer": {"config": {"backend": {"noop": {}}}}}
LAST_S = 120


def config_for(folder: Path, name: str) -> Path:
    return write_config(folder / f"{name}.yaml", folder / name, RECIPE, resources=NOOP)


def killed_after(config: Path, home: Path, checkpoints: int) -> None:
    """Run the job, and kill it when so many checkpoints are published in all."""
    process = subprocess.Popen(
        command(config), cwd=ROOT, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(LAST_S * 100):
        if process.poll() is not None or len(events(config, "training.checkpoint")) >= checkpoints:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def what_is_there(store: Path) -> dict[str, Any]:
    blobs = LocalBlobs(store)
    checkpoints = CheckpointStore(blobs)
    (fingerprint,) = checkpoints.find("")
    head = checkpoints.head(fingerprint)
    (version,) = StoreRegistry(blobs).versions("supervised")
    return {
        "states": {entry.step: entry.state_digest for entry in head.entries()},
        "whole": [entry.step for entry in head.entries() if entry.payload == "present"],
        "end": head.end,
        "version": (version.version, version.fingerprint, version.step, version.state_digest, version.model.digest),
    }


def test_killed_and_typed_again_it_ends_as_undisturbed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    alone = config_for(tmp_path, "undisturbed")
    done = execute(alone, home)
    assert done.returncode == 0, done.stderr
    config = config_for(tmp_path, "killed")
    for number in range(1, KILLS + 1):
        killed_after(config, home, number)
    done = execute(config, home)
    assert done.returncode == 0, done.stderr
    expected = what_is_there(tmp_path / "undisturbed")
    assert len(expected["states"]) == EPOCHS
    assert what_is_there(tmp_path / "killed") == expected
    steps = [event["metadata"]["step"] for event in events(config, "training.step")]
    # A kill may come between a step and its checkpoint, which is the next thing done.
    assert sorted(set(steps)) == list(range(1, max(steps) + 1))
    assert len(steps) - len(set(steps)) <= KILLS * (max(steps) // EPOCHS)
