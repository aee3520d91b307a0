"""A training run: make the checkpoints of all planned epochs exist, whoever asks and however often.

One mechanism serves the first run, the same command again, a re-execution, a resume after a kill, and a finished
recipe run again: read the head, and train what is missing, in order, under the lease.
"""

import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from kitchen_resources.blobs.derived import DerivedStore
from kitchen_resources.blobs.workplace import remove_abandoned
from kitchen_resources.checkpoints.head import CheckpointEntry, Head, Holder
from kitchen_resources.checkpoints.lease import Lease, NotNeeded, acquire
from kitchen_resources.checkpoints.manifest import Manifest
from kitchen_resources.checkpoints.store import RunRecord
from kitchen_resources.errors import BackendError, CheckpointError, KitchenError, LedgerError, StateLost
from kitchen_resources.evaluation.checkpoints import CheckpointEvaluations
from kitchen_resources.evaluation.port import EvaluationResult
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.identity import Identity, Start, identify
from kitchen_resources.training.environment import as_started, drift_of, first_environment
from kitchen_resources.training.events import Observer, PublishingEvents
from kitchen_resources.training.history import FailureMark, moved_notes, remember_run
from kitchen_resources.training.ledger import LedgerReport, RowPlan, read_report
from kitchen_resources.training.orders.order import end_orders
from kitchen_resources.training.plan import TrainingPlan, make_plan
from kitchen_resources.training.port import Capabilities, LocalCheckpoint, Resolution, TrainingJob
from kitchen_resources.training.progress import Progress
from kitchen_resources.training.start import fetch_start, find_start, require_something_to_do
from kitchen_resources.training.stopping import StopRequest

_MOST_REPEATS = 2
"""How often a backend that fails for a passing reason is tried again without a checkpoint more than before."""

_MOST_DAMAGED = 3
"""Checkpoints found damaged by one call after which it gives up: on a broken disk it would train for ever."""


@dataclass(frozen=True)
class Planned:
    """What there is to do.

    Attributes:
        missing: Epochs whose checkpoint doesn't exist.
        epochs: All planned epochs.
        notes: What a person should know: what moved since the last run of the recipe, and what it costs.
    """

    missing: tuple[int, ...]
    epochs: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Finished:
    """A run that is over.

    Attributes:
        head: The run's head.
        selected: The checkpoint that becomes the model.
        steps_done: Optimiser steps that this call did.
        ledger: What its steps received, all of it as planned.
    """

    head: Head
    selected: CheckpointEntry
    steps_done: int
    ledger: LedgerReport


