"""A real Ray cluster on this machine: a head with a token, stopped by the ids of its processes.

`ray stop` would stop every Ray on the machine. Some of its listeners are on all interfaces whatever address it is given,
so that it is never without a token.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

TOKEN = "a-token-of-the-tests-that-is-long-enough"
_UP_S = 120


class RayCluster:
    """A head node.

    Args:
        log: File of what it writes.
        cpus: CPUs that it offers, whatever the machine has.
    """

    def __init__(self, log: Path, *, cpus: int = 4) -> None:
        self._log = log
        self._cpus = cpus
        # Short, because sockets lie in it.
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = {name: _free_port() for name in ("port", "dashboard-port", "ray-client-server-port")}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._ports['dashboard-port']}"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to talk to it."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            str(Path(sys.executable).with_name("ray")),
            *("start", "--head", "--block", "--disable-usage-stats"),
            *("--num-cpus", str(self._cpus), "--temp-dir", str(self.folder)),
            *("--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1"),
            *(part for name, port in self._ports.items() for part in (f"--{name}", str(port))),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **self.env}, stdout=log, stderr=log, start_new_session=True
            )
        request = urllib.request.Request(f"{self.address}/api/v0/nodes", headers={"Authorization": f"Bearer {TOKEN}"})
        for _ in range(_UP_S * 10):
            if self._process.poll() is not None:
                break
            with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request) as answer:
                # It answers before it knows its own node.
                if json.loads(answer.read())["data"]["result"]["total"]:
                    return
            time.sleep(0.1)
        raise AssertionError(self._log.read_text()[-3000:])

    def processes(self) -> list[psutil.Process]:
        """All of it that runs: daemons and workers name its folder, or are children of one that does."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if any(str(self.folder) in part for part in process.cmdline()):
                    found[process.pid] = process
                    found.update({child.pid: child for child in process.children(recursive=True)})
        return list(found.values())

    def kill(self) -> None:
        """End all of it by SIGKILL, as a lost machine does."""
        if self._process is None:
            return
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None


@contextmanager
def ray_cluster(log: Path, *, cpus: int = 4) -> Iterator[RayCluster]:
    """A running cluster, killed in the end."""
    cluster = RayCluster(log, cpus=cpus)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()
        shutil.rmtree(cluster.folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port
