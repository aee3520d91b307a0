"""One supervised recipe on every backend, its losses side by side: `make backends`.

Each is chosen as a user does, by one word of run config. Exits 1 where two backends that start from the same adapter
differ by more than they may, or one doesn't learn. A service makes its adapter's first weights itself, so that of its
losses only the first is the same.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import kitchen_assets as kitchen
from kitchen_resources.embedded import write_model
from tests.fireworks_server import fireworks_server
from tests.object_store import object_store
from tests.peers.adapters import trained_adapter
from tests.peers.hatchery import Hatchery
from tests.peers.hatchery_app import KEY as FIREWORKS_KEY
from tests.peers.hatchery_app import MODEL
from tests.peers.modal_server import ModalServer
from tests.peers.ray_cluster import ray_cluster
from tests.peers.skyrl import KEY, skyrl

RECIPE: Mapping[str, Any] = {
    "epochs": 2,
    "max_rows": 64,
    "held_out": "0",
    "max_length": 128,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1.0e-2,
    "lora": {"rank": 8},
    "eval_every": 0,
    "evaluations": [],
}
SAME = 1.0e-4
"""How far losses from the same first adapter may lie apart, relative. Measured: under 1e-5 after 16 updates."""

SERVICES = ("tinker", "fireworks")

SAME_BASE = 1.0e-3
"""How far a service's first loss may lie from this machine's, relative."""


@dataclass(frozen=True)
class Step:
    """What is compared of an optimiser step."""

    loss: float
    tokens: int


def steps_on(backend: Mapping[str, Any], folder: Path, base: Path, *, bucket: bool = False) -> list[Step]:
    """Run the recipe on a backend, with a store of its own or the bucket that the environment names; its steps."""
    (folder / "dagster").mkdir(parents=True)
    events = folder / "events.jsonl"
    resources = {
        **({} if bucket else {"blobs": {"store": {"local": {"path": str(folder / "store")}}}}),
        "telemetry": {"console": False, "jsonl": str(events)},
        "trainer": {"backend": dict(backend)},
    }
    with dg.DagsterInstance.ephemeral(tempdir=str(folder / "dagster")) as instance:
        result = kitchen.run("supervised", {**RECIPE, "model": str(base)}, resources, instance=instance)
    if not any(checkpoint["payload"] == "present" for checkpoint in result.checkpoints):
        raise SystemExit(f"{', '.join(backend)} has made no checkpoint")
    told = [json.loads(line) for line in events.read_text().splitlines()]
    numbers = [event["measurements"] for event in told if event["event"] == "training.step"]
    return [Step(step["loss"], step["tokens"]) for step in numbers]


def wrong(steps: Mapping[str, Sequence[Step]]) -> list[str]:
    """What isn't as it should be, one sentence each."""
    found = []
    for name, ours in steps.items():
        theirs = steps["trl"]
        if [step.tokens for step in ours] != [step.tokens for step in theirs]:
            found.append(f"{name} trained other tokens than trl")
        if not ours[-1].loss < ours[0].loss - 0.1:
            found.append(f"{name} didn't learn: {ours[0].loss:.4f} -> {ours[-1].loss:.4f}")
        first, limit = (1, SAME_BASE) if name in SERVICES else (len(theirs), SAME)
        differences = [abs(a.loss - b.loss) / b.loss for a, b in zip(ours[:first], theirs[:first], strict=True)]
        if not max(differences) <= limit:
            found.append(f"{name} differs from trl by {max(differences):.1e} of the loss, and may by {limit:.0e}")
    return found


def table(steps: Mapping[str, Sequence[Step]]) -> str:
    """The losses, and how far each lies from trl's."""
    lines = ["step " + "".join(f"{name:>24}" for name in steps)]
    for number, row in enumerate(zip(*steps.values(), strict=True), start=1):
        cells = (f"{step.loss:.6f} ({step.loss - row[0].loss:+.1e})" for step in row)
        lines.append(f"{number:>4} " + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def on_modal(folder: Path, base: Path) -> list[Step]:
    """By calls of a function, which Modal's own SDK makes at a server of its protocol; the store is a bucket."""
    with object_store(folder / "bucket") as store:
        place = {**store.env, "KITCHEN_STORE": "s3://kitchen-tests/side-by-side"}
        (folder / "calls").mkdir(parents=True)
        scratch = {"KITCHEN_SCRATCH": str(folder / "there"), "OMP_NUM_THREADS": "1"}
        with ModalServer(folder / "calls", {**place, **scratch}) as server, pytest.MonkeyPatch.context() as patch:
            for name, value in {**place, **server.settings, "KITCHEN_SCRATCH": str(folder / "here")}.items():
                patch.setenv(name, value)
            return steps_on({"modal": {"device": "cpu", "threads": 1}}, folder / "run", base, bucket=True)


def on_fireworks_jobs(folder: Path, base: Path) -> None:
    """By a managed job, which tells no steps: that its adapter comes here, and is measured and registered, is all."""
    with fireworks_server(key=FIREWORKS_KEY, account="kitchen-tests") as server:
        files = trained_adapter(base, folder / "adapter")
        server.adapter_files = lambda job: dict(files)
        backend = {"base_model": "accounts/fireworks/models/qwen3-8b", "base_url": server.url, "poll_s": 0.1}
        told = steps_on({"fireworks_jobs": backend}, folder / "run", base)
        if told or len(server.jobs["supervisedFineTuningJobs"]) != 1:
            raise SystemExit("a managed job was made twice, or told of steps")


def main() -> int:
    """Train on all backends; the exit status."""
    os.environ.update({"TINKER_API_KEY": KEY, "FIREWORKS_API_KEY": FIREWORKS_KEY})
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        base = folder / "tiny"
        write_model(base)
        here = {"device": "cpu", "threads": 1}
        steps = {
            name: steps_on(backend, folder / name.replace(", ", "-"), base)
            for name, backend in {
                "trl": {"trl": here},
                "local": {"local": here},
                "trl, 2 processes": {"trl": {**here, "processes": 2}},
            }.items()
        }
        with skyrl(folder / "skyrl", base) as server:
            service = {"base_model": str(base), "base_url": server.url, "request_deadline_s": 120.0}
            steps["tinker"] = steps_on({"tinker": service}, folder / "tinker", base)
        with Hatchery(folder / "hatchery", base) as server:
            service = {"base_model": MODEL, "base_url": server.trainers, "request_deadline_s": 120.0}
            steps["fireworks"] = steps_on({"fireworks": service}, folder / "fireworks", base)
        on_fireworks_jobs(folder / "fireworks_jobs", base)
        steps["modal"] = on_modal(folder / "modal", base)
        cluster = stack.enter_context(ray_cluster(folder / "ray.log"))
        os.environ.update(cluster.env)
        workers = {"address": cluster.address, "processes": 2, "threads": 1}
        steps["ray"] = steps_on({"ray": workers}, folder / "ray", base)
    print(table(steps))
    problems = wrong(steps)
    print(
        "\n".join(problems)
        or "all backends are alike, and learn; fireworks_jobs, which tells no losses, made a checkpoint"
    )
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
