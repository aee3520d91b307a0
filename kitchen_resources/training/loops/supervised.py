"""Supervised fine-tuning: the cross entropy of what is trained in each row, its mean per trained token of the step."""

from collections.abc import Iterator

from kitchen_resources.training.loops.data import labelled, per_token, trained_tokens
from kitchen_resources.training.loops.frame import Epoch, StepDone, step_done

ALGORITHM_VERSION = 1
"""Raised by hand when this loop's arithmetic changes."""


def train(epoch: Epoch) -> Iterator[StepDone]:
    """Train an epoch, one optimiser step at a time."""
    for batch in epoch.batches:
        data = [datum for row in batch.rows for datum in labelled(row)]
        gradients = epoch.client.forward_backward(per_token(data), "cross_entropy")
        moved = epoch.client.optim_step(epoch.adam(batch))
        yield step_done(batch, gradients.result(), moved.result(), tokens=trained_tokens(data))
