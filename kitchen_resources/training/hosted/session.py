"""A `Session` whose one epoch is a job at a service: made once, whoever launches, and followed to its end.

The job's name follows from an order in the store. So a launcher that is lost between any two requests leaves either no
job, or one that the next launcher finds by its name.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import BackendError, CapabilityError, ConfigError, LeaseLost
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

_ENDED = ("failed", "stopped", "gone")
_MISSED = 3
"""Looks in a row that find no such job, after which it is believed to be gone."""


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
        try:
            return self._train(events)
        except Exception:
            # What is under way goes on: whoever comes next finds it.
            raise
        except BaseException:
            # Somebody wants it to stop, wherever that was noticed.
            if self._open_job:
                self._cancel(self._open_job)
            raise

    def _train(self, events: TrainingEvents) -> EpochResult:
        order, status = self._under_way(events)
        name = self._open_job = self._name(order)
        with suppress(Exception):
            # A tag for people; what is paid for isn't given up for it.
            self._followed(name)
        if status is None:
            self._create(order, name, events)
        started = time.monotonic()
        status = self._follow(order, events)
        self._open_job = ""
        folder = self._job.scratch / name
        if not self._patiently(lambda: self._jobs.download(status.model, folder), events):
            order.end("its model is gone")
            raise BackendError(
                f"job {name} is done, and {status.model} isn't there any more",
                where=self._jobs.where,
                fix="launch it again, which makes another job",
            )
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
            order = known[-1]
            self._require_same_place(order, events)
            self._open_job = self._name(order)
            status = self._settled(events)
            if status is None or status.phase not in _ENDED:
                return order, status
            if status.phase != "gone":
                resumed = self._patiently(lambda: self._jobs.resume(self._open_job), events)
                again = self._settled(events)
                # Also where the answer was lost, and asked for again was a refusal: what it does now decides.
                if resumed or (again is not None and again.phase not in _ENDED):
                    self._say(f"job {self._open_job} goes on ({status.state}: {status.said})")
                    return order, again
            events.check()
            order.end(status.state)
            self._open_job = ""
        return self._new_order(known[-1].number + 1 if known else 1, events), None

    def _new_order(self, number: int, events: TrainingEvents) -> Order:
        # Before anything is asked for: rows that can't be said so are refused now.
        self._write_rows()
        order = Order(self._blobs, self._job.fingerprint, number)
        place = self._patiently(self._jobs.place, events)
        events.check()
        if not order.put("order", {"format": FORMAT, "service": self._jobs.where, "place": dict(place)}):
            raise LeaseLost("another process has ordered meanwhile", where=f"run {self._job.fingerprint[:12]}")
        return order

    def _require_same_place(self, order: Order, events: TrainingEvents) -> None:
        """Refuse to look for a job where it isn't: it would be taken for one that nobody has made."""
        made = (order.get("order") or {}).get("place")
        here = dict(self._patiently(self._jobs.place, events))
        if made is not None and made != here:
            raise ConfigError(
                f"is {_words(here)}, and a job of this run is under way at {_words(made)}",
                where=self._jobs.where,
                fix="name that one again; or cancel the job there, and delete it, first",
            )

    def _settled(self, events: TrainingEvents) -> JobStatus | None:
        """How the open job stands, once what was done to it just now has come to its end."""
        end = time.monotonic() + self._patience.start
        while True:
            status = self._patiently(lambda: self._jobs.look(self._open_job), events)
            if status is None or status.phase != "stopping" or time.monotonic() > end:
                return status
            self._wait(self._patience.ask, events)

    def _create(self, order: Order, name: str, events: TrainingEvents) -> None:
        rows = self._write_rows()
        try:
            self._patiently(lambda: self._jobs.create(name, rows), events)
        except BackendError as error:
            # A name that is used up, or a refusal for good: the next launch is to ask by another name.
            if not error.mendable and self._patiently(lambda: self._jobs.look(name), events) is None:
                order.end("refused")
            raise
        self._say(f"job {name} is made")

    def _write_rows(self) -> Path:
        rows = self._job.scratch / "rows.jsonl"
        if not rows.exists():
            draft = rows.with_suffix(".draft")
            write_lines(self._job.data, getattr(self._job.recipe, "train_on", ""), draft)
            draft.rename(rows)
        return rows

    def _follow(self, order: Order, events: TrainingEvents) -> JobStatus:
        """Look at the job until it is done.

        Raises:
            BackendError: It failed, was stopped at the service, never began, or can't be asked after.
        """
        name, since, missed = self._name(order), time.monotonic(), 0
        while True:
            status = self._patiently(lambda: self._jobs.look(name), events)
            missed = missed + 1 if status is None else 0
            if status is None and missed < _MISSED:
                # One that was made just now needn't be seen at once everywhere.
                self._wait(self._patience.ask, events)
                continue
            if status is None:
                status = JobStatus("gone", "NOT_FOUND", "the service has it no more")
            self._tell(name, status)
            if status.phase == "done":
                return status
            if status.phase in _ENDED:
                raise self._ended(order, name, status)
            if status.phase != "waiting" or status.progress:
                since = float("inf")
            if time.monotonic() - since > self._patience.start:
                raise self._never_began(order, name, status, events)
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

    def _never_began(self, order: Order, name: str, status: JobStatus, events: TrainingEvents) -> BackendError:
        self._patiently(lambda: self._jobs.cancel(name), events)
        now = self._patiently(lambda: self._jobs.look(name), events)
        called_off = now is None or now.phase in ("stopping", *_ENDED)
        if called_off:
            order.end("never began")
        return BackendError(
            f"job {name} has not begun in {self._patience.start:g} s: it is {status.state}, and "
            + ("is called off" if called_off else "could not be called off"),
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
                left = (since or now) + self._patience.silence - now
                if not error.mendable or left < 0:
                    raise
                if since is None:
                    since = now
                    self._say(f"asking again: {error.what}")
                asked = getattr(error, "retry_after_s", None) or 0.0
                self._wait(min(max(pause, asked), max(left, self._patience.ask)), events)
                pause = min(2 * pause, 10 * self._patience.ask)

    def _wait(self, seconds: float, events: TrainingEvents) -> None:
        """Sleep, and see whether to stop."""
        end = time.monotonic() + seconds
        while True:
            events.check()
            events.stopping(exact=False)
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
            metrics={"tokens": float(tokens), "seconds": status.seconds or seconds, **charged},
            steps=(),
        )


def _words(place: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(place.items()))


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
