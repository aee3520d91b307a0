"""The loop of the methods whose batches are rows: of each its data, their gradients, and a step."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from kitchen_resources.training.loops.data import trained_tokens
from kitchen_resources.training.loops.frame import Batch, Epoch, StepDone, optim_step, step_done
from kitchen_resources.training.loops.stages import batch_stages
from kitchen_resources.training.port import Datum, ForwardBackwardResult


def train_batches(
    epoch: Epoch,
    get_batch: Callable[[Epoch, Batch], list[Datum]],
    forward_backward: Callable[[Epoch, Batch, Sequence[Datum]], "Future[ForwardBackwardResult]"],
) -> Iterator[StepDone]:
    """Train an epoch, one optimiser step at a time.

    Args:
        epoch: The epoch.
        get_batch: The method's own stage of that name.
        forward_backward: Likewise.
    """
    named = epoch.recipe.definition.batch_stages
    data_of, gradients_of, move = batch_stages(named, get_batch, forward_backward, optim_step)
    for batch in epoch.batches:
        data = data_of(epoch, batch)
        gradients = gradients_of(epoch, batch, data)
        moved = move(epoch, batch)
        yield step_done(batch, gradients.result(), moved.result(), tokens=trained_tokens(data))
