"""Backends that train really train the same: from one start, on the same rows, to the same numbers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.errors import CapabilityError, ConfigError
from kitchen_resources.numerics import preserved_numerics
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.local.backend import LocalTrainer
from kitchen_resources.training.port import Datum, StepMetrics, Trainer
from kitchen_resources.training.preflight import preflight
from kitchen_resources.training.run import TrainingRun
from kitchen_resources.training.trl.backend import TrlTrainer
from tests.engine import Told
from tests.rail import Rail
from tests.training_bench import Bench, Shelf

pytestmark = pytest.mark.heavy

OTHERS: Mapping[str, Callable[[], Trainer]] = {
    "local": lambda: LocalTrainer(device="cpu", threads=1),
    "trl, 2 processes": lambda: TrlTrainer(device="cpu", threads=1, processes=2),
}
LOSS, NORM = 1.0e-6, 1.0e-4
"""Relative tolerances. Measured over ten steps: 1.5e-7 of the loss, 1e-5 of the gradient norm."""

SUPERVISED: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"lora": {"rank": 4, "alpha": 8}},
    "clipped": {"max_grad_norm": 0.3},
    "not clipped": {"max_grad_norm": 0.0},
    "weight decay, no accumulation": {"weight_decay": 0.1, "gradient_accumulation_steps": 1},
}


SHARED = {"batch_size": 1, "gradient_accumulation_steps": 4}
"""The same steps, in passes that two processes can share."""


def others(cases: Iterable[str], *, shared: Sequence[str]) -> list[Any]:
    """Backends and cases; two processes take long to start, and are asked a few."""
    return [
        pytest.param(name, case, marks=pytest.mark.full if "processes" in name else ())
        for name in OTHERS
        for case in cases
        if "processes" not in name or case in shared
    ]


def reference() -> Trainer:
    return TrlTrainer(device="cpu", threads=1)


def check_alike(ours: list[StepMetrics], theirs: list[StepMetrics]) -> None:
    assert len(ours) == len(theirs) > 0
    for step, other in zip(ours, theirs, strict=True):
        assert step.global_step == other.global_step
        assert step.tokens == other.tokens
        assert step.learning_rate == other.learning_rate
        assert step.loss == pytest.approx(other.loss, rel=LOSS)
        assert step.grad_norm == pytest.approx(other.grad_norm, rel=NORM)
    assert ours[-1].loss != ours[0].loss


@pytest.mark.parametrize(("name", "case"), others(SUPERVISED, shared=["LoRA", "clipped"]))
def test_losses_and_gradients_are_alike_over_ten_updates(tmp_path: Path, name: str, case: str) -> None:
    steps = {}
    for backend, make in (("trl", reference), (name, OTHERS[name])):
        bench = Bench(make(), tmp_path / backend, SHARED if "processes" in name else {})
        shelf = bench.shelf()
        job = bench.job(epochs=4, max_steps=10, **SUPERVISED[case])
        bench.train(job, shelf, list(range(1, job.plan.epochs + 1)))
        steps[backend] = shelf.steps
    assert len(steps["trl"]) == 10
    check_alike(steps[name], steps["trl"])


@pytest.mark.parametrize(("name", "case"), others(["full", "LoRA"], shared=["LoRA"]))
def test_preferences_are_alike(tmp_path: Path, name: str, case: str) -> None:
    fields = {
        "epochs": 2,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1.0e-3,
        "max_rows": 8,
        "lora": SUPERVISED[case].get("lora"),
        "max_grad_norm": 1.0,
    }
    steps = {}
    with preserved_numerics():
        for backend, make in (("trl", reference), (name, OTHERS[name])):
            rail = Rail(blobs=LocalBlobs(tmp_path / backend), trainer=make)
            rail.add("mine", PreferenceRecipe, fields)
            job = TrainingRun(rail.launch("mine"), Told()).job()
            job.scratch.mkdir(parents=True)
            shelf, parent = Shelf(tmp_path / f"shelf-{backend}"), None
            session = make().open(job)
            try:
                for epoch in (1, 2):
                    shelf.parent = parent.global_step if parent else 0
                    parent = session.train_epoch(epoch, parent, shelf).checkpoint
            finally:
                session.close()
            steps[backend] = shelf.steps
    check_alike(steps[name], steps["trl"])
    for step, other in zip(steps[name], steps["trl"], strict=True):
        # Before the first update all pairs are ties, which the last bit decides.
        names = ("accuracy",) if abs(other.extra["margin"]) > 1.0e-5 else ()
        for measure in (*names, "margin", "chosen_reward", "rejected_reward"):
            assert step.extra[measure] == pytest.approx(other.extra[measure], rel=1e-3, abs=1e-5)


def own_loss(data: Sequence[Datum], logprobs: Sequence[Any]) -> tuple[Any, dict[str, float]]:
    """The cross entropy, written as somebody else's loss."""
    import torch

    sums = [
        (row * torch.tensor(datum.loss_fn_inputs["weights"])).sum() for row, datum in zip(logprobs, data, strict=True)
    ]
    return -torch.stack(sums).sum(), {"rows": float(len(data))}


def test_a_loss_of_ones_own_is_trained_by(tmp_path: Path) -> None:
    steps, fingerprints = {}, set()
    with preserved_numerics():
        for loss in ("", f"{own_loss.__module__}:own_loss"):
            rail = Rail(blobs=LocalBlobs(tmp_path / f"store{bool(loss)}"), trainer=OTHERS["local"])
            rail.add("mine", SupervisedRecipe, {"max_rows": 12, "batch_size": 4, "epochs": 1}, loss=loss)
            run = TrainingRun(rail.launch("mine"), Told())
            fingerprints.add(run.fingerprint)
            job = run.job()
            job.scratch.mkdir(parents=True)
            shelf = Shelf(tmp_path / f"shelf{bool(loss)}")
            session = OTHERS["local"]().open(job)
            session.train_epoch(1, None, shelf)
            session.close()
            steps[bool(loss)] = shelf.steps
    assert len(fingerprints) == 2, "a loss is part of the identity"
    assert [step.loss for step in steps[True]] == pytest.approx([step.loss for step in steps[False]], rel=LOSS)
    assert {step.extra["rows"] for step in steps[True]} == {4.0}


def test_who_has_no_loss_of_ones_own_refuses_one_and_one_that_is_not_there_is_told(tmp_path: Path) -> None:
    rail = Rail(blobs=LocalBlobs(tmp_path / "store"), trainer=reference)
    rail.add("mine", SupervisedRecipe, {}, loss="tests.contract.test_backends_agree:own_loss")
    with pytest.raises(
        CapabilityError, match=r"can't train by a loss of one's own.*\n.*choose backend local or tinker"
    ):
        preflight(rail.launch("mine"))
    rail = rail.with_(trainer=OTHERS["local"])
    rail.add("mine", SupervisedRecipe, {}, loss="tests.contract.test_backends_agree:no_such")
    with pytest.raises(ConfigError, match=r"loss tests\.contract\.test_backends_agree:no_such: can't be imported"):
        preflight(rail.launch("mine"))