class TrainingRun:
    """See the module."""

    def __init__(self, launch: Launch, observer: Observer) -> None:
        self._launch = launch
        self._observer = observer
        self._recipe = launch.recipe
        self._store = launch.checkpoints
        self._stop = StopRequest()
        # How many checkpoints there were whenever the backend failed.
        self._repeats: tuple[int, ...] = ()

    # What the run is.

    @cached_property
    def plan(self) -> TrainingPlan:
        """Its steps and epochs."""
        rows = self._launch.prepared.trained.rows
        return make_plan(self._recipe, rows, in_one_go=self._can.in_one_go)

    @property
    def _can(self) -> Capabilities:
        return self._launch.ports.trainer.adapter.capabilities()

    @cached_property
    def start(self) -> Start | None:
        """The stored checkpoint that it continues."""
        return find_start(self._launch, self.plan, self._identify)

    @cached_property
    def identity(self) -> Identity:
        """What its fingerprint is the digest of."""
        return self._identify(self.start)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits."""
        return self.identity.fingerprint

    @cached_property
    def evaluations(self) -> CheckpointEvaluations:
        """What is measured of its checkpoints."""
        return CheckpointEvaluations(self._launch)

    @cached_property
    def _progress(self) -> Progress:
        return Progress(self._launch, self.plan, self.evaluations)

    @property
    def first_epoch(self) -> int:
        """The first epoch to train, from 1; later where another run is continued."""
        if self.start is None or self.start.carry == "weights":
            return 1
        checkpoint = self.start.checkpoint
        return checkpoint.epoch + 1 if checkpoint.epoch_complete else checkpoint.epoch

    def head(self) -> Head:
        """Its head now."""
        return self._store.head(self.fingerprint)

    # The three stages.

    def planned(self) -> Planned:
        """What is missing; also notes the run, so that later launches can say what moved.

        Raises:
            ConfigError: It continues a run that has all the epochs already.
        """
        require_something_to_do(self.start, self._recipe, self.plan)
        head = self.head()
        last = self._progress.last_epoch(head)
        missing = tuple(
            epoch for epoch in range(self.first_epoch, last + 1) if not self._progress.is_made(head, epoch)
        )
        notes = self._notes(head, missing)
        self._launch.write("run", {"fingerprint": self.fingerprint})
        remember_run(self._launch, self.fingerprint, self.identity.value)
        return Planned(missing=missing, epochs=self.plan.epochs, notes=notes)

    def ensure(self, epoch: int) -> int:
        """Make the checkpoint of an epoch exist, with its evaluation if due; earlier epochs that are missing too.

        Returns:
            The optimiser steps that were really done.

        Raises:
            KitchenError: Training failed; a mark is left, so that later epochs of this run fail at once.
        """
        self._require_pinned()
        if self._progress.is_done(self.head(), epoch):
            return 0
        self._failure.raise_if_left()
        try:
            with self._leased(keep=epoch < self.plan.epochs, unless_done=epoch) as lease:
                return self._train_through(lease, epoch)
        except NotNeeded:
            return 0
        except BaseException as error:
            self._launch.ports.trainer.discard()
            self._mark_failed(error)
            raise

    def finish(self) -> Finished:
        """Make what is missing, write down that the run is over, and choose the model.

        Raises:
            LedgerError: Its steps received other rows than planned, by the records in the store.
        """
        steps = self.ensure(self.plan.epochs)
        # Also where there was nothing to train: the one before may have been killed while it cleared up.
        remove_abandoned(self._launch.ports.blobs.scratch())
        head = self.head()
        whole = {entry.step for entry in head.entries() if entry.payload == "present"}
        if head.end != self._progress.end(head) or self._leftovers() or whole - self._progress.to_keep(head):
            with self._leased() as lease:
                # Here too: a process that was killed may have published the last epoch and not come to it, and a
                # finished run is launched again with other retention.
                self._retain(lease)
                self._remove_scratch()
                lease.update(lambda current: replace(current, end=self._progress.end(current)))
            head = self.head()
        if self._can.places_orders:
            # Of a launcher that died when the last epoch was published.
            end_orders(self._launch.ports.blobs, self.fingerprint, "the run is trained", self._observer.say)
        self._launch.ports.trainer.let_go()
        ledger = self._require_planned_rows(head)
        return Finished(head=head, selected=self._progress.selected(head), steps_done=steps, ledger=ledger)

    def retain(self) -> None:
        """Delete the payload of checkpoints that the recipe doesn't keep."""
        with self._leased() as lease:
            self._retain(lease)

    def evaluate_selected(self) -> EvaluationResult:
        """What is measured of the checkpoint that becomes the model; measured now when it hasn't been."""
        return self.evaluate(self._progress.selected(self.head()))

    def evaluate(self, entry: CheckpointEntry) -> EvaluationResult:
        """What is measured of one of the run's checkpoints; measured now when it hasn't been.

        Raises:
            CheckpointError: It is damaged, and is quarantined now.
        """
        found = self.evaluations.recorded(entry)
        if found is None:
            with self._leased() as lease:
                self.evaluations.evaluate(lease, entry, self._resolution(lease.head), self._observer.say)
                measured = lease.head.at(entry.step)
            found = self.evaluations.recorded(measured) if measured else None
        if found is None:
            raise CheckpointError(
                "the checkpoint is damaged and was quarantined",
                where=f"run {self.fingerprint[:12]}, step {entry.step}",
                fix="run the recipe again, which makes it again",
            )
        return found

    def job(self) -> TrainingJob:
        """What a session needs."""
        live = self._launch.ports.trainer.job
        if live is not None and live.fingerprint == self.fingerprint:
            return live
        return TrainingJob(
            fingerprint=self.fingerprint,
            recipe=self._recipe,
            resolution=self._resolution(self.head()),
            base=self._launch.base,
            models=self._launch.models,
            data=self._launch.training_rows(),
            plan=self.plan,
            scratch=self._scratch / uuid.uuid4().hex,
            derived=DerivedStore(self._launch.content),
            blobs=self._launch.ports.blobs,
        )

    @property
    def _scratch(self) -> Path:
        """Where all attempts at this run work."""
        return self._launch.ports.blobs.scratch() / "runs" / self.fingerprint

    def _row_plan(self, job: TrainingJob) -> RowPlan:
        """The rows that its steps are to receive."""
        return RowPlan(self._recipe, self.plan, job.data, self._can.row_order)

    def _require_planned_rows(self, head: Head) -> LedgerReport:
        """Hold the ledgers of all its epochs against the plan, whoever has trained them."""
        if self._can.in_one_go:
            return LedgerReport((), is_told=False)
        report = read_report(self._store, head, self._row_plan(self.job()), self.first_epoch)
        if report.passed:
            return report
        fix = f"train it anew, as another run: seed: {self._recipe.seed + 1}; no model is made of this one"
        raise LedgerError(str(report), where=f"run {self.fingerprint[:12]}", fix=fix)

    # Training, under the lease.

    def _train_through(self, lease: Lease, epoch: int) -> int:
        done = 0
        first = first_environment(self._store, lease.head)
        said = drift_of(self._recipe, self.fingerprint, first, self._resolution(lease.head))
        if said:
            self._observer.say(said)
        self._evaluate_due(lease, epoch)
        damaged = _quarantined(lease.head)
        while not self._progress.is_done(lease.head, epoch):
            done += self._train_next(lease)
            self._evaluate_due(lease, epoch)
            self._retain(lease)
            if _quarantined(lease.head) >= damaged + _MOST_DAMAGED:
                raise CheckpointError(
                    f"{_MOST_DAMAGED} checkpoints were damaged as soon as they were published",
                    where=f"run {self.fingerprint[:12]}",
                    fix=f"check the disk of {self._launch.ports.blobs.uri}, then run again",
                )
        return done

    def _train_next(self, lease: Lease) -> int:
        """Train the first epoch that is missing."""
        job = self.job()
        trainer = self._launch.ports.trainer
        self._store.require_space(job.resolution.state_bytes)
        if trainer.job is not job:
            trainer.discard()
            self._remove_scratch()
            if not self._can.places_orders:
                end_orders(
                    self._launch.ports.blobs, self.fingerprint, "trained by another backend", self._observer.say
                )
            trainer.occupy(job)
        parent = self._parent(lease, job)
        epoch = self._next_epoch(parent)
        events = PublishingEvents(
            launch=self._launch,
            lease=lease,
            record=self._record(job),
            parent=parent,
            inside=self._manifest_inside(lease, parent, epoch),
            epoch=epoch,
            first_step=(epoch - 1) * self.plan.steps_per_epoch + 1,
            planned=None if self._can.in_one_go else self._row_plan(job).of_epoch(epoch),
            published=lambda entry, checkpoint: self._on_published(lease, entry, checkpoint),
            stop=self._stop,
            say=self._observer.say,
        )
        started = time.monotonic()
        try:
            with self._stop.listening():
                result = trainer.session(job).train_epoch(epoch, parent, events)
        except StateLost as error:
            self._give_up(lease, parent, error)
            return 0
        except BackendError as error:
            self._count_repeat(lease.head, error)
            return 0
        trainer.keep(result.checkpoint, lease.token)
        events.epoch_done(result.checkpoint, time.monotonic() - started)
        return result.steps_done

    def _give_up(self, lease: Lease, parent: LocalCheckpoint | None, error: StateLost) -> None:
        """Go on from the checkpoint before one whose state a remote service keeps no more."""
        self._launch.ports.trainer.discard()
        own = [entry for entry in lease.head.entries() if parent and entry.state_digest == parent.state_digest]
        if not own:
            raise error
        self._store.quarantine(lease, own[0].step, str(error))
        self._observer.say(f"the checkpoint at step {own[0].step} can't be gone on from: {error}")

    def _count_repeat(self, head: Head, error: BackendError) -> None:
        """Train again from the last checkpoint where the backend may well do it then; give up where that brings nothing."""
        self._repeats = (*self._repeats, len(head.checkpoints))
        if not error.mendable or self._repeats.count(len(head.checkpoints)) > _MOST_REPEATS:
            raise error
        self._launch.ports.trainer.discard()
        self._observer.say(f"trying again from the last checkpoint, in a new session: {error}")

    def _on_published(self, lease: Lease, entry: CheckpointEntry, checkpoint: LocalCheckpoint) -> None:
        self._launch.ports.trainer.keep(checkpoint, lease.token)
        self._observer.published(entry)
        if not entry.epoch_complete:
            # At an epoch's end that waits for its evaluation; inside a long epoch the disk would fill up.
            self._retain(lease)

    def _remove_scratch(self) -> None:
        """Remove what attempts that were killed have left; whoever holds the lease is the only one at work."""
        for folder in self._leftovers():
            shutil.rmtree(folder, ignore_errors=True)

    def _leftovers(self) -> list[Path]:
        live = self._launch.ports.trainer.job
        found = (path for path in self._scratch.glob("*") if path.is_dir())
        return [folder for folder in found if live is None or folder != live.scratch]

    def _parent(self, lease: Lease, job: TrainingJob) -> LocalCheckpoint | None:
        """Where to go on: what was just published here, else the newest sound checkpoint, else the start."""
        trainer = self._launch.ports.trainer
        newest = lease.head.entries()[-1:]
        if (
            trainer.last is not None
            and trainer.last_token >= lease.token - 1
            and newest
            and newest[0].state_digest == trainer.last.state_digest
            and newest[0].payload == "present"
        ):
            return trainer.last
        trainer.last = None
        found = self._store.resume_point(lease, job.scratch / "parent", self._observer.say)
        if found is None and any(entry.payload == "pruned" for entry in lease.head.entries()):
            self._observer.say("no checkpoint of this run is left whole; it is trained again from its start")
        if found is not None:
            self._observer.say(f"going on from step {found.global_step} (epoch {found.epoch})")
            return found
        return fetch_start(self._launch, self.start) if self.start else None

    def _manifest_inside(self, lease: Lease, parent: LocalCheckpoint | None, epoch: int) -> Manifest | None:
        """The parent's manifest when it lies inside the epoch, so that its rows and steps belong to it."""
        if parent is None or parent.restart == "weights" or parent.epoch_complete or parent.epoch != epoch:
            return None
        heads = [lease.head, *([self._store.head(self.start.fingerprint)] if self.start else [])]
        entries = [entry for head in heads for entry in head.entries() if entry.state_digest == parent.state_digest]
        return self._store.manifest(entries[0])

    def _next_epoch(self, parent: LocalCheckpoint | None) -> int:
        if parent is None or parent.restart == "weights":
            return 1
        return parent.epoch + 1 if parent.epoch_complete else parent.epoch

    def _evaluate_due(self, lease: Lease, epoch: int) -> None:
        for entry in self._progress.due(lease.head, epoch):
            self.evaluations.evaluate(lease, entry, self._resolution(lease.head), self._observer.say)

    def _retain(self, lease: Lease) -> None:
        keep = self._progress.to_keep(lease.head)
        pruned = self._store.prune(
            lease, keep, f"keep_last {self._recipe.keep_last}, keep_best {self._recipe.keep_best}"
        )
        if pruned:
            self._observer.say(f"pruned the payload of the checkpoints at steps {', '.join(map(str, pruned))}")

    # Identity and environment.

    def _identify(self, start: Start | None) -> Identity:
        prepared = self._launch.prepared
        return identify(
            self._recipe,
            self._launch.base,
            self._launch.resolution,
            self.plan,
            data_digest=prepared.trained.digest,
            pad_token_id=prepared.pad_token_id,
            start=start,
            besides=self._launch.besides(),
        )

    def _resolution(self, head: Head) -> Resolution:
        return as_started(self._launch.resolution, first_environment(self._store, head))

    def _record(self, job: TrainingJob) -> RunRecord:
        base = job.base
        return RunRecord(
            fingerprint=self.fingerprint,
            recipe=self._launch.name,
            identity=dict(self.identity.value),
            environment=dict(job.resolution.environment),
            base={"reference": base.reference, "digest": base.digest, "revision": base.revision},
            serving=vars(job.serving()),
            simulated=self._launch.simulated,
        )

    # What other launches know.

    def _notes(self, head: Head, missing: Sequence[int]) -> tuple[str, ...]:
        if head.checkpoints or not missing:
            return (f"run {self.fingerprint[:12]}: {len(missing)} of {self.plan.epochs} epochs are missing",)
        return moved_notes(self._launch, self.fingerprint, self.identity.value, steps=self.plan.total_steps)

    def _require_pinned(self) -> None:
        pinned = self._launch.read("run")
        if pinned is not None and pinned["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"the base model, the data or the backend changed while the run was going: it was planned as "
                f"{pinned['fingerprint'][:12]} and now is {self.fingerprint[:12]}",
                where=f"recipe {self._launch.name}",
                fix="launch it anew",
            )

    @cached_property
    def _failure(self) -> FailureMark:
        return FailureMark(self._launch, self.fingerprint)

    def _mark_failed(self, error: BaseException) -> None:
        try:
            self._failure.leave(error)
        except KitchenError as failure:
            # The error itself is what matters; without the mark the next epochs fail on their own.
            self._observer.say(f"could not mark the run as failed: {failure}")

    @contextmanager
    def _leased(self, *, keep: bool = False, unless_done: int | None = None) -> Iterator[Lease]:
        """Hold the lease.

        Args:
            keep: Keep it for the next epoch where this process trains that too: whoever waits would take it meanwhile.
            unless_done: An epoch; `NotNeeded` is raised when its holder makes it while this waits.
        """
        trainer = self._launch.ports.trainer
        lease = trainer.take_lease(self.fingerprint) or acquire(
            self._launch.ports.blobs,
            self.fingerprint,
            run=self._launch.run_id,
            wait_s=self._recipe.lease_wait_s,
            on_wait=self._say_waiting,
            needed=lambda head: unless_done is None or not self._progress.is_done(head, unless_done),
        )
        kept = False
        try:
            yield lease
            kept = keep and trainer.keep_lease(lease)
        finally:
            if not kept:
                try:
                    lease.release()
                except KitchenError as error:
                    # The lease runs out by itself; what was trained is published or it isn't.
                    self._observer.say(f"could not give the lease back: {error}")

    def _say_waiting(self, holder: Holder) -> None:
        self._observer.say(f"waiting for run {holder.run} (process {holder.pid}), which trains the same recipe")


def _quarantined(head: Head) -> int:
    return sum(not entry.exists for entry in head.checkpoints)
