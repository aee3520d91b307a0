"""The live session: opened when it is needed, kept for one job, and closed whatever happens."""

from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.port import LocalCheckpoint, Session, TrainingJob
from tests.engine import Engine


class Counting(NoopTrainer):
    """The noop backend, counting what is opened and closed."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []

    def open(self, job: TrainingJob) -> Session:
        session: Any = super().open(job)
        self.opened.append(job.fingerprint)
        session.close = lambda: self.closed.append(job.fingerprint)
        return session


@pytest.fixture
def adapter() -> Counting:
    return Counting()


@pytest.fixture
def live(adapter: Counting) -> LiveTrainer:
    return LiveTrainer(adapter)


@pytest.fixture
def engine() -> Engine:
    return Engine()


def job(engine: Engine, **fields: Any) -> TrainingJob:
    made = engine.run(**fields).job()
    made.scratch.mkdir(parents=True)
    return made


def checkpoint(folder: Path) -> LocalCheckpoint:
    return LocalCheckpoint(folder, 1, 3, 3, True, "d" * 64)


def test_nothing_is_opened_before_it_is_needed(adapter: Counting, live: LiveTrainer) -> None:
    assert (live.job, live.last, adapter.opened) == (None, None, [])
    live.discard()
    assert adapter.closed == []


def test_one_session_serves_all_epochs_of_a_job(adapter: Counting, live: LiveTrainer, engine: Engine) -> None:
    first = job(engine)
    assert live.session(first) is live.session(first)
    assert live.job is first
    assert adapter.opened == [first.fingerprint]


def test_the_session_of_another_job_closes_the_one_before(
    adapter: Counting, live: LiveTrainer, engine: Engine, tmp_path: Path
) -> None:
    one, two = job(engine), job(engine, seed=1)
    live.session(one)
    live.keep(checkpoint(tmp_path), 4)
    live.session(two)
    assert adapter.opened == [one.fingerprint, two.fingerprint]
    assert adapter.closed == [one.fingerprint]
    assert live.last is None
    assert (one.scratch.exists(), two.scratch.exists()) == (False, True)


def test_what_was_published_is_kept_with_the_token_it_was_published_under(live: LiveTrainer, tmp_path: Path) -> None:
    live.keep(checkpoint(tmp_path), 4)
    assert (live.last, live.last_token) == (checkpoint(tmp_path), 4)


def test_discarding_closes_forgets_and_removes_the_scratch_once(
    adapter: Counting, live: LiveTrainer, engine: Engine, tmp_path: Path
) -> None:
    made = job(engine)
    live.session(made)
    live.keep(checkpoint(tmp_path), 1)
    live.discard()
    live.discard()
    assert adapter.closed == [made.fingerprint]
    assert (live.job, live.last) == (None, None)
    assert not made.scratch.exists()
    live.session(made)
    assert adapter.opened == [made.fingerprint] * 2


def test_one_run_opens_one_session(adapter: Counting) -> None:
    engine = Engine(adapter=adapter)
    fingerprint = engine.finish().head.fingerprint
    assert adapter.opened == adapter.closed == [fingerprint]
    engine.finish()
    assert adapter.opened == [fingerprint]
