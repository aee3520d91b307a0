"""Supervised fine-tuning: the cross entropy of what is trained in each row, its mean per trained token of the step."""

from collections.abc import Iterator

from kitchen_resources.training.custom_loss import find_loss
from kitchen_resources.training.loops.data import labelled, per_token, trained_tokens
from kitchen_resources.training.loops.frame import Epoch, StepDone, step_done

ALGORITHM_VERSION = 1
"""Raised by hand when this loop's arithmetic changes."""


def train(epoch: Epoch) -> Iterator[StepDone]:
    """Train an epoch, one optimiser step at a time; by the recipe's own loss where it names one."""
    named = epoch.recipe.definition.loss
    loss = find_loss(named) if named else None
    for batch in epoch.batches:
        data = [datum for row in batch.rows for datum in labelled(row)]
        sent = per_token(data)
        if loss is not None:
            gradients = epoch.client.forward_backward_custom(sent, loss)
        else:
            gradients = epoch.client.forward_backward(sent, "cross_entropy")
        moved = epoch.client.optim_step(epoch.adam(batch))
        yield step_done(batch, gradients.result(), moved.result(), tokens=trained_tokens(data))
