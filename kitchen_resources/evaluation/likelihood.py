"""Likelihoods of rows under a model, in forward passes that the memory bounds."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kitchen_resources.errors import EvaluationError
from kitchen_resources.evaluation.port import EvaluationTask, Measure
from kitchen_resources.formulas.metrics import perplexity, ratio_interval

# Logits of a forward pass for the loss, in numbers: 1 GiB in fp32. A batch of 64 rows of 2,048 tokens over a vocabulary
# of 150,000 would take 80 GB.
_LOGITS = 1 << 28

Row = tuple[list[int], list[int]]
"""Tokens and labels, -100 where nothing is learned."""


def loss_measures(model: Any, task: EvaluationTask) -> dict[str, Measure]:
    """Negative log-likelihood per learned token, in nats, and the perplexity it gives; nothing where no token is learned."""
    assert task.scored is not None
    totals: list[tuple[float, float]] = []
    for rows in read_rows(task.scored, task.batch_size):
        for total, count in row_losses(model, rows, task.pad_token_id):
            if not math.isfinite(total):
                raise not_finite(task.name, f"the loss of row {len(totals)}", total)
            totals.append((total, count))
    loss = per_token(totals)
    if loss is None:
        return {}
    measures = {f"{task.name}/loss": loss}
    if math.isfinite(perplexity(loss.value)):
        measures[f"{task.name}/perplexity"] = Measure(
            perplexity(loss.value), loss.n, perplexity(loss.low), perplexity(loss.high)
        )
    return measures


def per_token(totals: Sequence[tuple[float, float]]) -> Measure | None:
    """The mean over learned tokens of what was summed by row, given with its number of tokens; None without any."""
    learned = [(total, count) for total, count in totals if count]
    if not learned:
        return None
    sums, tokens = [total for total, _ in learned], [count for _, count in learned]
    return Measure(math.fsum(sums) / math.fsum(tokens), len(learned), *ratio_interval(sums, tokens))


def read_rows(path: Path, batch_size: int) -> Iterator[list[Row]]:
    """The rows of a Parquet file with `input_ids` and `labels`, a batch at a time."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size, columns=["input_ids", "labels"]):
            yield list(zip(batch["input_ids"].to_pylist(), batch["labels"].to_pylist(), strict=True))


def not_finite(task: str, what: str, value: float) -> EvaluationError:
    """The error for a row of which a number overflowed."""
    return EvaluationError(
        f"{what} is {value}", where=f"evaluation {task}", fix="precision: fp32, or look at the model's weights"
    )


def row_losses(model: Any, rows: Sequence[Row], pad: int) -> Iterator[tuple[float, float]]:
    """Sum of the losses of each row's learned tokens, in nats, and their number; in passes that the memory bounds."""
    longest = max(len(ids) for ids, _ in rows)
    at_once = rows_at_once(longest, vocabulary(model))
    for start in range(0, len(rows), at_once):
        yield from _forward(model, rows[start : start + at_once], pad)


def rows_at_once(longest: int, logits: int) -> int:
    """Rows of a forward pass, when each has up to `longest` tokens and each token so many logits."""
    return max(1, _LOGITS // (longest * logits))


def vocabulary(model: Any) -> int:
    """Logits of a token."""
    size: int = model.config.get_text_config().vocab_size
    return size


def padded(rows: Sequence[Row], pad: int, device: Any) -> tuple[dict[str, Any], Any]:
    """Rows as the arguments of a forward pass, filled up on the right, and their labels. Tensors of shape [rows, tokens]."""
    import torch

    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row, _ in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in rows], device=device)
    labels = torch.tensor([label + [-100] * (longest - len(label)) for _, label in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}, labels


def _forward(model: Any, rows: Sequence[Row], pad: int) -> Iterator[tuple[float, float]]:
    import torch

    arguments, labels = padded(rows, pad, model.device)
    logits = model(**arguments).logits[:, :-1].float()
    targets = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), targets, ignore_index=-100, reduction="none"
    ).double()
    learned = targets != -100
    yield from zip(losses.sum(1).tolist(), learned.sum(1).double().tolist(), strict=True)
