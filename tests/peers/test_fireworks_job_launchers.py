"""Managed jobs of Fireworks whose launchers end, and what a launcher costs that waits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.fireworks_server import FireworksServer
from tests.peers.jobs_bench import JOB, SUPERVISED, asked, jobs_bench, made
from tests.peers.service_bench import ServiceBench


def launcher(bench: ServiceBench) -> "subprocess.Popen[bytes]":
    """A run in a process of its own."""
    program = (
        "import json, sys, kitchen_assets as kitchen; config, resources = json.loads(sys.argv[1]);"
        "kitchen.run('supervised', config, resources)"
    )
    given = json.dumps([bench.config({**JOB, "lease_wait_s": 120.0}), bench.resources()])
    (bench.folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with (bench.folder / "launcher.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", program, given],
            env={**os.environ, "DAGSTER_HOME": str(bench.folder)},
            stdout=log,
            stderr=log,
            # Also where the tests themselves run in the background, and so without this signal.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[bytes]", folder: Path) -> None:
    while not what():
        assert process.poll() is None, (folder / "launcher.log").read_text()[-3000:]
        time.sleep(0.05)


def is_at(server: FireworksServer, state: str) -> bool:
    return any(job.now.state == state for job in list(server.jobs[SUPERVISED].values()))


def test_a_launcher_that_is_killed_leaves_a_job_that_the_next_one_finds(
    job_bench: ServiceBench, job_server: FireworksServer
) -> None:
    job_server.hold_at("RUNNING")
    process = launcher(job_bench)
    wait_for(lambda: is_at(job_server, "RUNNING"), process, job_bench.folder)
    process.kill()
    process.wait()
    job_server.release()
    result = job_bench.run({**JOB, "lease_wait_s": 120.0})
    assert result.evaluation is not None
    assert len(made(job_server)) == 1
    assert not asked(job_server, "POST", ":cancel")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_run_that_is_canceled_cancels_its_job_and_goes_on_with_it(
    job_bench: ServiceBench, job_server: FireworksServer, number: signal.Signals
) -> None:
    job_server.hold_at("RUNNING")
    process = launcher(job_bench)
    wait_for(lambda: is_at(job_server, "RUNNING"), process, job_bench.folder)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    assert len(asked(job_server, "POST", ":cancel")) == 1
    head = job_bench.head()
    assert (head.holder, head.entries()) == (None, [])
    job_server.release()
    assert job_bench.run(JOB).evaluation is not None
    assert len(made(job_server)) == 1
    assert len(asked(job_server, "POST", ":resume")) == 1


def test_waiting_costs_next_to_nothing(tmp_path: Path, job_server: FireworksServer, base: Path) -> None:
    """By the CPU time of the launcher, and not by a clock: a look each tenth of a second, of which ten thousand an hour."""
    bench = jobs_bench(tmp_path, job_server, base, poll_s=0.1)
    job_server.hold_at("RUNNING")
    process = launcher(bench)

    def looks() -> int:
        return len([request for request in asked(job_server, "GET", "-1") if "Jobs/" in request.path])

    wait_for(lambda: looks() > 20, process, bench.folder)
    watched = psutil.Process(process.pid)
    before, first = sum(watched.cpu_times()[:2]), looks()
    wait_for(lambda: looks() >= first + 100, process, bench.folder)
    each = (sum(watched.cpu_times()[:2]) - before) / (looks() - first)
    process.kill()
    process.wait()
    # At the usual 30 s between looks an hour has 120.
    assert 120 * each < 20.0, f"{each:.3f} CPU s a look"
    job_server.release()
    shutil.rmtree(tmp_path / "dagster", ignore_errors=True)
