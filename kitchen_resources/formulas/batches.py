"""The order of the rows: which ones every optimiser step of an epoch trains on."""

import hashlib
from typing import Literal

from kitchen_resources.errors import ConfigError, DataError

# A CPU generator of torch reads 32 bits of its seed: 5 and 5 + 2**32 give the same permutation.
_SEEDS = 2**32

RowOrder = Literal["torch", "digest"]
"""How rows are permuted: as the trainers do it, or by a digest of each row's place, which needs no torch."""


def batch_plan(
    n: int, *, seed: int, epoch: int, batch_size: int, accumulation: int = 1, order: RowOrder = "torch"
) -> list[list[int]]:
    """The rows of every optimiser step of an epoch, in order. Each row is in it exactly once.

    The order `torch` is that of transformers' Trainer in one process with `data_seed=seed`, and so of TRL's
    supervised and preference trainers: accelerate's `SeedableRandomSampler` seeds a CPU generator with
    `data_seed + epoch` and draws `torch.randperm(n)`. It does not depend on the epochs before or on torch's
    global random state.

    A step's rows are its micro-batches one after the other, `batch_size` rows each. What is left at the end
    of the epoch is a shorter last step; no row is dropped and none is repeated.

    Args:
        n: Rows, or packs of rows.
        seed: The recipe's seed, from 0; `seed + epoch` is below 2**32.
        epoch: The epoch, **from 0** as in the trainers.
        batch_size: Rows of a micro-batch.
        accumulation: Micro-batches of an optimiser step.
        order: How the rows are permuted.

    Returns:
        For each of `steps_per_epoch` steps, the indices of its rows: `batch_size * accumulation` of them,
        fewer in the last one.

    Raises:
        DataError: There are no rows.
        ConfigError: Another number is out of its bounds.
    """
    rows_of_step = _rows_of_step(n, batch_size, accumulation)
    if seed < 0 or epoch < 0 or seed + epoch >= _SEEDS:
        raise ConfigError(
            f"seed {seed} at epoch {epoch} is not from 0 to {_SEEDS - 1}", where="seed", fix="write seed: 0"
        )
    rows = _by_torch(n, seed + epoch) if order == "torch" else _by_digest(n, seed, epoch)
    return [rows[start : start + rows_of_step] for start in range(0, n, rows_of_step)]


def block_plan(
    n: int, *, seed: int, block: int, prompts: int, draws: int, order: RowOrder = "torch"
) -> list[list[int]]:
    """The prompts of every draw of a block of rollouts, in order.

    Prompts are taken from an endless sequence: one permutation of all of them after another, permutation p by the seed
    `seed + p` as in `batch_plan`. A block goes on where the one before it ended, so that over the blocks every prompt
    comes up equally often, give or take one, whatever the size of a block.

    Args:
        n: Prompts in the data set.
        seed: The recipe's seed, from 0.
        block: The block, **from 0** as in the trainers.
        prompts: Prompts of one draw.
        draws: Draws of the block.
        order: How the prompts are permuted.

    Returns:
        Indices of prompts. Shape [draws][prompts]; a prompt may come up twice in a block that is longer than n.

    Raises:
        DataError: There are no prompts.
        ConfigError: Another number is out of its bounds.
    """
    _rows_of_step(n, prompts, draws)
    first = block * prompts * draws
    last = first + prompts * draws
    taken = [
        index
        for epoch in range(first // n, (last - 1) // n + 1)
        for index in batch_plan(n, seed=seed, epoch=epoch, batch_size=n, order=order)[0]
    ][first % n :]
    return [taken[start : start + prompts] for start in range(0, prompts * draws, prompts)]


def steps_per_epoch(n: int, *, batch_size: int, accumulation: int = 1) -> int:
    """Optimiser steps of a whole epoch: the last one may be short, none is left out.

    Args:
        n: Rows, or packs of rows.
        batch_size: Rows of a micro-batch.
        accumulation: Micro-batches of an optimiser step.

    Raises:
        DataError: There are no rows.
        ConfigError: Another number is below 1.
    """
    return -(-n // _rows_of_step(n, batch_size, accumulation))


def total_steps(steps_per_epoch: int, *, epochs: int, max_steps: int | None = None) -> int:
    """Optimiser steps of a run: all of its epochs, or `max_steps` when that is fewer.

    transformers' own `max_steps` also lengthens a run beyond its epochs; this one only shortens it.

    Args:
        steps_per_epoch: Steps of a whole epoch.
        epochs: Epochs of the run.
        max_steps: The most steps to take; None for no such bound.

    Raises:
        ConfigError: A number is below 1.
    """
    _at_least_one(steps_per_epoch, "steps_per_epoch")
    _at_least_one(epochs, "epochs")
    steps = epochs * steps_per_epoch
    if max_steps is None:
        return steps
    _at_least_one(max_steps, "max_steps")
    return min(steps, max_steps)


def _by_torch(n: int, seed: int) -> list[int]:
    import torch

    generator = torch.Generator(device="cpu").manual_seed(seed)
    order: list[int] = torch.randperm(n, generator=generator, device="cpu").tolist()
    return order


def _by_digest(n: int, seed: int, epoch: int) -> list[int]:
    return sorted(range(n), key=lambda index: hashlib.sha256(f"{seed}/{epoch + 1}/{index}".encode()).digest())


def _rows_of_step(n: int, batch_size: int, accumulation: int) -> int:
    if n < 1:
        raise DataError("there are no rows to train on", where="dataset", fix="see the row report for dropped rows")
    _at_least_one(batch_size, "batch_size")
    _at_least_one(accumulation, "gradient_accumulation_steps")
    return batch_size * accumulation


def _at_least_one(value: int, name: str) -> None:
    if value < 1:
        raise ConfigError(f"{value} is below 1", where=name, fix=f"write {name}: 1")
