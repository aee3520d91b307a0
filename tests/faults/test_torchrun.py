"""Several processes of one training, killed: a worker, the launcher. Nobody is left, and the bits are as undisturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

import kitchen_assets as kitchen
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.errors import CapabilityError, ConfigError

pytestmark = [pytest.mark.heavy, pytest.mark.full]

SMALL: Mapping[str, Any] = {
    "model": "embedded:tiny",
    "max_rows": 64,
    "held_out": "0",
    "epochs": 2,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 3.0e-3,
    "evaluations": [],
    "eval_every": 0,
    "checkpoint_steps": 2,
    "lora": {"rank": 4, "dropout": 0.2},
    "lease_wait_s": 120.0,
}
"""Two epochs of eight steps, with dropout that each process draws for itself."""


def resources(folder: Path) -> dict[str, Any]:
    return {
        "blobs": {"store": {"local": {"path": str(folder / "store")}}},
        "telemetry": {"console": False},
        "trainer": {"backend": {"trl": {"device": "cpu", "threads": 1, "processes": 2}}},
    }


def digests(folder: Path) -> dict[int, str]:
    store = CheckpointStore(LocalBlobs(folder / "store"))
    found = store.find("")
    return {entry.step: entry.state_digest for entry in store.head(found[0]).entries()} if found else {}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    kitchen.run("supervised", dict(SMALL), resources(folder))
    return digests(folder)


def started(folder: Path) -> "subprocess.Popen[str]":
    """A run in a process of its own; it has published once when this returns."""
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    program = (
        "import json, sys, kitchen_assets as kitchen; config, resources = json.loads(sys.argv[1]);"
        "kitchen.run('supervised', config, resources)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps([dict(SMALL), resources(folder)])],
        env={**os.environ, "DAGSTER_HOME": str(folder)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while not digests(folder):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    return process


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Torchrun and what it started."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [each for each in found if "kitchen_resources.training.worker.main" in " ".join(each.cmdline())]


def _rank_one(found: list[psutil.Process]) -> psutil.Process:
    (rank,) = [each for each in found if each.environ().get("RANK") == "1"]
    return rank


def test_what_is_killed_is_started_again_and_the_bits_are_the_same(tmp_path: Path, expected: dict[int, str]) -> None:
    """First a worker, and when its run has gone on, torchrun."""
    process = started(tmp_path)
    first = workers(process)
    _rank_one(first).send_signal(signal.SIGKILL)
    published = len(digests(tmp_path))
    while len(digests(tmp_path)) <= published + 1:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    second = workers(process)
    second[0].send_signal(signal.SIGKILL)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said[-3000:]
    assert digests(tmp_path) == expected
    assert not {one.pid for one in first} & {one.pid for one in second}
    assert psutil.wait_procs([*first, *second], timeout=30)[1] == []


def test_a_killed_launcher_leaves_nobody_and_the_next_run_goes_on(tmp_path: Path, expected: dict[int, str]) -> None:
    process = started(tmp_path)
    found = workers(process)
    assert len(found) == 3
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert psutil.wait_procs(found, timeout=60)[1] == []
    before = digests(tmp_path)
    kitchen.run("supervised", dict(SMALL), resources(tmp_path))
    assert digests(tmp_path) == expected
    assert before.items() <= expected.items()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"gradient_accumulation_steps": 1}, ConfigError, "1 forward passes a step can't be shared out among 2"),
        (
            {"max_rows": 33},
            CapabilityError,
            r"33 rows are 9 batches of 4, which 2 processes can't share evenly\n.*fix: ",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(
    tmp_path: Path, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kitchen.run("supervised", {**SMALL, **fields}, resources(tmp_path))
    assert digests(tmp_path) == {}
