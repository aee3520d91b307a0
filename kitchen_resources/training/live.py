"""A trainer with its live session, kept between epochs in one process."""

import shutil

from kitchen_resources.blobs.workplace import Workplace, remove_abandoned
from kitchen_resources.training.port import LocalCheckpoint, Session, Trainer, TrainingJob


class LiveTrainer:
    """Opens a session when it is needed, keeps it for the run's next epoch, and closes it in the end.

    The session keeps no state of the training (see `Session`). `last` is the checkpoint that it has just published,
    with its local folder: a parent that needn't be read back, as long as the head names the same one and nobody else
    has held the lease since, who would have cleared that folder away.
    """

    def __init__(self, adapter: Trainer) -> None:
        self.adapter = adapter
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
