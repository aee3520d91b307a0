"""Launches of one recipe at once, and one after the other on two machines: always one run, trained once."""

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import Head
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.registry.store import StoreRegistry
from tests.object_store import BUCKET, ObjectStore
from tests.workflows.cli import ROOT, command, environment, events, execute, write_config

pytestmark = [pytest.mark.heavy, pytest.mark.full]

RECIPE: dict[str, Any] = {
    "model": "embedded:tiny",
    "max_rows": 400,
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 3.0e-3,
    "evaluations": [],
    "eval_every": 0,
    "checkpoint_steps": 5,
}
STEPS = 48
LAST_S = 180


def head_of(blobs: BlobStore) -> Head | None:
    checkpoints = CheckpointStore(blobs)
    found = checkpoints.find("")
    return checkpoints.head(found[0]) if found else None


def steps_in(log: Path) -> list[int]:
    return [event["metadata"]["step"] for event in events(log, "training.step")]


def test_of_ten_launches_at_once_one_trains_and_nine_succeed_without_a_step(tmp_path: Path) -> None:
    store = tmp_path / "store"
    configs = [write_config(tmp_path / f"{number}.yaml", store, RECIPE) for number in range(10)]
    processes = [
        subprocess.Popen(
            command(config),
            cwd=ROOT,
            env=environment(tmp_path / config.stem),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for config in configs
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 10, said[0][-3000:]
    trained = sorted(len(steps_in(config)) for config in configs)
    assert trained == [0] * 9 + [STEPS]
    head = head_of(LocalBlobs(store))
    assert head is not None
    assert (head.holder, head.entries()[-1].step) == (None, STEPS)
    assert len(head.checkpoints) == len(head.entries())
    assert len(StoreRegistry(LocalBlobs(store)).versions("supervised")) == 1


def test_a_launch_on_another_machine_goes_on_with_the_run_of_the_first(
    tmp_path: Path, s3_server: ObjectStore
) -> None:
    """Another home, another scratch folder, other files of the embedded model: only the bucket is shared."""
    prefix = uuid.uuid4().hex
    bucket = {"store": {"s3": {"bucket": BUCKET, "prefix": prefix, "endpoint_url": s3_server.endpoint}}}
    resources = {"blobs": {"config": bucket}}

    def machine(name: str) -> tuple[Path, dict[str, str]]:
        config = write_config(tmp_path / f"{name}.yaml", tmp_path, RECIPE, resources=resources)
        env = environment(tmp_path / name)
        return config, {**env, **s3_server.env, "KITCHEN_SCRATCH": str(tmp_path / name / "scratch")}

    first, env = machine("first")
    process = subprocess.Popen(
        command(first), cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(LAST_S * 20):
        if process.poll() is not None or len(events(first, "training.checkpoint")) >= 3:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    blobs = s3_server.blobs(prefix)
    left = head_of(blobs)
    assert left is not None
    at = left.entries()[-1].step
    assert 15 <= at < STEPS

    second, env = machine("second")
    done = subprocess.run(command(second), cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert steps_in(second) == list(range(at + 1, STEPS + 1))
    head = head_of(blobs)
    assert head is not None

    alone = write_config(tmp_path / "alone.yaml", tmp_path / "store", RECIPE)
    assert execute(alone, tmp_path / "alone").returncode == 0
    expected = head_of(LocalBlobs(tmp_path / "store"))
    assert expected is not None
    assert head.fingerprint == expected.fingerprint
    assert head.entries()[-1].state_digest == expected.entries()[-1].state_digest
