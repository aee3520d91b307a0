"""Direct preference optimisation, by a loss of our own on the log-probabilities of both answers (arXiv:2305.18290)."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.training.loops.batches import train_batches
from kitchen_resources.training.loops.data import completion
from kitchen_resources.training.loops.frame import Batch, Epoch, Row, StepDone
from kitchen_resources.training.port import CustomLoss, Datum, ForwardBackwardResult, ModelInput, TrainingJob

ALGORITHM_VERSION = 1
"""Raised by hand when this loop's arithmetic changes."""

Pair = tuple[float, float]
"""Summed log-probabilities of the chosen and of the rejected answer under the reference, in nats."""


def train(epoch: Epoch) -> Iterator[StepDone]:
    """Train an epoch, one optimiser step at a time."""
    return train_batches(epoch, get_batch, forward_backward)


def get_batch(epoch: Epoch, batch: Batch) -> list[Datum]:
    """The pairs of a batch as data: each is two neighbours, the chosen answer first."""
    return [side for row in batch.rows for side in _sides(row)]


def forward_backward(epoch: Epoch, batch: Batch, data: Sequence[Datum]) -> "Future[ForwardBackwardResult]":
    """Submit the gradients of a batch, against what the reference says of its pairs."""
    recipe = epoch.recipe
    assert isinstance(recipe, PreferenceRecipe)
    reference = _reference(epoch)
    if len(data) != 2 * len(batch.rows):
        raise ConfigError(
            f"{len(data)} data for {len(batch.rows)} pairs: each pair is two, the chosen answer first",
            where="batch_stages.get_batch",
            fix="return both answers of every row of the batch",
        )
    loss = dpo_loss([reference[row["row_id"]] for row in batch.rows], beta=recipe.beta)
    return epoch.client.forward_backward_custom(data, loss)


def dpo_loss(reference: Sequence[Pair], *, beta: float) -> CustomLoss:
    """The mean over pairs of `-log sigmoid(beta * ((pc - rc) - (pr - rr)))`; see `formulas.losses.dpo_loss`.

    Args:
        reference: Of each pair of the batch.
        beta: How dearly leaving the reference is paid.

    Returns:
        A loss over data in which each pair is two neighbours, the chosen answer first.
    """

    def loss(data: Sequence[Datum], logprobs: Sequence[Any]) -> tuple[Any, Mapping[str, float]]:
        import torch
        from torch.nn.functional import logsigmoid

        sums = torch.stack(
            [
                (torch.as_tensor(values) * torch.as_tensor(datum.loss_fn_inputs["weights"]).to(values)).sum()
                if torch.is_tensor(values)
                else torch.tensor(sum(v * w for v, w in zip(values, datum.loss_fn_inputs["weights"], strict=True)))
                for values, datum in zip(logprobs, data, strict=True)
            ]
        ).view(-1, 2)
        gains = beta * (sums - torch.tensor(reference, dtype=sums.dtype, device=sums.device))
        margins = gains[:, 0] - gains[:, 1]
        chosen, rejected = gains.detach().mean(0).tolist()
        metrics = {
            "accuracy": float((margins > 0).float().mean()),
            "margin": float(margins.detach().mean()),
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }
        return -logsigmoid(margins).mean(), metrics

    return loss


def _sides(row: Row) -> tuple[Datum, Datum]:
    return completion(row["prompt_ids"], row["chosen_ids"]), completion(row["prompt_ids"], row["rejected_ids"])


def _reference(epoch: Epoch) -> Mapping[int, Pair]:
    """The reference of every row, worked out once for a reference and data, and kept in the store."""
    if "reference" not in epoch.lives:
        job = epoch.job
        path = job.scratch / "loop-reference-logprobs.parquet"

        def make(target: Path) -> None:
            _write_reference(epoch, target)

        if job.derived is None:
            make(path)
        else:
            job.derived(_key(job), make, path)
        epoch.lives["reference"] = _read_reference(path)
    found: Mapping[int, Pair] = epoch.lives["reference"]
    return found


def _write_reference(epoch: Epoch, target: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(
        epoch.job.data.path, columns=["prompt_ids", "chosen_ids", "rejected_ids", "row_id"]
    )
    client = epoch.clients.frozen("reference")
    try:
        asked: list[tuple[int, list[tuple[int, Future[list[float | None]]]]]] = []
        for row in table.to_pylist():
            sides = [
                (
                    len(row["prompt_ids"]),
                    client.compute_logprobs(ModelInput([*row["prompt_ids"], *row[name]])),
                )
                for name in ("chosen_ids", "rejected_ids")
            ]
            asked.append((row["row_id"], sides))
        sums = [
            (row_id, *(sum(lp for lp in future.result()[start:] if lp is not None) for start, future in sides))
            for row_id, sides in asked
        ]
    finally:
        client.close()
    columns = {name: [row[place] for row in sums] for place, name in enumerate(("row_id", "chosen", "rejected"))}
    pyarrow.parquet.write_table(pyarrow.table(columns), target)


def _read_reference(path: Path) -> dict[int, Pair]:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path).to_pylist()
    return {row["row_id"]: (row["chosen"], row["rejected"]) for row in rows}


def _key(job: TrainingJob) -> dict[str, Any]:
    return {
        "what": "reference log-probabilities of a loop",
        "version": ALGORITHM_VERSION,
        "backend": dict(job.resolution.algorithm),
        "reference": job.models.get("reference", job.base).digest,
        "data": job.data.digest,
        "numerics": dict(job.resolution.values),
        # Other versions, threads or another CPU would give other last bits.
        "environment": dict(job.resolution.environment),
        "quantization": job.recipe.quantization,
    }
