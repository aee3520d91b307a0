"""Several processes on this machine that train one job together, started by torchrun."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, DAGSTER_PIPES_MESSAGES_ENV_VAR, encode_param

from kitchen_resources import errors
from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import BackendError, KitchenError
from kitchen_resources.training.port import (
    CheckpointDraft,
    EpochResult,
    ExternalState,
    LocalCheckpoint,
    TrainingEvents,
    TrainingJob,
)
from kitchen_resources.training.pytorch.export import export_model
from kitchen_resources.training.worker.job_file import checkpoint_value, job_value, result_from, steps_from
from kitchen_resources.training.worker.mailbox import Mailbox

_PAUSE_S = 0.01
_STOP_S = 10.0
_SHOWN_LINES = 15


class TorchrunSession:
    """A `Session` whose work is done by processes of its own, which live as long as it does.

    Args:
        job: What to train.
        processes: How many.
        exact_inside: Whether a run can go on exactly from inside an epoch.
    """

    def __init__(self, job: TrainingJob, processes: int, *, exact_inside: bool) -> None:
        self._job = job
        self._processes = processes
        self._exact_inside = exact_inside
        self._folder = job.scratch / f"workers-{uuid.uuid4().hex[:8]}"
        self._mailbox = Mailbox(self._folder)
        self._held = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: Iterator[dict[str, Any] | None] = iter(())
        self._requests = 0

    def train_epoch(self, epoch: int, parent: LocalCheckpoint | None, events: TrainingEvents) -> EpochResult:
        """See `Session.train_epoch`."""
        try:
            if self._process is None:
                self._start()
            self._requests += 1
            request = {
                "end": False,
                "epoch": epoch,
                "parent": checkpoint_value(parent),
                "earlier_rows": [list(rows) for rows in events.earlier_rows()],
                "earlier_steps": [vars(step) for step in events.earlier_steps()],
            }
            self._mailbox.put(f"request-{self._requests}", request)
            return self._attend(epoch, events)
        except BaseException:
            # Whatever went wrong here, they don't know of it, and would wait or go on.
            self._kill()
            raise

    def export(self, checkpoint: LocalCheckpoint, target: Path, *, merged: bool) -> None:
        """See `Session.export`."""
        export_model(self._job.base, self._job.serving(), checkpoint, target, merged=merged)

    def close(self) -> None:
        """See `Session.close`."""
        if self._process is not None and self._process.poll() is None:
            self._mailbox.put(f"request-{self._requests + 1}", {"end": True})
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
        self._kill()

    # What they say.

    def _attend(self, epoch: int, events: TrainingEvents) -> EpochResult:
        for message in self._messages:
            if message is None:
                # Read what it said last, and only then believe that it says no more.
                if self._process is None or self._process.poll() is not None:
                    for last in self._messages:
                        if last is None:
                            break
                        if (done := self._heard(last, events)) is not None:
                            return done
                    raise self._failure(epoch)
                time.sleep(_PAUSE_S)
                continue
            if (done := self._heard(message, events)) is not None:
                return done
        raise AssertionError("messages don't end")

    def _heard(self, message: Mapping[str, Any], events: TrainingEvents) -> EpochResult | None:
        kind = message["kind"]
        if kind == "step":
            events.step(*steps_from([message["metrics"]]))
        elif kind == "stopping":
            self._mailbox.put(message["answer"], {"stop": events.stopping(exact=message["exact"])})
        elif kind == "checkpoint":
            published = events.checkpoint(_draft(message["draft"]))
            self._mailbox.put(message["answer"], {"checkpoint": checkpoint_value(published)})
        elif kind == "done":
            return result_from(message)
        return None

    def _failure(self, epoch: int) -> KitchenError:
        """What went wrong, as the process that it went wrong in tells it; the others only miss that one."""
        assert self._process is not None
        for rank in range(self._processes):
            told = self._mailbox.get(f"failed-{rank}")
            if told is not None and told["type"]:
                return _error(told)
        told = next((t for rank in range(self._processes) if (t := self._mailbox.get(f"failed-{rank}"))), None)
        log = (self._folder / "workers.log").read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
        what = told["what"] if told else f"the workers ended with status {self._process.returncode}"
        return BackendError(
            f"{what}; the last they wrote:\n" + "\n".join(log),
            where=f"epoch {epoch}, {self._processes} processes",
            fix="run it again: it goes on from the last checkpoint",
            # Killed from outside, and not by an error of theirs.
            retriable=told is None,
        )

    # Starting and ending them.

    def _start(self) -> None:
        self._held.enter_context(self._mailbox.alive())
        (self._folder / "context.json").write_bytes(canonical_json(_pipes_context(self._job)))
        messages = self._folder / "messages.jsonl"
        messages.touch()
        self._messages = _tail(messages)
        self._mailbox.put(
            "job",
            {"job": job_value(self._job), "processes": self._processes, "exact_inside": self._exact_inside},
        )
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(self._processes), "--max-restarts", "0"),
            *("-m", "kitchen_resources.training.worker.main", str(self._folder)),
        ]
        env = {
            **os.environ,
            # A process of one thread never asks for more; and libgomp is told before torch is loaded.
            "OMP_NUM_THREADS": str(self._job.resolution.threads),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            DAGSTER_PIPES_CONTEXT_ENV_VAR: encode_param({"path": str(self._folder / "context.json")}),
            DAGSTER_PIPES_MESSAGES_ENV_VAR: encode_param({"path": str(messages)}),
        }
        with (self._folder / "workers.log").open("wb") as log:
            # A session of its own: a Ctrl-C is the launcher's to act on, at the end of a step.
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _kill(self) -> None:
        """End all of them, whatever they are doing; may be called twice."""
        process, self._process = self._process, None
        if process is not None:
            children = []
            with suppress(psutil.NoSuchProcess):
                children = psutil.Process(process.pid).children(recursive=True)
            for each in (process.pid, *(child.pid for child in children)):
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            process.wait()
            psutil.wait_procs(children, timeout=_STOP_S)
        self._held.close()
        self._requests = 0
        self._folder = self._job.scratch / f"workers-{uuid.uuid4().hex[:8]}"
        self._mailbox = Mailbox(self._folder)


def _tail(path: Path) -> Iterator[dict[str, Any] | None]:
    """The custom messages in a file of Dagster Pipes as they come; None whenever there is no further one yet."""
    with path.open("rb") as stream:
        line = b""
        while True:
            line += stream.readline()
            if not line.endswith(b"\n"):
                yield None
                continue
            message, line = json.loads(line), b""
            if message["method"] == "report_custom_message":
                payload: dict[str, Any] = message["params"]["payload"]
                yield payload


def _draft(value: Mapping[str, Any]) -> CheckpointDraft:
    return CheckpointDraft(
        **{
            **value,
            "folder": Path(value["folder"]),
            "steps": steps_from(value["steps"]),
            "records": {name: base64.b64decode(data) for name, data in value["records"].items()},
            "external": tuple(ExternalState(**state) for state in value["external"]),
        }
    )


def _error(told: Mapping[str, Any]) -> KitchenError:
    """An error of a worker, as it was raised there."""
    kind = getattr(errors, told["type"], BackendError)
    given = {"where": told["where"], "fix": told["fix"]}
    if issubclass(kind, BackendError):
        return kind(told["what"], **given, retriable=told["mendable"])
    found: KitchenError = kind(told["what"], **given)
    return found


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
