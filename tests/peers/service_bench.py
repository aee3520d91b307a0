"""Whole runs at a service of primitives, as its users start them: a store, its events, and ways to end a run early."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

import kitchen_assets as kitchen
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.head import Head
from kitchen_resources.checkpoints.store import CheckpointStore

SMALL: Mapping[str, Any] = {
    "max_rows": 40,
    "held_out": "0.2",
    "max_length": 96,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 1.0e-2,
    "lora": {"rank": 8},
    "evaluations": [],
    "eval_every": 1,
}
"""Two epochs of four steps."""


class ServiceBench:
    """A store, and runs at a service.

    Args:
        folder: For all that the runs write.
        base: Folder of the base, which the service has too.
        backend: What chooses the service, in run config: the backend's name, and its config.
    """

    def __init__(self, folder: Path, base: Path, backend: tuple[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        self.base = base
        self.backend = backend

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(LocalBlobs(self.folder / "store"))

    def resources(self, **backend: Any) -> dict[str, Any]:
        name, config = self.backend
        return {
            "blobs": {"store": {"local": {"path": str(self.folder / "store")}}},
            "telemetry": {"console": False, "jsonl": str(self.folder / "events.jsonl")},
            "trainer": {"backend": {name: {**config, **backend}}},
        }

    def config(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {**SMALL, "model": str(self.base), **fields}

    def run(
        self, fields: Mapping[str, Any] | None = None, recipe: str = "supervised", **backend: Any
    ) -> kitchen.RunResult:
        home = self.folder / "dagster"
        home.mkdir(parents=True, exist_ok=True)
        with dg.DagsterInstance.ephemeral(tempdir=str(home)) as instance:
            return kitchen.run(recipe, self.config(fields or {}), self.resources(**backend), instance=instance)

    def head(self) -> Head:
        (fingerprint,) = self.store.find("")
        return self.store.head(fingerprint)

    def losses(self) -> dict[int, float]:
        """The last loss that was reported of each step."""
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        events = (json.loads(line) for line in lines)
        return {
            event["metadata"]["step"]: event["measurements"]["loss"]
            for event in events
            if event["event"] == "training.step"
        }


def ended_by(number: int, bench: ServiceBench, checkpoints: int) -> int:
    """Run in a process of its own that gets a signal when it has published so often; its exit status."""
    program = (
        "import json, sys, kitchen_assets as kitchen; config, resources = json.loads(sys.argv[1]);"
        "kitchen.run('supervised', config, resources)"
    )
    given = json.dumps([bench.config({"checkpoint_steps": 2}), bench.resources()])
    env = {**os.environ, "DAGSTER_HOME": str(bench.folder)}
    (bench.folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with (bench.folder / "ended.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, given],
            env=env,
            stdout=log,
            stderr=log,
            # Also where the tests themselves run in the background, and so without this signal.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        while not bench.store.find("") or len(bench.head().entries()) < checkpoints:
            assert process.poll() is None, (bench.folder / "ended.log").read_text()[-3000:]
            time.sleep(0.02)
        process.send_signal(number)
        return process.wait()


@contextmanager
def at_step(bench: ServiceBench, step: int, do: Callable[[], None]) -> Iterator[None]:
    """Do something as soon as a step was reported, beside the run of the context, which must get as far."""
    over, done = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            if (bench.folder / "events.jsonl").is_file() and step in bench.losses():
                done.set()
                do()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        assert done.is_set(), f"the run ended before step {step}"
