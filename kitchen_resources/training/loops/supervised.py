"""Supervised fine-tuning: the cross entropy of what is trained in each row, its mean per trained token of the step."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from kitchen_resources.training.loops.batches import train_batches
from kitchen_resources.training.loops.data import labelled, per_token
from kitchen_resources.training.loops.frame import Batch, Epoch, StepDone
from kitchen_resources.training.own_code import find
from kitchen_resources.training.port import Datum, ForwardBackwardResult

ALGORITHM_VERSION = 1
"""Raised by hand when this loop's arithmetic changes."""


def train(epoch: Epoch) -> Iterator[StepDone]:
    """Train an epoch, one optimiser step at a time; by the recipe's own loss where it names one."""
    return train_batches(epoch, get_batch, forward_backward)


def get_batch(epoch: Epoch, batch: Batch) -> list[Datum]:
    """The rows of a batch as data: a pack is several."""
    return [datum for row in batch.rows for datum in labelled(row)]


def forward_backward(epoch: Epoch, batch: Batch, data: Sequence[Datum]) -> "Future[ForwardBackwardResult]":
    """Submit the gradients of a batch: of the mean per trained token."""
    sent = per_token(data)
    named = epoch.recipe.definition.loss
    if named:
        return epoch.client.forward_backward_custom(sent, find(named, "loss"))
    return epoch.client.forward_backward(sent, "cross_entropy")
