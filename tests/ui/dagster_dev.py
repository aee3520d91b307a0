"""`dagster dev` as a person starts it in a terminal: in a process group of its own, and stopped as by Ctrl-C."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.ui.graphql_door import GraphqlDoor

REPOSITORY = Path(__file__).parents[2]
_START_S = 90
_STOP_S = 30


@dataclass(frozen=True)
class DagsterDev:
    """A running instance with its own Dagster home, store and recipes.

    Attributes:
        folder: Where all of it is.
        port: Port of the web server on 127.0.0.1.
        pid: The process `dagster dev`, also number of its session.
    """

    folder: Path
    port: int
    pid: int

    @property
    def url(self) -> str:
        """Address of the UI."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def store(self) -> Path:
        """Folder of the store."""
        return self.folder / "store"

    @property
    def graphql(self) -> GraphqlDoor:
        """Questions and launches without a browser."""
        return GraphqlDoor(self.url)

    def processes(self) -> list[psutil.Process]:
        """All processes of the session: web server, daemon, code servers, run workers; also where they lost their parent."""
        return processes_of(self.pid)


def processes_of(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


@contextmanager
def dagster_dev(folder: Path, recipes: dict[str, dict[str, Any]]) -> Iterator[DagsterDev]:
    """Start it, wait until the code location is loaded, and stop it in the end.

    Args:
        folder: Empty folder for everything it writes.
        recipes: Recipe files by name.

    Raises:
        RuntimeError: It ended or was not ready in time; the message has the end of its log.
        AssertionError: A process of it outlived Ctrl-C.
    """
    home = folder / "home"
    home.mkdir(parents=True)
    shutil.copy(REPOSITORY / "dagster_home" / "dagster.yaml", home)
    shelf = folder / "recipes"
    shelf.mkdir()
    for name, recipe in recipes.items():
        (shelf / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    log = folder / "dagster_dev.log"
    port = _free_port()
    command = [str(Path(sys.executable).with_name("dagster")), "dev"]
    command += ["-w", str(REPOSITORY / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(home, folder / "store", shelf),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell's background job ignores SIGINT, Dagster copies that to SIGTERM, and then neither stops it.
            preexec_fn=_default_signals,
        )
    dev = DagsterDev(folder, port, process.pid)
    try:
        _wait_until_loaded(dev, process, log)
        yield dev
    finally:
        left = _stop(process)
    assert left == [], f"{left} outlived Ctrl-C of dagster dev"


def _environment(home: Path, store: Path, recipes: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KITCHEN_", "DAGSTER_", "PYTEST_"))}
    ours = {"DAGSTER_HOME": home, "KITCHEN_STORE": store, "KITCHEN_RECIPES": recipes}
    return {**kept, **{name: str(path) for name, path in ours.items()}}


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_loaded(dev: DagsterDev, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not dev.graphql.is_loaded():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"dagster dev is not ready:\n{log.read_text()[-4000:]}")
        time.sleep(0.3)


def _stop(process: subprocess.Popen[bytes]) -> list[str]:
    """Ctrl-C, and what is left of the session after that; nothing is left in any case when this returns."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            pass
    alive = processes_of(process.pid)
    _, outlived = psutil.wait_procs(alive, timeout=_STOP_S / 2)
    left = [" ".join(survivor.cmdline())[:200] for survivor in outlived if survivor.is_running()]
    for survivor in outlived:
        survivor.kill()
    process.wait(_STOP_S)
    return left
