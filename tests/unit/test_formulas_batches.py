"""The batch plan: its own rules, and equality with what the trainers really do."""

from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.errors import ConfigError, DataError
from kitchen_resources.formulas.batches import batch_plan, block_plan, steps_per_epoch, total_steps


@pytest.mark.heavy
def test_the_plan_is_this_permutation() -> None:
    # Fixed for ever: stored runs were trained in this order.
    assert batch_plan(10, seed=5, epoch=0, batch_size=2, accumulation=2) == [
        [1, 4, 9, 6],
        [3, 5, 0, 2],
        [8, 7],
    ]
    assert batch_plan(10, seed=4, epoch=1, batch_size=4) == [[1, 4, 9, 6], [3, 5, 0, 2], [8, 7]]
    assert batch_plan(1, seed=0, epoch=0, batch_size=8) == [[0]]


@pytest.mark.heavy
@pytest.mark.parametrize("n", [1, 7, 8, 9, 100])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (4, 1), (4, 2), (3, 3), (128, 1)])
def test_every_row_is_in_the_plan_once(n: int, batch_size: int, accumulation: int) -> None:
    plan = batch_plan(n, seed=11, epoch=3, batch_size=batch_size, accumulation=accumulation)
    assert sorted(row for step in plan for row in step) == list(range(n))
    assert all(len(step) == batch_size * accumulation for step in plan[:-1])
    assert len(plan) == steps_per_epoch(n, batch_size=batch_size, accumulation=accumulation)


@pytest.mark.heavy
def test_the_plan_neither_reads_nor_moves_the_global_random_state() -> None:
    import torch

    torch.manual_seed(1)
    before = torch.get_rng_state()
    plan = batch_plan(50, seed=11, epoch=0, batch_size=4)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert batch_plan(50, seed=11, epoch=0, batch_size=4) == plan
    assert batch_plan(50, seed=11, epoch=1, batch_size=4) != plan


@pytest.mark.parametrize(
    ("n", "batch_size", "accumulation", "expected"),
    [(1, 4, 1, 1), (8, 4, 1, 2), (9, 4, 1, 3), (9, 4, 2, 2), (8, 4, 2, 1), (21, 2, 3, 4)],
)
def test_steps_per_epoch(n: int, batch_size: int, accumulation: int, expected: int) -> None:
    assert steps_per_epoch(n, batch_size=batch_size, accumulation=accumulation) == expected


def test_total_steps_are_cut_by_max_steps_and_never_stretched() -> None:
    assert total_steps(2, epochs=3) == 6
    assert total_steps(3, epochs=3, max_steps=4) == 4
    assert total_steps(3, epochs=3, max_steps=100) == 9


@pytest.mark.parametrize(
    ("arguments", "error", "where"),
    [
        ({"n": 0}, DataError, "dataset"),
        ({"batch_size": 0}, ConfigError, "batch_size"),
        ({"accumulation": 0}, ConfigError, "gradient_accumulation_steps"),
    ],
)
def test_bad_counts_of_rows_are_refused_by_name(
    arguments: dict[str, int], error: type[ConfigError], where: str
) -> None:
    given: dict[str, Any] = {"n": 4, "batch_size": 2, **arguments}
    with pytest.raises(error) as refused:
        steps_per_epoch(given.pop("n"), **given)
    assert refused.value.where == where


@pytest.mark.parametrize("name", ["steps_per_epoch", "epochs", "max_steps"])
def test_bad_counts_of_steps_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        total_steps(**{"steps_per_epoch": 4, "epochs": 1, "max_steps": 3, name: 0})
    assert refused.value.where == name


@pytest.mark.heavy
@pytest.mark.parametrize(("n", "prompts", "draws"), [(10, 4, 3), (7, 7, 1), (5, 8, 2), (30, 4, 2)])
def test_blocks_go_on_where_the_one_before_ended(n: int, prompts: int, draws: int) -> None:
    blocks = [block_plan(n, seed=3, block=block, prompts=prompts, draws=draws) for block in range(7)]
    assert all([len(draw) for draw in block] == [prompts] * draws for block in blocks)
    taken = [index for block in blocks for draw in block for index in draw]
    passes = [batch_plan(n, seed=3, epoch=epoch, batch_size=n)[0] for epoch in range(len(taken) // n + 1)]
    assert taken == [index for order in passes for index in order][: len(taken)]


@pytest.mark.heavy
@pytest.mark.parametrize(("seed", "epoch"), [(-1, 0), (0, -1), (2**32, 0), (2**32 - 1, 1)])
def test_seeds_beyond_the_generators_bits_are_refused(seed: int, epoch: int) -> None:
    with pytest.raises(ConfigError) as refused:
        batch_plan(4, seed=seed, epoch=epoch, batch_size=2)
    assert refused.value.where == "seed"


@pytest.mark.heavy
def test_accelerates_sampler_draws_the_plan() -> None:
    from accelerate.data_loader import SeedableRandomSampler  # type: ignore[import-untyped]

    sampler = SeedableRandomSampler(range(37), data_seed=11)
    for epoch in range(3):
        plan = batch_plan(37, seed=11, epoch=epoch, batch_size=4)
        sampler.set_epoch(epoch)
        assert list(sampler) == [row for step in plan for row in step]


@pytest.mark.heavy
def test_trl_keeps_the_trainers_sampler() -> None:
    from transformers import Trainer
    from trl import DPOTrainer, SFTTrainer

    assert SFTTrainer._get_train_sampler is Trainer._get_train_sampler
    assert DPOTrainer._get_train_sampler is Trainer._get_train_sampler


@pytest.mark.heavy
@pytest.mark.parametrize(("n", "batch_size", "accumulation"), [(11, 2, 2), (9, 2, 2), (12, 3, 2), (5, 4, 1)])
def test_the_trainer_takes_the_rows_of_the_plan(n: int, batch_size: int, accumulation: int, tmp_path: Path) -> None:
    taken = rows_that_the_trainer_takes(tmp_path, n, batch_size, accumulation, seed=7, data_seed=11, epochs=3)
    planned = [
        step
        for epoch in range(3)
        for step in batch_plan(n, seed=11, epoch=epoch, batch_size=batch_size, accumulation=accumulation)
    ]
    assert taken == planned
    assert len(taken) == 3 * steps_per_epoch(n, batch_size=batch_size, accumulation=accumulation)


def rows_that_the_trainer_takes(
    folder: Path, n: int, batch_size: int, accumulation: int, *, seed: int, data_seed: int, epochs: int
) -> list[list[int]]:
    """The rows that a model saw in each optimiser step of a real training."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    steps: list[list[int]] = [[]]

    class Recorder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, row: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            steps[-1].extend(row.tolist())
            torch.rand(3)  # a model with dropout moves the global random state between batches
            return {"loss": (self.weight * labels).mean()}

    class EndOfStep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.append([])

    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        seed=seed,
        data_seed=data_seed,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    rows = [{"row": row, "labels": 1.0} for row in range(n)]
    Trainer(model=Recorder(), args=arguments, train_dataset=rows, callbacks=[EndOfStep()]).train()
    return steps[:-1]
