"""The trainer port's contract for every method, run over every backend that trains it.

What all methods share is asked on a supervised job: see `test_trainer.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.embedded import write_model
from kitchen_resources.numerics import preserved_numerics
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.training.local.backend import LocalTrainer
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.plan import planned_rows
from kitchen_resources.training.port import EpochResult, LocalCheckpoint, Trainer, TrainingJob
from kitchen_resources.training.run import TrainingRun
from kitchen_resources.training.trl.backend import TrlTrainer
from tests.engine import Told
from tests.rail import Rail
from tests.training_bench import Shelf, Stopped

BACKENDS: dict[str, Callable[[], Trainer]] = {
    "noop": NoopTrainer,
    "trl": lambda: TrlTrainer(device="cpu", threads=1),
    "local": lambda: LocalTrainer(device="cpu", threads=1),
}

SMALL: Mapping[str, Any] = {"epochs": 2, "batch_size": 2, "learning_rate": 1.0e-3, "deterministic": True}
ON_POLICY: Mapping[str, Any] = {**SMALL, "mode": "on_policy", "max_tokens": 4, "teacher": "TEACHER"}
GAMES: Mapping[str, Any] = {**SMALL, "batch_size": 4, "kl_coef": 0.05}


@pytest.fixture(autouse=True, scope="module")
def left_as_it_was() -> Iterator[None]:
    """A session of TRL makes its whole process deterministic; in the product the stage around it takes that back."""
    with preserved_numerics():
        yield


@dataclass(frozen=True)
class Case:
    """A small recipe, and what an epoch of it is.

    Attributes:
        method: Its class.
        fields: Its fields.
        rows: Rows that each optimiser step of an epoch receives.
    """

    method: type[Recipe]
    fields: Mapping[str, Any]
    rows: list[int]


CASES = {
    "preference": Case(PreferenceRecipe, {**SMALL, "max_rows": 5}, [2, 2, 1]),
    "preference, LoRA": Case(PreferenceRecipe, {**SMALL, "max_rows": 5, "lora": {"rank": 4}}, [2, 2, 1]),
    "reinforcement": Case(ReinforcementRecipe, GAMES, [2, 2]),
    "reinforcement, PPO": Case(ReinforcementRecipe, {**GAMES, "steps_per_epoch": 4, "ppo_epochs": 2}, [2, 0, 2, 0]),
    "distillation, logits": Case(DistillationRecipe, {**SMALL, "max_rows": 5, "teacher": "TEACHER"}, [2, 2, 1]),
    "distillation, on policy": Case(DistillationRecipe, {**ON_POLICY, "max_rows": 5}, [2, 2]),
}


class Session:
    """One backend and one case: a job on prepared rows, and both epochs of it trained in one session."""

    def __init__(self, backend: str, case: Case, folder: Path) -> None:
        self.backend = backend
        self.case = case
        self.folder = folder
        self.trainer = BACKENDS[backend]()
        write_model(folder / "teacher", seed=5)
        fields = {k: str(folder / "teacher") if v == "TEACHER" else v for k, v in case.fields.items()}
        rail = Rail(blobs=LocalBlobs(folder / "store"), trainer=BACKENDS[backend])
        rail.add("mine", case.method, fields)
        self.fields = fields
        self._run = TrainingRun(rail.launch("mine"), Told())
        self._attempts = 0

    def job(self) -> TrainingJob:
        """The job of a new attempt."""
        job = self._run.job()
        job.scratch.mkdir(parents=True)
        return job

    def train(self, epochs: list[int], parent: LocalCheckpoint | None = None) -> tuple[Shelf, list[EpochResult]]:
        """Train some epochs in one session."""
        self._attempts += 1
        shelf = Shelf(self.folder / f"shelf-{self._attempts}")
        session = self.trainer.open(self.job())
        results = []
        try:
            for epoch in epochs:
                shelf.parent = parent.global_step if parent else 0
                results.append(session.train_epoch(epoch, parent, shelf))
                parent = results[-1].checkpoint
            assert parent is not None
            session.export(parent, self.folder / f"model-{self._attempts}", merged=True)
        finally:
            session.close()
        return shelf, results

    @cached_property
    def undisturbed(self) -> tuple[Shelf, list[EpochResult]]:
        return self.train([1, 2])


QUICK = {("trl", "preference"), ("trl", "reinforcement"), ("trl", "distillation, logits"), ("local", "preference")}
"""What is asked in `make test`, besides noop; the others are in `make test-all`."""


def sessions() -> list[Any]:
    def marks(backend: str, name: str) -> list[Any]:
        longer = [] if (backend, name) in QUICK else [pytest.mark.full]
        return [] if backend == "noop" else [pytest.mark.heavy, *longer]

    return [
        pytest.param((backend, name), id=f"{backend}: {name}", marks=marks(backend, name))
        for backend, make in BACKENDS.items()
        for name, case in CASES.items()
        if case.method.method in make().capabilities().methods and not make().check(case.method(**case.fields))
    ]


@pytest.fixture(scope="module", params=sessions())
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    backend, name = request.param
    return Session(backend, CASES[name], tmp_path_factory.mktemp("session"))


def test_every_backend_says_what_it_trains() -> None:
    for make in BACKENDS.values():
        assert {case.method.method for case in CASES.values()} <= set(make().capabilities().methods)


def test_steps_follow_the_plan(session: Session) -> None:
    shelf, results = session.undisturbed
    per_epoch = len(session.case.rows)
    assert [result.steps_done for result in results] == [per_epoch, per_epoch]
    assert [(step.epoch, step.global_step, step.total_steps) for step in shelf.steps] == [
        (1 + index // per_epoch, 1 + index, 2 * per_epoch) for index in range(2 * per_epoch)
    ]
    assert list(shelf.checkpoints) == [per_epoch, 2 * per_epoch]
    for draft in shelf.drafts.values():
        assert (draft.epoch_complete, draft.steps_into_epoch) == (True, per_epoch)
        assert draft.metrics["loss"] == draft.metrics["loss"]
        assert draft.metrics["tokens"] == sum(step.tokens for step in shelf.steps if step.epoch == draft.epoch)
    # Where games are played and nothing is sampled there is nothing to count.
    nothing = session.case.method is ReinforcementRecipe and session.trainer.capabilities().simulated
    assert all((step.tokens > 0) != nothing for step in shelf.steps)


def test_every_row_is_received_as_planned(session: Session) -> None:
    shelf, _ = session.undisturbed
    job, per_epoch = session.job(), len(session.case.rows)
    import pyarrow.parquet

    ids = pyarrow.parquet.read_table(job.data.path, columns=["row_id"])["row_id"].to_pylist()
    received: list[int] = []
    for epoch in (1, 2):
        ledger = [list(step) for step in shelf.drafts[epoch * per_epoch].row_ids]
        assert [len(step) for step in ledger] == session.case.rows
        plan = planned_rows(job.recipe, job.plan, epoch, session.trainer.capabilities().row_order)
        assert ledger == [[ids[index] for index in step] for step in plan]
        received += [row for step in ledger for row in step]
    # Whatever an epoch is, all rows come up equally often.
    counts = [received.count(row) for row in ids]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == len(received)


def test_a_new_session_goes_on_with_the_same_state(session: Session) -> None:
    _, (first, second) = session.undisturbed
    _, (again,) = session.train([2], parent=first.checkpoint)
    assert again.checkpoint.state_digest == second.checkpoint.state_digest
    _, (alone,) = session.train([1])
    assert alone.checkpoint.state_digest == first.checkpoint.state_digest
    assert first.checkpoint.state_digest != second.checkpoint.state_digest


def test_asked_to_stop_it_publishes_its_step_where_a_run_can_go_on_from_it_exactly(session: Session) -> None:
    undisturbed, _ = session.undisturbed
    exact = session.trainer.capabilities().is_exact_inside(session.case.method(**session.fields))
    samples = session.case.method is ReinforcementRecipe or session.case.fields.get("mode") == "on_policy"
    assert exact != samples
    shelf = Shelf(session.folder / "stopped", stop_after=1)
    opened = session.trainer.open(session.job())
    try:
        with pytest.raises(Stopped):
            opened.train_epoch(1, None, shelf)
    finally:
        opened.close()
    assert shelf.exact == exact
    assert list(shelf.checkpoints) == ([1] if exact else [])
    if not exact:
        return
    inside = shelf.checkpoints[1]
    assert (inside.steps_into_epoch, inside.epoch_complete) == (1, False)
    shelf.parent = 1
    opened = session.trainer.open(session.job())
    try:
        result = opened.train_epoch(1, inside, shelf)
    finally:
        opened.close()
    assert result.steps_done == len(session.case.rows) - 1
    assert shelf.drafts[len(session.case.rows)].row_ids == undisturbed.drafts[len(session.case.rows)].row_ids
    assert result.checkpoint.state_digest == undisturbed.checkpoints[len(session.case.rows)].state_digest


def test_what_is_exported_is_the_last_state(session: Session) -> None:
    session.train([1])
    names = {path.name for path in (session.folder / f"model-{session._attempts}").iterdir()}
    if session.trainer.capabilities().simulated:
        assert names == {"simulated.json"}
    else:
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


def test_what_is_sampled_is_on_record(session: Session) -> None:
    shelf, _ = session.undisturbed
    samples = session.case.method is ReinforcementRecipe or session.case.fields.get("mode") == "on_policy"
    is_kept = samples and not session.trainer.capabilities().simulated
    for draft in shelf.drafts.values():
        assert set(draft.records) == ({"transcript.jsonl"} if is_kept else set())
        assert all(draft.records.values())
