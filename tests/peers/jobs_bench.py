"""Managed jobs in tests: the server, runs by it, and what was asked of it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fireworks_server import FireworksServer
from tests.peers.service_bench import ServiceBench

ACCOUNT = "kitchen-tests"
MODEL = "accounts/fireworks/models/qwen3-8b"
SUPERVISED = "supervisedFineTuningJobs"
JOB = {"learning_rate": 1.0e-3, "epochs": 3, "eval_every": 1}


def jobs_bench(folder: Path, server: FireworksServer, base: Path, **backend: Any) -> ServiceBench:
    config = {"base_model": MODEL, "base_url": server.url, "poll_s": 0.05, "silence_s": 30.0, **backend}
    return ServiceBench(folder, base, ("fireworks_jobs", config))


def asked(server: FireworksServer, method: str, ending: str) -> list[Any]:
    return [request for request in server.record if request.method == method and request.path.endswith(ending)]


def made(server: FireworksServer) -> list[Any]:
    """Requests that make a supervised job."""
    return asked(server, "POST", SUPERVISED)


class at_state:
    """Do something as soon as a look at a job finds a state, beside the run of the context, which must get as far."""

    def __init__(self, server: FireworksServer, state: str, do: Callable[[], Any]) -> None:
        self._server, self._state, self._do = server, state, do
        self._over, self._done = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.is_set():
            if any(job.now.state == self._state for job in list(self._server.jobs[SUPERVISED].values())):
                self._done.set()
                self._do()
                return
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        assert self._done.is_set(), f"no job came to {self._state}"
