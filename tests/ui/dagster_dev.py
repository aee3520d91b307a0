"""`dagster dev` as a person starts it in a terminal: in a process group of its own, and stopped as by Ctrl-C."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.registry.store import StoreRegistry
from tests.ui.graphql_door import GraphqlDoor

REPOSITORY = Path(__file__).parents[2]
DAGSTER = str(Path(sys.executable).with_name("dagster"))
KITCHEN = {"python_module": {"module_name": "kitchen_assets.definitions", "location_name": "kitchen"}}
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
    def graphql(self) -> GraphqlDoor:
        """Questions and launches without a browser."""
        return GraphqlDoor(self.url)

    @property
    def blobs(self) -> LocalBlobs:
        """The store."""
        return LocalBlobs(self.folder / "store")

    @property
    def checkpoints(self) -> CheckpointStore:
        """The checkpoints in it."""
        return CheckpointStore(self.blobs)

    @property
    def registry(self) -> StoreRegistry:
        """The versions and aliases in it."""
        return StoreRegistry(self.blobs)

    def environment(self, name: str = "") -> dict[str, str]:
        """The environment of a shell: that of the instance, or with a home and store of their own but its recipes."""
        return _environment(self.folder, name)

    def processes(self) -> set[int]:
        """All processes of the session: web server, daemon, code servers, run workers; orphans too.

        But for Python's resource tracker, which the code server starts with its first run and keeps.
        """
        found = processes_of(self.pid)
        return {process.pid for process in found if "multiprocessing.resource_tracker" not in _command_line(process)}


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


def wait_until(holds: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Ask until the answer is true, and return it, asking at least once a second, and mostly waiting.

    Raises:
        TimeoutError: It wasn't in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        asked = time.monotonic()
        answer = holds()
        answered = time.monotonic()
        if answer:
            return answer
        if answered > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        # A web server that is asked without pause takes a core from the run that is waited for.
        time.sleep(min(1.0, max(0.05, 3 * (answered - asked))))


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def dagster_dev(folder: Path, recipes: dict[str, dict[str, Any]], **variables: str) -> Iterator[DagsterDev]:
    """Start it, wait until the code location is loaded, and stop it in the end.

    Args:
        folder: Empty folder for everything it writes.
        recipes: Recipe files by name.
        variables: Further environment variables.

    Raises:
        RuntimeError: It ended or was not ready in time; the message has the end of its log.
        AssertionError: A process of it outlived Ctrl-C.
    """
    shelf = folder / "recipes"
    shelf.mkdir()
    for name, recipe in recipes.items():
        (shelf / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    log = folder / "dagster_dev.log"
    port = _free_port()
    # The kitchen's own location alone: each has a server and sensors of its own.
    (locations := folder / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [KITCHEN]}))
    workspace = ["-w", str(locations), "-h", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [DAGSTER, "dev", *workspace],
            cwd=folder,
            env={**_environment(folder, ""), **variables},
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


def _environment(folder: Path, name: str) -> dict[str, str]:
    home = folder / name / "home"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(REPOSITORY / "dagster_home" / "dagster.yaml", home)
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("KITCHEN_", "DAGSTER_", "PYTEST_"))
    }
    ours = {"DAGSTER_HOME": home, "KITCHEN_STORE": folder / name / "store", "KITCHEN_RECIPES": folder / "recipes"}
    return {**kept, **{variable: str(path) for variable, path in ours.items()}}


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_loaded(dev: DagsterDev, process: subprocess.Popen[bytes], log: Path) -> None:
    try:
        wait_until(lambda: process.poll() is not None or dev.graphql.is_loaded(), _START_S, "dagster dev")
    except TimeoutError as error:
        raise RuntimeError(f"dagster dev is not ready:\n{log.read_text()[-4000:]}") from error
    if process.poll() is not None:
        raise RuntimeError(f"dagster dev ended:\n{log.read_text()[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> list[str]:
    """Ctrl-C; returns the command lines of what lived on, which is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
    _, outlived = psutil.wait_procs(processes_of(process.pid), timeout=_STOP_S)
    left = [_command_line(survivor)[:200] for survivor in outlived]
    for survivor in outlived:
        survivor.kill()
    process.wait(_STOP_S)
    return left
