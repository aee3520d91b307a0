"""Whole runs on a real Ray cluster: the bits of torchrun, killed workers, a lost launcher, and never a second job."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

import kitchen_assets as kitchen
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.head import Head
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.errors import BackendError, CapabilityError
from tests.faults import test_torchrun as torchrun
from tests.peers.ray_cluster import TOKEN, RayCluster, ray_cluster

SMALL: Mapping[str, Any] = {**torchrun.SMALL, "max_rows": 32, "lora": None}
"""Two epochs of four steps, saved at every second one."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with pytest.MonkeyPatch.context() as patch, ray_cluster(tmp_path_factory.mktemp("ray") / "head.log") as running:
        for name, value in running.env.items():
            patch.setenv(name, value)
        yield running


class Bench:
    """A store, and runs on a backend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def resources(self, backend: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "blobs": {"store": {"local": {"path": str(self.folder / "store")}}},
            "telemetry": {"console": False, "jsonl": str(self.folder / "events.jsonl")},
            "trainer": {"backend": dict(backend)},
        }

    def run(self, backend: Mapping[str, Any], **fields: Any) -> tuple[kitchen.RunResult, dg.DagsterInstance]:
        home = self.folder / "dagster"
        home.mkdir(exist_ok=True)
        instance = dg.DagsterInstance.ephemeral(tempdir=str(home))
        return kitchen.run("supervised", {**SMALL, **fields}, self.resources(backend), instance=instance), instance

    def head(self) -> Head | None:
        store = CheckpointStore(LocalBlobs(self.folder / "store"))
        found = store.find("")
        return store.head(found[0]) if found else None

    def digests(self) -> dict[int, str]:
        head = self.head()
        return {entry.step: entry.state_digest for entry in head.entries()} if head else {}

    def steps(self) -> list[int]:
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return [event["metadata"]["step"] for event in events if event["event"] == "training.step"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, dict[int, str]]:
    """The states of the run by torchrun on this machine, by number of processes."""
    found = {}
    for processes in (1, 2):
        bench = Bench(tmp_path_factory.mktemp(f"alone-{processes}"))
        bench.run({"trl": {"device": "cpu", "threads": 1, "processes": processes}})
        found[processes] = bench.digests()
    return found


def on_ray(cluster: RayCluster, processes: int = 2, **how: Any) -> dict[str, Any]:
    return {"ray": {"address": cluster.address, "processes": processes, "threads": 1, **how}}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_has_the_bits_of_torchrun_and_streams_its_steps(
    tmp_path: Path, cluster: RayCluster, expected: Mapping[int, dict[int, str]], processes: int
) -> None:
    bench = Bench(tmp_path / "bench")
    result, instance = bench.run(on_ray(cluster, processes))
    assert bench.digests() == expected[processes]
    assert bench.steps() == list(range(1, 9))
    tags = instance.get_run_by_id(result.run_id).tags  # type: ignore[union-attr]
    assert tags["kitchen/ray_job"].startswith(f"kitchen-{result.fingerprint[:16]}-")
    said = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert any("Ray job" in message and "started" in message for message in said)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_a_killed_worker_is_gone_on_from(
    tmp_path: Path, cluster: RayCluster, expected: Mapping[int, dict[int, str]]
) -> None:
    bench = Bench(tmp_path / "bench")
    program = _program(bench, on_ray(cluster))
    process = subprocess.Popen(program, env=_env(cluster, bench), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    _until(lambda: len(bench.digests()) >= 1, process)
    (actor,) = [found for found in cluster.processes() if "ray::Rank" in " ".join(_command(found))]
    actor.send_signal(signal.SIGKILL)
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said[-3000:]
    assert bench.digests() == expected[2]
    assert len(_jobs(cluster, bench)) == 2


def test_a_lost_launcher_leaves_no_job_and_the_next_run_goes_on(
    tmp_path: Path, cluster: RayCluster, expected: Mapping[int, dict[int, str]]
) -> None:
    bench = Bench(tmp_path / "bench")
    process = subprocess.Popen(_program(bench, on_ray(cluster)), env=_env(cluster, bench))
    _until(lambda: len(bench.digests()) >= 1, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = bench.digests()
    bench.run(on_ray(cluster), lease_wait_s=120.0)
    assert bench.digests() == expected[2]
    assert {step: digest for step, digest in bench.digests().items() if step in before} == before
    ours = _jobs(cluster, bench)
    assert len(ours) >= 2
    assert all(job.status.is_terminal() for job in ours)
    spans = sorted((job.start_time or 0, job.end_time or 0) for job in ours)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans)), "never two at a time"


def test_a_canceled_run_leaves_no_job(
    tmp_path: Path, cluster: RayCluster, expected: Mapping[int, dict[int, str]]
) -> None:
    bench = Bench(tmp_path / "bench")
    process = subprocess.Popen(
        _program(bench, on_ray(cluster)),
        env=_env(cluster, bench),
        # Also where the tests themselves run in the background, and so without this signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    _until(lambda: len(bench.digests()) >= 1, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() > 0
    head = bench.head()
    assert head is not None
    assert (head.holder, head.end) == (None, None)
    (job,) = _jobs(cluster, bench)
    assert job.status.is_terminal()
    assert bench.steps() == list(range(1, head.entries()[-1].step + 1)), "published where it stopped"
    bench.run(on_ray(cluster))
    assert expected[2].items() <= bench.digests().items()


def test_what_the_cluster_cannot_do_is_refused_before_any_work(tmp_path: Path, cluster: RayCluster) -> None:
    bench = Bench(tmp_path / "bench")
    with pytest.raises(CapabilityError, match="8 processes want 8 CPUs, and the cluster has 4"):
        bench.run(on_ray(cluster, 8), gradient_accumulation_steps=8, batch_size=1)
    with pytest.raises(BackendError, match="can't be asked") as away:
        bench.run({"ray": {"address": "http://127.0.0.1:9"}})
    assert away.value.mendable
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", "another-token-that-is-not-its-own")
        with pytest.raises(BackendError, match="can't be asked"):
            bench.run(on_ray(cluster))
    assert bench.digests() == {}


def test_a_cluster_killed_in_mid_epoch_and_started_again(
    tmp_path: Path, cluster: RayCluster, expected: Mapping[int, dict[int, str]]
) -> None:
    bench = Bench(tmp_path / "bench")
    process = subprocess.Popen(
        _program(bench, on_ray(cluster)), env=_env(cluster, bench), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    _until(lambda: len(bench.digests()) >= 1, process)
    cluster.kill()
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode != 0
    assert "BackendError" in said
    assert TOKEN not in said
    cluster.start()
    bench.run(on_ray(cluster), lease_wait_s=120.0)
    assert bench.digests() == expected[2]


def _jobs(cluster: RayCluster, bench: Bench) -> list[Any]:
    """The cluster's jobs of the run in a store."""
    from ray.job_submission import JobSubmissionClient

    folder = str(bench.folder / "store")
    jobs = JobSubmissionClient(cluster.address).list_jobs()
    return [job for job in jobs if (job.metadata or {}).get("kitchen_folder", "").startswith(folder)]


def _program(bench: Bench, backend: Mapping[str, Any]) -> list[str]:
    given = json.dumps([dict(SMALL), bench.resources(backend)])
    program = (
        "import json, sys, kitchen_assets as kitchen; config, resources = json.loads(sys.argv[1]);"
        "kitchen.run('supervised', config, resources)"
    )
    return [sys.executable, "-c", program, given]


def _env(cluster: RayCluster, bench: Bench) -> dict[str, str]:
    (bench.folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    return {**os.environ, **cluster.env, "DAGSTER_HOME": str(bench.folder)}


def _until(holds: Any, process: "subprocess.Popen[bytes]") -> None:
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
