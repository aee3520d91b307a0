"""The noop backend: what its numbers follow from, and that they say what they are."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from kitchen_resources.datasets.port import LocalDataset
from kitchen_resources.errors import CapabilityError
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.base_models import simulated_base
from kitchen_resources.training.noop import STATE_FILE, NoopTrainer
from kitchen_resources.training.plan import make_plan
from kitchen_resources.training.port import LocalCheckpoint, TrainingJob
from kitchen_resources.training.resource import NoopBackend, TrainerResource
from tests.training_bench import Shelf


def job_of(
    folder: Path, rows: Sequence[tuple[Any, list[int]]], *, packed: bool = False, seed: int = 0, **fields: Any
) -> TrainingJob:
    """A job over rows of ids and labels."""
    recipe = bind(
        SupervisedRecipe,
        {"model": "org/huge", "dataset": "rows", "batch_size": 2, "epochs": 2, "seed": seed, **fields},
        RecipeDefinition(name="small"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.parquet"
    columns = {"row_ids" if packed else "row_id": [ids for ids, _ in rows], "labels": [labels for _, labels in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    (folder / "scratch").mkdir(exist_ok=True)
    base = simulated_base(recipe.model)
    return TrainingJob(
        fingerprint="f" * 64,
        recipe=recipe,
        resolution=NoopTrainer().resolve(recipe, base),
        base=base,
        data=LocalDataset(path, len(rows), packed=packed, pad_token_id=0),
        plan=make_plan(recipe, len(rows)),
        scratch=folder / "scratch",
    )


FIVE = [(10 + n, [-100, *range(n + 1)]) for n in range(5)]


def trained(job: TrainingJob, folder: Path) -> Shelf:
    shelf = Shelf(folder / "shelf")
    session = NoopTrainer().open(job)
    parent: LocalCheckpoint | None = None
    for epoch in range(1, job.plan.epochs + 1):
        shelf.parent = parent.global_step if parent else 0
        parent = session.train_epoch(epoch, parent, shelf).checkpoint
    session.close()
    return shelf


def state(shelf: Shelf, step: int) -> str:
    saved = json.loads((shelf.checkpoints[step].folder / STATE_FILE).read_bytes())
    assert saved["step"] == step
    assert saved["simulated"] is True
    simulated: str = saved["state"]
    return simulated


def test_numbers(tmp_path: Path) -> None:
    shelf = trained(job_of(tmp_path, FIVE, learning_rate=1.0), tmp_path)
    assert [step.global_step for step in shelf.steps] == [1, 2, 3, 4, 5, 6]
    # From about 5 down, with a little noise of up to 0.1.
    for step in shelf.steps:
        noise = step.loss - 5.0 * (1 - step.global_step / 7)
        assert 0.0 <= noise <= 0.1
        assert step.grad_norm == pytest.approx(1.0 + 10 * noise)
        assert (step.seconds, step.host_memory_bytes, step.device_memory_bytes) == (0.001, 0, 0)
        assert step.extra == {"simulated": 1.0}
    assert len({step.grad_norm for step in shelf.steps}) == 6
    assert [step.learning_rate for step in shelf.steps] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert shelf.drafts[3].metrics == {
        "loss": pytest.approx(sum(step.loss for step in shelf.steps[:3]) / 3),
        "last_loss": shelf.steps[2].loss,
        "learning_rate": shelf.steps[2].learning_rate,
        "tokens": 15.0,
        "seconds": pytest.approx(0.003),
        "tokens_per_second": pytest.approx(5000.0),
    }


def test_tokens_are_those_that_would_be_learned(tmp_path: Path) -> None:
    shelf = trained(job_of(tmp_path, FIVE), tmp_path)
    learned = {10 + n: n + 1 for n in range(5)}
    for end in (3, 6):
        rows = shelf.drafts[end].row_ids
        assert [step.tokens for step in shelf.drafts[end].steps] == [
            sum(learned[row] for row in step) for step in rows
        ]


def test_packs_are_rows_put_together(tmp_path: Path) -> None:
    packs = [([3, 1], [1, 2, 3]), ([2], [-100, 5]), ([9, 8, 7], [4])]
    shelf = trained(job_of(tmp_path, packs, packed=True, batch_size=1), tmp_path)
    assert sorted(map(list, shelf.drafts[3].row_ids)) == [[2], [3, 1], [9, 8, 7]]
    assert sorted(step.tokens for step in shelf.drafts[3].steps) == [1, 1, 3]


def test_max_steps_ends_inside_an_epoch(tmp_path: Path) -> None:
    shelf = trained(job_of(tmp_path, FIVE, max_steps=5), tmp_path)
    assert [step.global_step for step in shelf.steps] == [1, 2, 3, 4, 5]
    assert {step: draft.epoch_complete for step, draft in shelf.drafts.items()} == {3: True, 5: True}
    assert shelf.drafts[5].steps_into_epoch == 2
    assert [len(step) for step in shelf.drafts[5].row_ids] == [2, 2]


@pytest.mark.parametrize("change", ["nothing", "rows", "seed", "run"])
def test_a_state_follows_from_run_seed_and_rows(tmp_path: Path, change: str) -> None:
    first = trained(job_of(tmp_path / "a", FIVE), tmp_path / "a")
    # The same order over other rows: another id of one row.
    rows = [(99, labels) if ids == 12 and change == "rows" else (ids, labels) for ids, labels in FIVE]
    job = job_of(tmp_path / "b", rows, seed=1 if change == "seed" else 0)
    second = trained(replace(job, fingerprint="e" * 64) if change == "run" else job, tmp_path / "b")
    assert (state(first, 3) == state(second, 3)) is (change == "nothing")
    assert (state(first, 6) == state(second, 6)) is (change == "nothing")
    assert state(first, 3) != state(first, 6)


def test_an_epoch_that_is_done_is_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path, FIVE, checkpoint_steps=1)
    shelf = trained(job, tmp_path)
    shelf.parent = 2
    whole = shelf.drafts[3]
    shelf.drafts[2] = replace(shelf.drafts[2], row_ids=whole.row_ids, steps=whole.steps)
    session = NoopTrainer().open(job)
    with pytest.raises(CapabilityError) as refused:
        session.train_epoch(1, shelf.checkpoints[2], shelf)
    assert str(refused.value) == "epoch 1: has nothing left to do in this epoch"


def test_an_export_is_no_model(tmp_path: Path) -> None:
    job = job_of(tmp_path, FIVE)
    shelf = trained(job, tmp_path)
    session = NoopTrainer().open(job)
    session.export(shelf.checkpoints[6], tmp_path / "deep" / "model", merged=True)
    assert [path.name for path in (tmp_path / "deep" / "model").iterdir()] == [STATE_FILE]
    assert json.loads((tmp_path / "deep" / "model" / STATE_FILE).read_bytes())["simulated"] is True


def test_it_is_chosen_by_one_word() -> None:
    resource = TrainerResource(backend=NoopBackend())
    assert isinstance(resource.live().adapter, NoopTrainer)
    assert resource.live() is resource.live()
    first = resource.live()
    resource.teardown_after_execution(None)  # type: ignore[arg-type]
    assert resource.live() is not first


def test_a_whole_run_needs_no_torch(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from tests.unit.test_noop import FIVE, job_of, trained
folder = Path({str(tmp_path)!r})
print(len(trained(job_of(folder, FIVE), folder).steps), "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["6", "False"]
