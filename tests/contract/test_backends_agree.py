"""Backends that train really train the same: from one start, on the same rows, to the same numbers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kitchen_assets.workflows import WORKFLOWS
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.errors import CapabilityError, ConfigError
from kitchen_resources.numerics import preserved_numerics
from kitchen_resources.recipes.files import load_recipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.local.backend import LocalTrainer
from kitchen_resources.training.loops import preference, supervised
from kitchen_resources.training.loops.frame import Batch, Epoch
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


called: list[tuple[str, int]] = []


def get_batch(epoch: Epoch, batch: Batch) -> list[Datum]:
    """The loop's own, noted."""
    called.append(("get_batch", batch.step))
    return supervised.get_batch(epoch, batch)


def forward_backward(epoch: Epoch, batch: Batch, data: Sequence[Datum]) -> Any:
    """The loop's own, noted."""
    called.append(("forward_backward", len(data)))
    return supervised.forward_backward(epoch, batch, data)


def standing_still(epoch: Epoch, batch: Batch) -> Any:
    """A step at no rate."""
    called.append(("optim_step", batch.step))
    return epoch.client.optim_step(replace(epoch.adam(batch), learning_rate=0.0))


def trained_by(folder: Path, stages: dict[str, str]) -> tuple[str, Shelf]:
    """One epoch of three steps: the fingerprint, and what was published."""
    rail = Rail(blobs=LocalBlobs(folder / "store"), trainer=OTHERS["local"])
    rail.add("mine", SupervisedRecipe, {"max_rows": 12, "batch_size": 4, "epochs": 1}, batch_stages=stages)
    run = TrainingRun(rail.launch("mine"), Told())
    job = run.job()
    job.scratch.mkdir(parents=True)
    shelf = Shelf(folder / "shelf")
    session = OTHERS["local"]().open(job)
    session.train_epoch(1, None, shelf)
    session.close()
    return run.fingerprint, shelf


def test_stages_of_ones_own_take_the_places_of_the_loops(tmp_path: Path) -> None:
    here = own_loss.__module__
    called.clear()
    with preserved_numerics():
        plain, usual = trained_by(tmp_path / "plain", {})
        assert called == []
        named = {"get_batch": f"{here}:get_batch", "forward_backward": f"{here}:forward_backward"}
        same, noted = trained_by(tmp_path / "same", named)
        assert called == [
            (stage, number) for step in (1, 2, 3) for stage, number in (("get_batch", step), ("forward_backward", 4))
        ]
        called.clear()
        other, still = trained_by(tmp_path / "other", {"optim_step": f"{here}:standing_still"})
        assert called == [("optim_step", step) for step in (1, 2, 3)]
        called.clear()
    assert len({plain, same, other}) == 3, "the code of a stage is part of the identity"
    assert [step.loss for step in noted.steps] == [step.loss for step in usual.steps]
    assert still.steps[0].loss == usual.steps[0].loss
    assert still.steps[2].loss != usual.steps[2].loss
    assert [step.learning_rate for step in still.steps] == [0.0, 0.0, 0.0], "the rate that was used is told"
    assert [step.learning_rate for step in noted.steps] == [step.learning_rate for step in usual.steps]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"batch_stages": {"batch": "m:f"}}, r"mine\.yaml:5, batch_stages\.batch: there is no stage 'batch'"),
        ({"batch_stages": {"optim_step": "f"}}, "batch_stages.optim_step: 'f' names no function"),
        ({"batch_stages": {"optim_step": 3}}, "batch_stages.optim_step: 3 names no function"),
        ({"batch_stages": "m:f"}, "batch_stages: must be a mapping, got 'm:f'"),
        ({"workflow": "reinforcement", "batch_stages": {"get_batch": "m:f"}}, "there is no stage 'get_batch'"),
    ],
)
def test_a_stage_that_there_is_not_is_refused_where_the_recipe_is_defined(
    tmp_path: Path, recipe: dict[str, Any], said: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({"workflow": "supervised", "model": "m", "dataset": "d", **recipe}, sort_keys=False)
    )
    with pytest.raises(ConfigError, match=said):
        load_recipe(path, {name: workflow.recipe for name, workflow in WORKFLOWS.items()})


def one_answer(epoch: Epoch, batch: Batch) -> list[Datum]:
    """Forgets the rejected answers."""
    return preference.get_batch(epoch, batch)[::2]


def test_pairs_that_lost_an_answer_are_refused(tmp_path: Path) -> None:
    rail = Rail(blobs=LocalBlobs(tmp_path / "store"), trainer=OTHERS["local"])
    stages = {"get_batch": f"{one_answer.__module__}:one_answer"}
    rail.add("mine", PreferenceRecipe, {"max_rows": 8, "batch_size": 4, "epochs": 1}, batch_stages=stages)
    job = TrainingRun(rail.launch("mine"), Told()).job()
    job.scratch.mkdir(parents=True)
    session = OTHERS["local"]().open(job)
    with pytest.raises(ConfigError, match=r"batch_stages\.get_batch: 4 data for 4 pairs"):
        session.train_epoch(1, None, Shelf(tmp_path / "shelf"))
    session.close()


def test_who_runs_no_stages_of_ones_own_refuses_them(tmp_path: Path) -> None:
    stages = {"forward_backward": f"{own_loss.__module__}:forward_backward"}
    rail = Rail(blobs=LocalBlobs(tmp_path / "store"), trainer=reference)
    rail.add("mine", SupervisedRecipe, {}, batch_stages=stages)
    with pytest.raises(CapabilityError, match=r"as batch_stages asks: forward_backward\n.*backend local or tinker"):
        preflight(rail.launch("mine"))
    rail = rail.with_(trainer=OTHERS["local"])
    rail.add("mine", SupervisedRecipe, {}, batch_stages=stages, loss=f"{own_loss.__module__}:own_loss")
    with pytest.raises(ConfigError, match="loss: is read by the forward_backward that batch_stages replaces"):
        preflight(rail.launch("mine"))
    for stages in ({"optimizer_step": "m:f"}, {"get_batch": "tests.no_such:batch", "batch": "m:f"}):
        rail.add("mine", SupervisedRecipe, {}, batch_stages=stages)
        with pytest.raises(ConfigError, match=r"batch_stages\.(optimizer_step: is no stage|get_batch tests)"):
            preflight(rail.launch("mine"))
    rail.add("mine", SupervisedRecipe, {}, batch_stages={"optim_step": "tests.no_such:step"})
    with pytest.raises(ConfigError, match=r"batch_stages\.optim_step tests\.no_such:step: can't be imported"):
        preflight(rail.launch("mine"))


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
