"""Ctrl-C and SIGTERM in the middle of a real training: nothing that was done is lost, and the run shows as canceled."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

import kitchen_assets as kitchen
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.head import Head
from kitchen_resources.checkpoints.store import CheckpointStore
from tests.workflows.cli import ROOT, command, environment, events, execute, write_config
from tests.workflows.conftest import Bench

pytestmark = [pytest.mark.heavy, pytest.mark.full]

LONG: dict[str, Any] = {
    "max_rows": 800,
    "epochs": 1,
    "batch_size": 8,
    "learning_rate": 3.0e-3,
    "held_out": "0",
    "evaluations": [],
    "eval_every": 0,
    "checkpoint_steps": 7,
    "keep_last": 1,
}
STEPS = 100
LAST_S = 120

PYTHON_DOOR = """
import sys, yaml
import kitchen_assets as kitchen
resources = yaml.safe_load(open(sys.argv[1]))["resources"]
config = resources.pop("supervised")["config"]
try:
    kitchen.run("supervised", config, {name: value["config"] for name, value in resources.items()})
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(130)
"""


def head_of(store: Path) -> Head | None:
    """The head of the only run in a store, when it has begun."""
    checkpoints = CheckpointStore(LocalBlobs(store))
    found = checkpoints.find("")
    return checkpoints.head(found[0]) if found else None


def train_until_published(
    argv: list[str], home: Path, store: Path
) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start a run; it is training, and has published once, when this returns. Also all its processes."""
    process = subprocess.Popen(
        argv,
        env=environment(home),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # As in a shell's foreground, also where the tests themselves run in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for _ in range(LAST_S * 20):
        head = head_of(store)
        if process.poll() is not None or (head is not None and head.entries()):
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]
    found = psutil.Process(process.pid)
    return process, [found, *found.children(recursive=True)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Head:
    """The run as it is when nobody stops it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with dg.DagsterInstance.ephemeral(tempdir=str(folder)) as instance:
        bench = Bench(folder / "store", folder, instance)
        alone = kitchen.run("supervised", LONG, bench.resources(), instance=instance)
        return bench.checkpoints.head(alone.fingerprint)


@pytest.mark.parametrize(
    ("door", "number"),
    [
        ("cli", signal.SIGINT),
        ("cli", signal.SIGTERM),
        ("processes", signal.SIGINT),
        ("python", signal.SIGINT),
    ],
)
def test_it_stops_at_a_step_publishes_shows_canceled_and_goes_on(
    bench: Bench, door: str, number: int, undisturbed: Head
) -> None:
    spawned: dict[str, Any] = {"execution": {"config": {"multiprocess": {"max_concurrent": 1}}}}
    config = write_config(bench.folder / "config.yaml", bench.root, LONG, **(spawned if door == "processes" else {}))
    home = bench.folder / "home"
    argv = [sys.executable, "-c", PYTHON_DOOR, str(config)] if door == "python" else command(config)
    process, processes = train_until_published(argv, home, bench.root)
    # As a terminal does: to every process of the group.
    os.killpg(process.pid, number)
    said = process.communicate(timeout=LAST_S)[0]
    assert process.returncode != 0
    # Python's own tracker of resources notices a moment later that nobody is left.
    assert psutil.wait_procs(processes, timeout=LAST_S)[1] == []

    head = head_of(bench.root)
    assert head is not None
    stopped_at = head.entries()[-1].step
    trained = [event["metadata"]["step"] for event in events(config, "training.step")]
    assert trained == list(range(1, stopped_at + 1)), "each step once, and none after the last that was published"
    assert 7 <= stopped_at < STEPS
    assert (head.holder, head.end) == (None, None)
    assert list(LocalBlobs(bench.root).scratch().glob("runs/*/*")) == []
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.CANCELED
        messages = " ".join(entry.user_message for entry in instance.all_logs(run.run_id))
    assert f"stopped on request at step {stopped_at}, which is published" in messages
    if door == "python":
        assert said.endswith("interrupted\n")

    if number == signal.SIGTERM:
        again = execute(config, home)
        assert again.returncode == 0, again.stdout + again.stderr
        assert f"going on from step {stopped_at} (epoch 1)" in again.stdout + again.stderr
        trained = [event["metadata"]["step"] for event in events(config, "training.step")]
        assert trained == list(range(1, STEPS + 1))
    else:
        # The same without a process of its own, which takes long to start.
        kitchen.run("supervised", LONG, bench.resources(), instance=bench.instance)
    ended = head_of(bench.root)
    assert ended is not None

    assert ended.fingerprint == undisturbed.fingerprint
    expected = undisturbed.entries()[-1]
    assert (ended.entries()[-1].step, expected.step) == (STEPS, STEPS)
    assert ended.entries()[-1].state_digest == expected.state_digest
