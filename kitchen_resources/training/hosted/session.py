"""A `Session` whose one epoch is a job at a service: made once, whoever launches, and followed to its end.

The job's name follows from an order in the store. So a launcher that is lost between any two requests leaves either no
job, or one that the next launcher finds by its name.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import BackendError, CapabilityError, LeaseLost
from kitchen_resources.training.hosted.port import HostedJobs, JobStatus
from kitchen_resources.training.hosted.rows import write_lines
from kitchen_resources.training.orders.order import FORMAT, Order, orders_of
from kitchen_resources.training.port import (
    CheckpointDraft,
    EpochResult,
    LocalCheckpoint,
    TrainingEvents,
    TrainingJob,
)
from kitchen_resources.training.pytorch.export import export_model
from kitchen_resources.training.remote.adapters import ADAPTER_FILES

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a launcher waits, in seconds.

    Attributes:
        look: Between two looks at whether to stop.
        ask: Between two questions to the service.
        start: For a job to begin.
        silence: For a service that doesn't answer, or only with errors that pass.
    """

    look: float = 2.0
    ask: float = 30.0
    start: float = 21600.0
    silence: float = 3600.0


class HostedSession:
    """See the module.

    Args:
        job: What to train; it has a store.
        jobs: The service.
        state_file: Name of the file that says in a checkpoint which job made it.
        followed: Told of each job that is followed, by its name.
        say: Tells a person.
        patience: How long to wait for what.
    """

    def __init__(
        self,
        job: TrainingJob,
        jobs: HostedJobs,
        *,
        state_file: str,
        followed: Callable[[str], None],
        say: Callable[[str], None],
        patience: Patience,
    ) -> None:
        assert job.blobs is not None
        self._job = job
        self._blobs: BlobStore = job.blobs
        self._jobs = jobs
        self._state_file = state_file
        self._followed = followed
        self._say = say
        self._patience = patience
        self._last_said = ""
        # The job that may be under way, which a stop ends.
        self._open_job = ""

    def train_epoch(self, epoch: int, parent: LocalCheckpoint | None, events: TrainingEvents) -> EpochResult:
        """See `Session.train_epoch`; a job that is under way is followed, and none is made beside it."""
        if parent is not None:
            raise CapabilityError("can't go on from a checkpoint", where=self._jobs.where, fix="another backend")
        events.check()
        order, status = self._under_way(events)
        name = self._open_job = self._name(order)
        with suppress(Exception):
            # A tag for people; what is paid for isn't given up for it.
            self._followed(name)
        if status is None:
            rows = self._job.scratch / "rows.jsonl"
            write_lines(self._job.data, getattr(self._job.recipe, "train_on", ""), rows)
            self._patiently(lambda: self._jobs.create(name, rows), events)
            self._say(f"job {name} is made")
        started = time.monotonic()
        status = self._follow(order, events)
        self._open_job = ""
        folder = self._job.scratch / name
        self._patiently(lambda: self._jobs.download(status.model, folder), events)
        checkpoint = events.checkpoint(self._draft(folder, name, status, time.monotonic() - started))
        order.end("done")
        return EpochResult(checkpoint, self._job.plan.total_steps)

    def export(self, checkpoint: LocalCheckpoint, target: Path, *, merged: bool) -> None:
        """See `Session.export`."""
        export_model(self._job.base, self._job.serving(), checkpoint, target, merged=merged)

    def close(self) -> None:
        """See `Session.close`. A job goes on without its launcher."""

    # The job.

    def _name(self, order: Order) -> str:
        return f"kitchen-{self._job.fingerprint[:16]}-{order.number}"

    def _under_way(self, events: TrainingEvents) -> tuple[Order, JobStatus | None]:
        """The order of the job that is to be followed, and how that stands; a new one when the last came to nothing."""
        known = orders_of(self._blobs, self._job.fingerprint)
        for order in known:
            if order.get("over") is not None:
                # What a launcher that died had no time for.
                order.tidy()
        if known and known[-1].get("over") is None:
            order, name = known[-1], self._name(known[-1])
            status = self._patiently(lambda: self._jobs.look(name), events)
            while status is not None and status.phase == "stopping":
                # The launch before has canceled it just now.
                self._wait(self._patience.ask, events)
                status = self._patiently(lambda: self._jobs.look(name), events)
            if status is None or status.phase not in ("failed", "stopped", "gone"):
                return order, status
            if status.phase != "gone" and self._patiently(lambda: self._jobs.resume(name), events):
                self._say(f"job {name} goes on ({status.state}: {status.said})")
                return order, status
            order.end(status.state)
        order = Order(self._blobs, self._job.fingerprint, known[-1].number + 1 if known else 1)
        events.check()
        if not order.put("order", {"format": FORMAT, "service": self._jobs.where}):
            raise LeaseLost("another process has ordered meanwhile", where=f"run {self._job.fingerprint[:12]}")
        return order, None

    def _follow(self, order: Order, events: TrainingEvents) -> JobStatus:
        """Look at the job until it is done.

        Raises:
            BackendError: It failed, was stopped at the service, never began, or can't be asked after.
        """
        name = self._name(order)
        began: float | None = None
        while True:
            status = self._patiently(lambda: self._jobs.look(name), events)
            if status is None:
                status = JobStatus("gone", "NOT_FOUND", "the service has it no more")
            self._tell(name, status)
            if status.phase == "done":
                return status
            if status.phase in ("failed", "stopped", "gone"):
                raise self._ended(order, name, status)
            began = began or time.monotonic()
            if status.phase == "working":
                # From here on it may pause, be queued again, or say what nobody knows: it has begun.
                began = float("inf")
            if time.monotonic() - began > self._patience.start:
                raise self._never_began(order, name, status)
            self._wait(self._patience.ask, events)

    def _tell(self, name: str, status: JobStatus) -> None:
        """Say what is new."""
        unknown = ", which this version doesn't know; it goes on looking" if status.phase == "unknown" else ""
        progress = f", {status.progress:.0%}" if status.progress is not None else ""
        words = f": {status.said}" if status.said else ""
        said = f"job {name} is {status.state}{progress}{words}{unknown}"
        if said != self._last_said:
            self._say(said)
            self._last_said = said

    def _ended(self, order: Order, name: str, status: JobStatus) -> BackendError:
        # One that may go on is left open: the next launch lets it.
        if status.phase == "gone" or (status.phase == "failed" and not status.mendable):
            order.end(status.state)
        fix = {
            "failed": "see the message of the service",
            "stopped": "launch it again, and it goes on where the service lets it",
            "gone": "launch it again, which makes another job",
        }[status.phase]
        return BackendError(
            f"job {name} ended as {status.state}" + (f": {status.said}" if status.said else ""),
            where=self._jobs.where,
            fix=fix,
            retriable=status.mendable,
        )

    def _never_began(self, order: Order, name: str, status: JobStatus) -> BackendError:
        with suppress(BackendError):
            self._jobs.cancel(name)
        order.end("never began")
        return BackendError(
            f"job {name} has not begun in {self._patience.start:g} s: it is {status.state}, and is called off",
            where=self._jobs.where,
            fix="see at the service what it waits for, or raise start_deadline_s",
        )

    # Waiting.

    def _patiently(self, question: Callable[[], T], events: TrainingEvents) -> T:
        """What the service answers, however long it is away; as often as it asks to be asked."""
        since: float | None = None
        pause = self._patience.ask
        while True:
            try:
                return question()
            except BackendError as error:
                now = time.monotonic()
                since = since or now
                if not error.mendable or now - since > self._patience.silence:
                    raise
                if pause == self._patience.ask:
                    self._say(f"asking again: {error.what}")
                self._wait(max(pause, getattr(error, "retry_after_s", None) or 0.0), events)
                pause = min(2 * pause, 10 * self._patience.ask)

    def _wait(self, seconds: float, events: TrainingEvents) -> None:
        """Sleep, and see whether to stop; then the job is canceled, and a later launch lets it go on."""
        end = time.monotonic() + seconds
        while True:
            events.check()
            try:
                events.stopping(exact=False)
            except BaseException:
                if self._open_job:
                    self._cancel(self._open_job)
                raise
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, self._patience.look))

    def _cancel(self, job: str) -> None:
        try:
            self._jobs.cancel(job)
        except BackendError as error:
            self._say(f"job {job} could not be canceled, and goes on: {error}")

    # What it made.

    def _draft(self, folder: Path, name: str, status: JobStatus, seconds: float) -> CheckpointDraft:
        plan = self._job.plan
        record = {**status.record, "job": name, "model": status.model, "state": status.state}
        (folder / self._state_file).write_bytes(canonical_json(record))
        tokens = trained_tokens(self._job) * self._job.recipe.epochs
        charged = {} if status.cost_usd is None else {"cost_usd": status.cost_usd}
        return CheckpointDraft(
            folder=folder,
            state_files=list(ADAPTER_FILES),
            other_files=[self._state_file],
            epoch=plan.epochs,
            global_step=plan.total_steps,
            steps_into_epoch=plan.total_steps,
            epoch_complete=True,
            row_ids=(),
            metrics={"tokens": float(tokens), "seconds": seconds, **charged},
            steps=(),
        )


def trained_tokens(job: TrainingJob) -> int:
    """Tokens that one pass over the rows trains, as they were prepared here."""
    import pyarrow.compute
    import pyarrow.parquet

    names = pyarrow.parquet.read_schema(job.data.path).names
    columns = ["labels"] if "labels" in names else ["chosen_ids", "rejected_ids"]
    total = 0
    for batch in pyarrow.parquet.ParquetFile(job.data.path).iter_batches(columns=columns):
        for name in columns:
            values = batch.column(name).flatten()
            total += (
                len(values)
                if name != "labels"
                else pyarrow.compute.sum(pyarrow.compute.not_equal(values, -100)).as_py()
            )
    return total
