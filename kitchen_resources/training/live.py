"""A trainer with its live session, kept between epochs in one process."""

import shutil
from contextlib import suppress

from kitchen_resources.blobs.workplace import Workplace, remove_abandoned
from kitchen_resources.checkpoints.lease import Lease
from kitchen_resources.errors import KitchenError, LeaseLost
from kitchen_resources.training.port import LocalCheckpoint, Session, Trainer, TrainingJob


class LiveTrainer:
    """Opens a session when it is needed, keeps it for the run's next epoch, and closes it in the end.

    The session keeps no state of the training (see `Session`). `last` is the checkpoint that it has just published,
    with its local folder: a parent that needn't be read back, as long as the head names the same one and nobody else
    has held the lease since, who would have cleared that folder away.

    Args:
        adapter: The backend.
        keeps_lease: Keep the lease between epochs too, so that nobody who waits for it trains the next one; whoever
            makes such a trainer calls `let_go` in the end.
    """

    def __init__(self, adapter: Trainer, *, keeps_lease: bool = False) -> None:
        self.adapter = adapter
        self._keeps_lease = keeps_lease
        self._lease: Lease | None = None
        self.last: LocalCheckpoint | None = None
        self.last_token = 0
        self._session: Session | None = None
        self._job: TrainingJob | None = None
        self._workplace: Workplace | None = None

    def occupy(self, job: TrainingJob) -> None:
        """Make the job's scratch folder, which is this process's until `discard`; what dead ones left is removed."""
        self.discard()
        remove_abandoned(job.scratch.parents[2])
        self._workplace = Workplace(job.scratch)
        self._workplace.open()

    def session(self, job: TrainingJob) -> Session:
        """The session of a job, opened when the live one is of another."""
        if self._session is None or self._job is None or self._job.fingerprint != job.fingerprint:
            if self._session is not None:
                self.discard()
            self._session, self._job = self.adapter.open(job), job
        return self._session

    @property
    def job(self) -> TrainingJob | None:
        """The job of the live session."""
        return self._job

    def keep(self, checkpoint: LocalCheckpoint, token: int) -> None:
        """Remember what was just published under the lease of that token."""
        self.last, self.last_token = checkpoint, token

    def keep_lease(self, lease: Lease) -> bool:
        """Keep a lease for the run's next epoch; False where that is to be given back."""
        if self._keeps_lease:
            self._lease = lease
        return self._keeps_lease

    def take_lease(self, fingerprint: str) -> Lease | None:
        """The lease that was kept, when it is of that run and still held."""
        lease = self._lease
        if lease is not None and lease.head.fingerprint == fingerprint:
            with suppress(LeaseLost):
                lease.check()
                self._lease = None
                return lease
        self.let_go()
        return None

    def let_go(self) -> None:
        """Give the lease back that was kept."""
        lease, self._lease = self._lease, None
        if lease is not None:
            # Where the store is away it runs out by itself.
            with suppress(KitchenError):
                lease.release()

    def discard(self) -> None:
        """Close the session and forget what it published: after a failure, a lost lease, or when all is done."""
        session, job, workplace = self._session, self._job, self._workplace
        self._session = self._job = self.last = self._workplace = None
        try:
            if session is not None:
                session.close()
        finally:
            if workplace is not None:
                workplace.close()
            if job is not None:
                shutil.rmtree(job.scratch, ignore_errors=True)

    def end(self) -> None:
        """Close the session and give the lease back, also after a failure."""
        try:
            self.discard()
        finally:
            self.let_go()
