"""A loss that is not finite, in every method: step and rows are named, and nothing of the epoch is published."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.errors import TrainingDiverged
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.training.plan import planned_rows
from kitchen_resources.training.run import TrainingRun
from kitchen_resources.training.trl.backend import TrlTrainer
from kitchen_resources.training.trl.session import METHODS
from tests.engine import Told
from tests.rail import Rail

pytestmark = [pytest.mark.heavy, pytest.mark.full]

CASES: dict[str, tuple[type[Recipe], dict[str, Any], int]] = {
    "preference": (PreferenceRecipe, {"batch_size": 2}, 3),
    "reinforcement": (ReinforcementRecipe, {"steps_per_epoch": 3}, 2),
    "reinforcement, on samples of the step before": (
        ReinforcementRecipe,
        {"steps_per_epoch": 4, "ppo_epochs": 2},
        4,
    ),
    "distillation, logits": (DistillationRecipe, {"batch_size": 2}, 3),
    "distillation, on policy": (DistillationRecipe, {"batch_size": 2, "mode": "on_policy", "max_tokens": 4}, 3),
    "distillation, sequence": (
        DistillationRecipe,
        {
            "batch_size": 2,
            "mode": "sequence",
            "max_tokens": 400,
            "max_length": 512,
            "row_limits": {"untrained": 1.0, "truncated": 1.0},
        },
        2,
    ),
}
"""The recipe's class and fields, and the step of the second epoch whose loss is made NaN."""


@pytest.mark.parametrize("case", CASES)
def test_a_loss_that_is_not_finite_stops_the_epoch_with_step_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    method, fields, into_epoch = CASES[case]
    rail = Rail(blobs=LocalBlobs(tmp_path), trainer=lambda: TrlTrainer(device="cpu", threads=1))
    rail.add("mine", method, {**fields, "epochs": 2, "learning_rate": 1.0e-3})
    launch = rail.launch("mine")
    run = TrainingRun(launch, Told())
    step = run.plan.steps_per_epoch + into_epoch
    _nan_at(monkeypatch, launch.recipe, step)
    try:
        with pytest.raises(TrainingDiverged) as stopped:
            run.finish()
    finally:
        launch.ports.trainer.discard()
    text = str(stopped.value)
    assert text.startswith(f"epoch 2, step {step}: the loss is nan at learning rate ")
    assert text.endswith(
        "\n  fix: lower learning_rate, set max_grad_norm, or look at those rows; nothing of this epoch was published"
    )
    named = text.partition("the rows of this step are ")[2].partition("\n")[0]
    assert sorted(map(int, named.split(", "))) == sorted(_rows(run, launch.training_rows().path, into_epoch))
    (fingerprint,) = CheckpointStore(rail.blobs).find("")
    assert [entry.epoch for entry in CheckpointStore(rail.blobs).head(fingerprint).entries()] == [1]


def _nan_at(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, step: int) -> None:
    """Make the loss of one optimiser step NaN."""
    trainer = METHODS[recipe.method].trainer_class(recipe)
    real = trainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = real(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == step - 1 else loss

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)


def _rows(run: TrainingRun, path: Path, into_epoch: int) -> list[int]:
    """Ids of the rows that a step of epoch 2 trains on: those that it receives, or that were sampled last."""
    import pyarrow.parquet

    ids = pyarrow.parquet.read_table(path, columns=["row_id"])["row_id"].to_pylist()
    steps = planned_rows(run.job().recipe, run.plan, 2)[:into_epoch]
    received: Mapping[int, list[int]] = {index: step for index, step in enumerate(steps) if step}
    return [ids[index] for index in received[max(received)]]
