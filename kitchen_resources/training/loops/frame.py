"""What a loop is given, and what it says of each optimiser step."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.plan import TrainingPlan, learning_rate_at
from kitchen_resources.training.port import AdamParams, ForwardBackwardResult, TrainingClient, TrainingJob

Row = Mapping[str, Any]
"""A prepared row: its columns by name."""


class Clients(Protocol):
    """Opens the clients of a job."""

    def open(self) -> TrainingClient:
        """A new client, at the weights of the base."""
        ...

    def frozen(self, role: str) -> TrainingClient:
        """A client of a model that is only read: `reference` or `teacher`; of the base where the job has none."""
        ...

    def errors(self, epoch: int) -> AbstractContextManager[None]:
        """Turns what the backend raises into errors that say what to do."""
        ...

    def device_memory(self) -> int:
        """Peak of the device's memory so far, in bytes; 0 when unknown."""
        ...

    def close(self) -> None:
        """Free what is held, and leave the process as it was; may be called twice."""
        ...

    def longest_prompt(self) -> int | None:
        """Tokens of a prompt behind which the model can write a whole completion; None where there is no limit."""
        ...


@dataclass(frozen=True)
class Batch:
    """The rows of one optimiser step.

    Attributes:
        step: The step in the run, from 1.
        rows: Its prepared rows; none where it trains on what an earlier step has sampled.
    """

    step: int
    rows: Sequence[Row]

    def row_ids(self) -> list[int]:
        """Ids of its rows; a pack has those of all its rows."""
        ids = (row["row_ids"] if "row_ids" in row else [row["row_id"]] for row in self.rows)
        return [row_id for several in ids for row_id in several]


@dataclass(frozen=True)
class StepDone:
    """An optimiser step that is done.

    Attributes:
        batch: What it received.
        tokens: Trained tokens.
        loss: Mean loss per trained token, or per pair.
        grad_norm: Of all trained weights, before it is cut; 0 where the backend doesn't tell.
        extra: What else is logged.
        lines: What was sampled, for people.
    """

    batch: Batch
    tokens: int
    loss: float
    grad_norm: float = 0.0
    extra: Mapping[str, float] = field(default_factory=dict)
    lines: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Epoch:
    """One epoch of a job, or what is left of it.

    Attributes:
        job: What is trained.
        number: The epoch, from 1.
        client: The model that is trained, at the weights to go on from.
        clients: Opens others.
        batches: The steps that are left, in order; to be gone through once.
        lives: What lives as long as the session, by name; a loop may keep things there between epochs.
    """

    job: TrainingJob
    number: int
    client: TrainingClient
    clients: Clients
    batches: Iterable[Batch]
    lives: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """What to train."""
        return self.job.recipe

    @property
    def plan(self) -> TrainingPlan:
        """Its steps and epochs."""
        return self.job.plan

    def adam(self, batch: Batch) -> AdamParams:
        """The optimiser's parameters at a step: the recipe's, and the schedule's learning rate."""
        recipe = self.recipe
        return AdamParams(
            learning_rate=learning_rate_at(recipe, self.plan, batch.step),
            beta1=recipe.adam_beta1,
            beta2=recipe.adam_beta2,
            eps=recipe.adam_eps,
            weight_decay=recipe.weight_decay,
            grad_clip_norm=recipe.max_grad_norm,
        )

    def draws(self) -> Iterator[Sequence[Batch]]:
        """The steps by draw, where a method samples: one that receives rows, and those that train on the same samples."""
        draw: list[Batch] = []
        for batch in self.batches:
            if batch.rows and draw:
                yield draw
                draw = []
            draw.append(batch)
        if draw:
            yield draw


def optim_step(epoch: Epoch, batch: Batch) -> "Future[Mapping[str, float]]":
    """Submit the optimiser's step with the gradients so far, at the learning rate of the schedule."""
    return epoch.client.optim_step(epoch.adam(batch))


def step_done(
    batch: Batch,
    gradients: ForwardBackwardResult,
    moved: Mapping[str, float],
    *,
    tokens: int,
    extra: Mapping[str, float] | None = None,
    lines: Sequence[Mapping[str, Any]] = (),
) -> StepDone:
    """A step from what the client answered; losses are normalised already, by the weights that were sent."""
    further = {name: value for name, value in gradients.metrics.items() if name not in ("loss:sum", "simulated")}
    return StepDone(
        batch=batch,
        tokens=tokens,
        loss=gradients.metrics["loss:sum"],
        grad_norm=moved.get("grad_norm", 0.0),
        extra={**further, **(extra or {})},
        lines=lines,
    )
