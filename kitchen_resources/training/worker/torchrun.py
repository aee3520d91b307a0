"""Several processes on this machine that train one job together, started by torchrun."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, DAGSTER_PIPES_MESSAGES_ENV_VAR, encode_param

from kitchen_resources.digests import canonical_json
from kitchen_resources.training.port import TrainingJob
from kitchen_resources.training.worker.messages import NAME, Message, custom_messages
from kitchen_resources.training.worker.session import STOP_S


class Torchrun:
    """Starts workers by torchrun.

    Args:
        processes: How many.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes

    def __call__(self, folder: Path, job: TrainingJob) -> "TorchrunWorkers":
        """See `Starter`."""
        (folder / "context.json").write_bytes(canonical_json(_pipes_context(job)))
        messages = folder / NAME
        messages.touch()
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(self._processes), "--max-restarts", "0"),
            *("-m", "kitchen_resources.training.worker.main", str(folder)),
        ]
        env = {
            **os.environ,
            "OMP_NUM_THREADS": str(job.resolution.threads),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            DAGSTER_PIPES_CONTEXT_ENV_VAR: encode_param({"path": str(folder / "context.json")}),
            DAGSTER_PIPES_MESSAGES_ENV_VAR: encode_param({"path": str(messages)}),
        }
        with (folder / "workers.log").open("wb") as log:
            # A session of its own: a Ctrl-C is the launcher's to act on, at the end of a step.
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return TorchrunWorkers(process, folder)


class TorchrunWorkers:
    """See `Workers`."""

    def __init__(self, process: "subprocess.Popen[bytes]", folder: Path) -> None:
        self._process = process
        self._folder = folder

    @property
    def ended(self) -> str | None:
        """See `Workers.ended`."""
        status = self._process.poll()
        return None if status is None else f"torchrun's exit status is {status}"

    def messages(self) -> Iterator[Message | None]:
        """See `Workers.messages`."""
        return custom_messages(self._folder / NAME)

    def log(self) -> Sequence[str]:
        """See `Workers.log`."""
        return (self._folder / "workers.log").read_text(errors="replace").splitlines()

    def wait(self, seconds: float) -> None:
        """See `Workers.wait`."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def kill(self) -> None:
        """See `Workers.kill`."""
        children = []
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._process.pid).children(recursive=True)
        for pid in (self._process.pid, *(child.pid for child in children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        psutil.wait_procs(children, timeout=STOP_S)


def _pipes_context(job: TrainingJob) -> dict[str, Any]:
    """What Dagster Pipes tells a process of where it runs; workers need none of it."""
    return {
        "asset_keys": None,
        "code_version_by_asset_key": None,
        "provenance_by_asset_key": None,
        "partition_key": None,
        "partition_key_range": None,
        "partition_time_window": None,
        "run_id": job.fingerprint,
        "job_name": None,
        "retry_number": 0,
        "extras": {},
    }
