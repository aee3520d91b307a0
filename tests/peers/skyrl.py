"""A real server of the Tinker API on this machine: SkyRL, on its JAX backend, in an environment of its own.

It is started for the tests, and stopped by the ids of its processes. What it needs to run beside Python 3.11 is said in
docs/decisions/0019-remote-services.md.
"""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

KEY = "tml-a-key-for-the-tests"
ENVIRONMENT = Path(__file__).parents[2] / ".venv" / "peers" / "skyrl"
_UP_S = 120


class SkyRL:
    """A SkyRL server.

    Args:
        folder: Where it keeps database, checkpoints and logs.
        model: Folder of the base that it serves.
        adapters: Places for adapters.
    """

    def __init__(self, folder: Path, model: Path, *, adapters: int = 8) -> None:
        self.folder = folder
        self.model = model
        self._adapters = adapters
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert (ENVIRONMENT / "bin" / "uv").exists(), "the peer isn't installed: make peers"
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TINKER"))}
        env |= {
            "VIRTUAL_ENV": str(ENVIRONMENT),
            "PATH": f"{ENVIRONMENT / 'bin'}:{env['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "UV_OFFLINE": "1",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(ENVIRONMENT / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }
        command = [
            *("uv", "run", "--no-project", "--active", "-m", "skyrl.tinker.api"),
            *("--base-model", str(self.model), "--backend", "jax", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--checkpoints-base", str(self.folder / "checkpoints")),
            *("--database-url", f"sqlite:///{self.folder / 'tinker.db'}"),
            *("--session-timeout-sec", "60", "--session-cleanup-interval-sec", "15"),
            *("--backend-config", f'{{"max_lora_adapters": {self._adapters}, "max_lora_rank": 8}}'),
        ]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        for _ in range(_UP_S * 10):
            if self._process.poll() is not None:
                break
            with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.url}/api/v1/healthz"):
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


@contextmanager
def skyrl(folder: Path, model: Path, *, adapters: int = 8) -> Iterator[SkyRL]:
    """A running server, killed in the end."""
    server = SkyRL(folder, model, adapters=adapters)
    server.start()
    try:
        yield server
    finally:
        server.kill()
