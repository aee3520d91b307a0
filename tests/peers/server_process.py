"""A peer's server as a process on this machine: started for the tests, and stopped by the ids of its processes."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

_UP_S = 120


class ServerProcess(ABC):
    """A server that keeps what it has in a folder.

    Args:
        folder: For its data and its log.
        model: Folder of the base that it serves.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    @abstractmethod
    def health(self) -> str:
        """What answers as soon as it is up."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What starts it."""

    def environment(self) -> Mapping[str, str]:
        """What it needs besides this process' environment, from which `PYTHON…` and keys are taken."""
        return {}

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        secret = ("PYTHON", "TINKER", "FIREWORKS")
        env = {name: value for name, value in os.environ.items() if not name.startswith(secret)}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                list(self.command()),
                env={**env, **self.environment()},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(_UP_S * 10):
            if self._process.poll() is not None:
                break
            with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(self.health):
                return
            time.sleep(0.1)
        raise AssertionError(self.log[-4000:])

    def kill(self) -> None:
        """End all its processes by SIGKILL, as a lost machine does."""
        process, self._process = self._process, None
        if process is None:
            return
        children = psutil.Process(process.pid).children(recursive=True)
        for pid in (process.pid, *(child.pid for child in children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        psutil.wait_procs(children, timeout=30)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
