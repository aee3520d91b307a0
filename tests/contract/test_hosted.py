"""Runs that a service trains on its own: one job whatever happens to its launchers, and what is known of its rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.errors import BackendError, CapabilityError, ConfigError, DataError
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.hosted.port import JobStatus
from kitchen_resources.training.hosted.session import HostedSession, Patience, trained_tokens
from kitchen_resources.training.ledger import LedgerReport
from kitchen_resources.training.orders.order import orders_of
from kitchen_resources.training.plan import make_plan
from kitchen_resources.training.port import LocalCheckpoint, TrainingJob
from kitchen_resources.training.trl.backend import TrlTrainer
from tests.training_bench import Bench, Shelf, Stopped

pytestmark = pytest.mark.heavy

AT_ONCE = Patience(look=0.0, ask=0.0, start=1000.0, silence=1000.0)
AWAY = BackendError("is away", where="the service", retriable=True)
WORKS, DONE = JobStatus("working", "RUNNING", progress=0.5), JobStatus("done", "COMPLETED", cost_usd=2.5)
BROKEN = JobStatus("failed", "FAILED", said="a node was lost", mendable=True)

Said = JobStatus | BaseException | None


class JobsHere:
    """Jobs in memory, each with what its looks say one after the other, the last ever after.

    Attributes:
        scripts: By the job's name, or "" for those that have none of their own.
        made: Names of the jobs, in order.
        resumable: What a job says that was resumed; none is without one.
        lose_answer: Whether the next request that makes a job is done, and not answered.
    """

    where = "trainer.backend.here"

    def __init__(self, *script: Said) -> None:
        self.scripts: dict[str, list[Said]] = {"": list(script)}
        self.made: list[str] = []
        self.rows: list[Mapping[str, Any]] = []
        self.canceled: list[str] = []
        self.resumable: list[Said] | None = None
        self.lose_answer = False
        self.lose_resume = False
        self.account = "ours"
        self.models_are_there = True
        self.refuse_create: BackendError | None = None
        self.refuse_cancel: list[BackendError] = []
        self._at: dict[str, list[Said]] = {}

    def place(self) -> Mapping[str, str]:
        return {"account": self.account}

    def look(self, job: str) -> JobStatus | None:
        if job not in self._at:
            return None
        said = self._at[job].pop(0) if len(self._at[job]) > 1 else self._at[job][0]
        if isinstance(said, BaseException):
            raise said
        if said is None:
            return None
        return replace(said, model=f"models/{job}")

    def create(self, job: str, rows: Path) -> None:
        if self.refuse_create is not None:
            raise self.refuse_create
        if job not in self._at:
            self.made.append(job)
            self.rows = [json.loads(line) for line in rows.read_text().splitlines()]
            self._at[job] = list(self.scripts.get(job, self.scripts[""]))
        if self.lose_answer:
            self.lose_answer = False
            raise AWAY

    def cancel(self, job: str) -> None:
        if self.refuse_cancel:
            raise self.refuse_cancel.pop()
        self.canceled.append(job)
        self._at[job] = [JobStatus("stopping", "CANCELLING"), JobStatus("stopped", "CANCELLED")]

    def resume(self, job: str) -> bool:
        if self.resumable is None:
            return False
        self._at[job], self.resumable = list(self.resumable), None
        if self.lose_resume:
            self.lose_resume = False
            raise AWAY
        return True

    def download(self, model: str, target: Path) -> bool:
        if not self.models_are_there:
            return False
        target.mkdir(parents=True)
        (target / "adapter_model.safetensors").write_bytes(model.encode())
        (target / "adapter_config.json").write_bytes(b"{}")
        return True


class Kitchen:
    """A job, its store, and launchers that come one after the other."""

    def __init__(self, folder: Path) -> None:
        bench = Bench(TrlTrainer(device="cpu", threads=1), folder / "bench")
        job = bench.job(epochs=3)
        talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
        rows = pyarrow.parquet.read_table(job.data.path)
        examples = pyarrow.array([json.dumps(talk)] * rows.num_rows)
        pyarrow.parquet.write_table(rows.append_column("example", examples), folder / "rows.parquet")
        data = replace(job.data, path=folder / "rows.parquet")
        plan = make_plan(job.recipe, job.data.rows, in_one_go=True)
        self.bench = bench
        self.job: TrainingJob = replace(job, data=data, plan=plan, blobs=LocalBlobs(folder / "store"))
        self.said: list[str] = []

    def launch(
        self, jobs: JobsHere, patience: Patience = AT_ONCE, parent: LocalCheckpoint | None = None, **how: Any
    ) -> Shelf:
        """Train in a session of its own; whatever ends it is raised."""
        shelf = self.bench.shelf(**how)
        scratch = self.bench.folder / f"launch-{len(list(self.bench.folder.iterdir()))}"
        session = HostedSession(
            replace(self.job, scratch=scratch),
            jobs,
            state_file="here.json",
            followed=lambda name: self.said.append(f"tag {name}"),
            say=self.said.append,
            patience=patience,
        )
        session.train_epoch(1, parent, shelf)
        return shelf

    @property
    def over(self) -> Sequence[str | None]:
        """How each order ended; None for one that is open."""
        found = (order.get("over") for order in orders_of(self.job.blobs, self.job.fingerprint))  # type: ignore[arg-type]
        return [over["how"] if over else None for over in found]


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


def test_all_epochs_are_one_of_the_plan() -> None:
    recipe = bind(SupervisedRecipe, {"model": "any", "epochs": 3, "batch_size": 4}, RecipeDefinition(name="any"))
    usual, whole = make_plan(recipe, 10), make_plan(recipe, 10, in_one_go=True)
    assert (usual.epochs, usual.steps_per_epoch, usual.total_steps) == (3, 3, 9)
    assert (whole.epochs, whole.steps_per_epoch, whole.total_steps) == (1, 9, 9)
    assert whole.last_step(1) == 9
    assert whole.warmup_steps == usual.warmup_steps


def test_what_nobody_tells_is_not_known() -> None:
    assert "not known" in str(LedgerReport((), is_told=False))


def test_a_job_becomes_one_checkpoint_with_what_it_cost(kitchen: Kitchen) -> None:
    jobs = JobsHere(JobStatus("waiting", "PENDING"), WORKS, WORKS, DONE)
    shelf = kitchen.launch(jobs)
    (name,) = jobs.made
    assert name == f"kitchen-{kitchen.job.fingerprint[:16]}-1"
    assert len(jobs.rows) == 10
    ((step, draft),) = shelf.drafts.items()
    assert step == kitchen.job.plan.total_steps
    assert draft.epoch_complete
    assert draft.metrics["cost_usd"] == 2.5
    assert draft.metrics["tokens"] == 3 * trained_tokens(kitchen.job) == 3 * sum(kitchen.bench.learned.values())
    assert kitchen.over == ["done"]
    assert kitchen.said == [
        f"tag {name}",
        f"job {name} is made",
        f"job {name} is PENDING",
        f"job {name} is RUNNING, 50%",
        f"job {name} is COMPLETED",
    ]


def test_a_service_that_is_away_is_asked_again(kitchen: Kitchen) -> None:
    jobs = JobsHere(AWAY, WORKS, AWAY, AWAY, DONE)
    jobs.lose_answer = True
    kitchen.launch(jobs)
    assert len(jobs.made) == 1


def test_one_that_stays_away_ends_the_launch_and_not_the_job(kitchen: Kitchen) -> None:
    jobs = JobsHere(WORKS, AWAY)
    with pytest.raises(BackendError, match="is away"):
        kitchen.launch(jobs, replace(AT_ONCE, silence=-1.0))
    assert (kitchen.over, jobs.canceled) == ([None], [])
    jobs._at[jobs.made[0]] = [DONE]
    kitchen.launch(jobs)
    assert (kitchen.over, len(jobs.made)) == (["done"], 1)


def test_what_is_refused_ends_the_launch_at_once(kitchen: Kitchen) -> None:
    jobs = JobsHere(BackendError("no such key"), DONE)
    with pytest.raises(BackendError, match="no such key"):
        kitchen.launch(jobs)
    kitchen.launch(jobs)
    assert len(jobs.made) == 1


def test_a_state_of_no_known_meaning_is_looked_at_on_however_long(kitchen: Kitchen) -> None:
    leap = JobStatus("unknown", "QUANTUM_LEAP")
    kitchen.launch(JobsHere(leap, leap, leap, DONE), replace(AT_ONCE, start=0.0))
    (said,) = [line for line in kitchen.said if "QUANTUM_LEAP" in line]
    assert "doesn't know; it goes on looking" in said


@pytest.mark.parametrize("state", ["PAUSED", "RE_QUEUEING"])
def test_one_that_is_found_paused_is_not_taken_for_one_that_never_began(kitchen: Kitchen, state: str) -> None:
    jobs = JobsHere(WORKS, AWAY)
    with pytest.raises(BackendError, match="is away"):
        kitchen.launch(jobs, replace(AT_ONCE, silence=-1.0))
    paused = JobStatus("paused", state)
    jobs._at[jobs.made[0]] = [paused, paused, DONE]
    kitchen.launch(jobs, replace(AT_ONCE, start=0.0))
    assert (kitchen.over, jobs.canceled) == (["done"], [])


def test_one_that_fails_in_passing_is_resumed_by_the_next_launch(kitchen: Kitchen) -> None:
    jobs = JobsHere(WORKS, BROKEN)
    jobs.resumable = [WORKS, DONE]
    with pytest.raises(BackendError, match="ended as FAILED: a node was lost") as told:
        kitchen.launch(jobs)
    assert told.value.mendable
    kitchen.launch(jobs)
    assert (kitchen.over, len(jobs.made)) == (["done"], 1)


def test_and_made_anew_where_none_is(kitchen: Kitchen) -> None:
    jobs = JobsHere(BROKEN)
    with pytest.raises(BackendError):
        kitchen.launch(jobs)
    jobs.scripts[""] = [DONE]
    kitchen.launch(jobs)
    assert kitchen.over == ["FAILED", "done"]
    assert [name[-2:] for name in jobs.made] == ["-1", "-2"]


def test_one_whose_resuming_was_not_heard_of_is_not_made_twice(kitchen: Kitchen) -> None:
    jobs = JobsHere(BROKEN)
    with pytest.raises(BackendError):
        kitchen.launch(jobs)
    jobs.resumable, jobs.lose_resume = [WORKS, WORKS, DONE], True
    kitchen.launch(jobs)
    assert (kitchen.over, len(jobs.made)) == (["done"], 1)


def test_one_that_is_not_seen_at_once_is_not_made_twice(kitchen: Kitchen) -> None:
    jobs = JobsHere(None, None, WORKS, None, DONE)
    kitchen.launch(jobs)
    assert (kitchen.over, len(jobs.made)) == (["done"], 1)


def test_one_that_is_not_seen_any_more_is_over(kitchen: Kitchen) -> None:
    jobs = JobsHere(WORKS, None)
    with pytest.raises(BackendError, match="ended as NOT_FOUND"):
        kitchen.launch(jobs)
    assert kitchen.over == ["NOT_FOUND"]


def test_a_name_that_is_used_up_is_not_asked_for_again(kitchen: Kitchen) -> None:
    jobs = JobsHere(DONE)
    jobs.refuse_create = BackendError("the model exists already")
    with pytest.raises(BackendError, match="exists already"):
        kitchen.launch(jobs)
    assert kitchen.over == ["refused"]
    jobs.refuse_create = None
    kitchen.launch(jobs)
    assert [name[-2:] for name in jobs.made] == ["-2"]


def test_one_whose_model_is_gone_is_told_and_made_anew_by_the_next_launch(kitchen: Kitchen) -> None:
    jobs = JobsHere(DONE)
    jobs.models_are_there = False
    with pytest.raises(BackendError, match="isn't there any more"):
        kitchen.launch(jobs)
    jobs.models_are_there = True
    kitchen.launch(jobs)
    assert kitchen.over == ["its model is gone", "done"]


def test_a_job_is_not_looked_for_at_another_account(kitchen: Kitchen) -> None:
    jobs = JobsHere(WORKS, AWAY)
    with pytest.raises(BackendError, match="is away"):
        kitchen.launch(jobs, replace(AT_ONCE, silence=-1.0))
    elsewhere = JobsHere(DONE)
    elsewhere.account = "theirs"
    with pytest.raises(ConfigError, match="is account theirs, and a job of this run is under way at account ours"):
        kitchen.launch(elsewhere)
    assert elsewhere.made == []


def test_rows_that_cannot_be_said_are_refused_before_anything_is_ordered(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = pyarrow.parquet.read_table(kitchen.job.data.path).drop(["example"])
    examples = pyarrow.array([json.dumps({"text": "raw"})] * rows.num_rows)
    pyarrow.parquet.write_table(rows.append_column("example", examples), tmp_path / "raw.parquet")
    kitchen.job = replace(kitchen.job, data=replace(kitchen.job.data, path=tmp_path / "raw.parquet"))
    jobs = JobsHere(DONE)
    with pytest.raises(DataError, match="row 100: is raw text"):
        kitchen.launch(jobs)
    assert (jobs.made, kitchen.over) == ([], [])


@pytest.mark.parametrize("at", ["a look", "the first look of a later launch", "a download"])
def test_an_interrupt_in_a_request_cancels_the_job_too(kitchen: Kitchen, at: str) -> None:
    jobs = JobsHere(WORKS, KeyboardInterrupt() if at != "a download" else DONE)
    if at == "a download":
        jobs.download = lambda model, target: (_ for _ in ()).throw(KeyboardInterrupt())  # type: ignore[method-assign]
    if at == "the first look of a later launch":
        jobs.scripts[""] = [WORKS, AWAY]
        with pytest.raises(BackendError):
            kitchen.launch(jobs, replace(AT_ONCE, silence=-1.0))
        jobs._at[jobs.made[0]] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        kitchen.launch(jobs)
    # One that is done is left as it is, and fetched by the next launch.
    assert jobs.canceled == ([] if at == "a download" else jobs.made)
    assert kitchen.over == [None]


def test_one_that_fails_for_good_is_over(kitchen: Kitchen) -> None:
    with pytest.raises(BackendError, match="row 3 is too long") as told:
        kitchen.launch(JobsHere(JobStatus("failed", "FAILED", said="row 3 is too long")))
    assert not told.value.mendable
    assert kitchen.over == ["FAILED"]


def test_one_that_is_deleted_is_over(kitchen: Kitchen) -> None:
    jobs = JobsHere(WORKS, JobStatus("gone", "DELETING"))
    with pytest.raises(BackendError, match="ended as DELETING"):
        kitchen.launch(jobs)
    assert kitchen.over == ["DELETING"]


def test_one_that_never_begins_is_called_off(kitchen: Kitchen) -> None:
    jobs = JobsHere(JobStatus("waiting", "PENDING"))
    with pytest.raises(BackendError, match="has not begun in 0 s"):
        kitchen.launch(jobs, replace(AT_ONCE, start=0.0))
    assert (kitchen.over, jobs.canceled) == (["never began"], jobs.made)


def test_one_that_could_not_be_called_off_is_followed_by_the_next_launch(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = JobsHere(JobStatus("waiting", "PENDING"))
    jobs.refuse_cancel = [AWAY, AWAY]
    with pytest.raises(BackendError, match="and is called off"):
        kitchen.launch(jobs, replace(AT_ONCE, start=0.0))
    assert jobs.canceled == jobs.made, "asked again until it was heard"
    jobs = JobsHere(JobStatus("waiting", "PENDING"))
    monkeypatch.setattr(jobs, "cancel", lambda job: None)
    with pytest.raises(BackendError, match="could not be called off"):
        kitchen.launch(jobs, replace(AT_ONCE, start=0.0))
    assert kitchen.over == ["never began", None]


def test_one_that_has_begun_may_wait_again(kitchen: Kitchen) -> None:
    jobs = JobsHere(WORKS, JobStatus("waiting", "PENDING"), JobStatus("waiting", "PENDING"), DONE)
    kitchen.launch(jobs, replace(AT_ONCE, start=0.0))
    assert kitchen.over == ["done"]


def test_a_stop_cancels_the_job_and_the_next_launch_waits_for_that_and_goes_on_with_it(kitchen: Kitchen) -> None:
    jobs = JobsHere(WORKS)
    jobs.resumable = [DONE]
    with pytest.raises(Stopped):
        kitchen.launch(jobs, stop_after=3)
    assert (kitchen.over, jobs.canceled) == ([None], jobs.made)
    kitchen.launch(jobs)
    assert (kitchen.over, len(jobs.made)) == (["done"], 1)


def test_a_job_that_could_not_be_canceled_is_told(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = JobsHere(WORKS)

    def refuse(job: str) -> None:
        raise AWAY

    monkeypatch.setattr(jobs, "cancel", refuse)
    with pytest.raises(Stopped):
        kitchen.launch(jobs, stop_after=3)
    assert "could not be canceled, and goes on" in kitchen.said[-1]


def test_it_goes_on_from_no_checkpoint(kitchen: Kitchen, tmp_path: Path) -> None:
    parent = LocalCheckpoint(tmp_path, 1, 1, 1, epoch_complete=False, state_digest="")
    with pytest.raises(CapabilityError, match="can't go on from a checkpoint"):
        kitchen.launch(JobsHere(DONE), parent=parent)
