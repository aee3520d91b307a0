"""A `Session` whose work is done by processes of its own: what it asks of them, and what it answers."""

import base64
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from kitchen_resources import errors
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
from kitchen_resources.training.worker.messages import Message

STOP_S = 10.0
"""How long workers that were told to end may take, in seconds."""

_PAUSE_S = 0.01
_SHOWN_LINES = 15

_LOST = re.compile(
    r"connection (closed|reset) by peer|broken pipe|socket closed|remote (process|error)", re.IGNORECASE
)
"""What a process says whose partner is gone."""


class Workers(Protocol):
    """Processes at work on a folder of messages."""

    @property
    def ended(self) -> str | None:
        """How they ended, in words; None while they work."""
        ...

    def messages(self) -> Iterator[Message | None]:
        """What they tell, in order and without end; None whenever there is nothing more yet."""
        ...

    def log(self) -> Sequence[str]:
        """The lines that they wrote."""
        ...

    def wait(self, seconds: float) -> None:
        """Wait for their end, as long as that."""
        ...

    def kill(self) -> None:
        """End all of them, whatever they are doing; returns when they are gone."""
        ...


class Starter(Protocol):
    """Starts workers."""

    def __call__(self, folder: Path, job: TrainingJob) -> Workers:
        """Start them on a folder of messages, in which `job.json` lies already."""
        ...


class WorkersSession:
    """See the module. The workers live as long as it does.

    Args:
        job: What to train.
        start: Starts the workers.
        processes: How many train together.
        exact_inside: Whether a run can go on exactly from inside an epoch.
    """

    def __init__(self, job: TrainingJob, start: Starter, *, processes: int, exact_inside: bool) -> None:
        self._job = job
        self._starter = start
        self._processes = processes
        self._exact_inside = exact_inside
        self._held = ExitStack()
        self._workers: Workers | None = None
        self._mailbox = Mailbox(job.scratch)
        self._messages: Iterator[Message | None] = iter(())
        self._requests = 0

    def train_epoch(self, epoch: int, parent: LocalCheckpoint | None, events: TrainingEvents) -> EpochResult:
        """See `Session.train_epoch`."""
        try:
            if self._workers is None:
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
        if self._workers is not None and self._workers.ended is None:
            self._mailbox.put(f"request-{self._requests + 1}", {"end": True})
            self._workers.wait(STOP_S)
        self._kill()

    # What they say.

    def _attend(self, epoch: int, events: TrainingEvents) -> EpochResult:
        assert self._workers is not None
        while True:
            # Read what they said last, and only then believe that they say no more.
            ended = self._workers.ended
            for message in self._messages:
                if message is None:
                    break
                if (done := self._heard(message, events)) is not None:
                    return done
            if ended is not None:
                raise self._failure(epoch, ended)
            time.sleep(_PAUSE_S)

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

    def _failure(self, epoch: int, ended: str) -> KitchenError:
        """What went wrong, as the process that it went wrong in tells it; the others only miss that one."""
        assert self._workers is not None
        told = [t for rank in range(self._processes) if (t := self._mailbox.get(f"failed-{rank}"))]
        own = [t for t in told if not _LOST.search(t["what"])]
        if own and own[0]["type"]:
            return told_error(own[0])
        what = own[0]["what"] if own else f"the workers ended ({ended})"
        return BackendError(
            f"{what}; the last they wrote:\n" + "\n".join(list(self._workers.log())[-_SHOWN_LINES:]),
            where=f"epoch {epoch}, {self._processes} processes",
            fix="run it again: it goes on from the last checkpoint",
            # Killed from outside, and not by an error of theirs.
            retriable=not own,
        )

    # Starting and ending them.

    def _start(self) -> None:
        folder = self._job.scratch / f"workers-{uuid.uuid4().hex[:8]}"
        self._mailbox = Mailbox(folder)
        self._requests = 0
        self._held.enter_context(self._mailbox.alive())
        self._mailbox.put(
            "job",
            {"job": job_value(self._job), "processes": self._processes, "exact_inside": self._exact_inside},
        )
        self._workers = self._starter(folder, self._job)
        self._messages = self._workers.messages()

    def _kill(self) -> None:
        """End all of them; may be called twice."""
        workers, self._workers = self._workers, None
        try:
            if workers is not None:
                workers.kill()
        finally:
            self._held.close()


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


def told_error(told: Mapping[str, Any]) -> KitchenError:
    """An error of a worker, as it was raised there."""
    kind = getattr(errors, told["type"], BackendError)
    given = {"where": told["where"], "fix": told["fix"]}
    if issubclass(kind, BackendError):
        return kind(told["what"], **given, retriable=told["mendable"])
    found: KitchenError = kind(told["what"], **given)
    return found
