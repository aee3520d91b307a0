"""The exactly-once ledger: which rows each optimiser step received, compared with the plan.

A session writes down what a batch brought into the step. Here it is held against the plan, which is a pure function of
recipe and prepared data: at each step and each publication, so that nothing wrong is stored; and over all epochs when
the run is finished, from the records alone.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from kitchen_resources.checkpoints.head import CheckpointEntry, Head
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.datasets.port import LocalDataset
from kitchen_resources.errors import CheckpointError, LedgerError
from kitchen_resources.formulas.batches import RowOrder
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.plan import TrainingPlan, planned_rows

Steps = Sequence[Sequence[int]]
"""Row ids of each optimiser step, in order."""

_SHOWN = 6
"""Faults of an epoch that are told one by one."""


@dataclass(frozen=True)
class Fault:
    """A row that an epoch didn't receive as planned.

    Attributes:
        row: Its id.
        kind: `missing`: less often than planned. `repeated`: more often. `unplanned`: not in the plan of the epoch.
            `moved`: as often as planned, at another step.
        planned: Global steps that it was planned at.
        received: Global steps that received it.
    """

    row: int
    kind: Literal["missing", "repeated", "unplanned", "moved"]
    planned: tuple[int, ...]
    received: tuple[int, ...]

    @property
    def first_step(self) -> int:
        """The first step that it concerns."""
        differing = (
            min(pair)
            for pair in zip((*self.planned, _NEVER), (*self.received, _NEVER), strict=False)
            if pair[0] != pair[1]
        )
        return next(differing, _NEVER)

    def __str__(self) -> str:
        """As one clause."""
        planned = f"planned at {_steps(self.planned)}"
        if self.kind == "missing":
            got = f"received only at {_steps(self.received)}" if self.received else "not received"
            return f"row {self.row} was {got} ({planned})"
        if self.kind == "unplanned":
            return f"row {self.row} was received at {_steps(self.received)}, and isn't in the plan"
        if self.kind == "repeated":
            return f"row {self.row} was received {len(self.received)} times, at {_steps(self.received)} ({planned})"
        return f"row {self.row} was received at {_steps(self.received)} ({planned})"


_NEVER = 2**62


def _steps(steps: Sequence[int]) -> str:
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def compare(planned: Steps, received: Steps, *, first_step: int = 1, complete: bool = True) -> list[Fault]:
    """What steps received otherwise than planned; nothing when each received the planned rows, in whatever order.

    Args:
        planned: All steps of the epoch.
        received: Its steps so far.
        first_step: Global step of the epoch's first one.
        complete: Whether the epoch is over; else rows of steps that are still to come aren't missed.

    Returns:
        Rows that are missing, repeated or unplanned, by step; then those that have moved.
    """
    reached = len(planned) if complete else len(received)
    pairs = zip_longest(planned[:reached], received, fillvalue=())
    # Most often all is well: of a million rows only those are counted whose step is another than planned.
    suspects = {row for wanted, got in pairs if sorted(wanted) != sorted(got) for row in (*wanted, *got)}
    wanted_at, received_at = _places(planned, suspects, first_step), _places(received, suspects, first_step)
    faults = []
    for row in suspects:
        wanted, got = wanted_at.get(row, ()), received_at.get(row, ())
        due = tuple(step for step in wanted if step < first_step + reached)
        if got != due:
            faults.append(Fault(row, _kind(wanted, due, got), due if len(got) < len(due) else wanted, got))
    return sorted(faults, key=lambda fault: (fault.kind == "moved", fault.first_step, fault.row))


def _places(steps: Steps, rows: Collection[int], first_step: int) -> Mapping[int, tuple[int, ...]]:
    """The global steps of some rows, in order."""
    places: defaultdict[int, tuple[int, ...]] = defaultdict(tuple)
    if rows:
        for step, received in enumerate(steps, start=first_step):
            for row in received:
                if row in rows:
                    places[row] += (step,)
    return places


def _kind(
    wanted: Sequence[int], due: Sequence[int], got: Sequence[int]
) -> Literal["missing", "repeated", "unplanned", "moved"]:
    if not wanted:
        return "unplanned"
    if len(got) > len(wanted):
        return "repeated"
    return "missing" if len(got) < len(due) else "moved"


@dataclass(frozen=True)
class EpochRows:
    """What an epoch received, held against its plan.

    Attributes:
        epoch: From 1.
        steps: Optimiser steps on record.
        planned_steps: Those of the plan.
        rows: Rows received.
        partial: Whether the run ends inside it, so that each row comes up at most once.
        faults: See `compare`.
    """

    epoch: int
    steps: int
    planned_steps: int
    rows: int
    partial: bool
    faults: tuple[Fault, ...]

    @property
    def passed(self) -> bool:
        """Whether every step received what was planned."""
        return not self.faults and self.steps == self.planned_steps

    def __str__(self) -> str:
        """What was found, as one line."""
        if self.passed:
            said = f"epoch {self.epoch}: {_counted(self.rows, 'row')} in {_counted(self.steps, 'step')}"
            return f"{said}, partial" if self.partial else said
        clauses = []
        if self.steps != self.planned_steps:
            clauses.append(f"{self.steps} steps are on record, and {self.planned_steps} were planned")
        clauses.extend(_clauses(self.faults))
        return f"epoch {self.epoch}: {'; '.join(clauses)}"


def _clauses(faults: Sequence[Fault]) -> list[str]:
    told = list(map(str, faults[:_SHOWN]))
    rest = faults[_SHOWN:]
    if rest:
        first = min(fault.first_step for fault in rest)
        told.append(f"{len(rest)} more rows were not received as planned, from step {first} on")
    return told


@dataclass(frozen=True)
class LedgerReport:
    """The ledger of a run, held against its plan.

    Attributes:
        epochs: The epochs that this run has completed, in order.
        unknown: Epochs whose record is gone with their damaged checkpoint.
        is_told: Whether the backend tells what its steps receive.
    """

    epochs: tuple[EpochRows, ...]
    unknown: tuple[int, ...] = ()
    is_told: bool = True

    @property
    def passed(self) -> bool:
        """Whether every epoch on record received what was planned."""
        return all(epoch.passed for epoch in self.epochs)

    def __str__(self) -> str:
        """What was found, in a few lines."""
        if not self.is_told:
            return "not known: the backend doesn't tell which rows its steps received"
        wrong = [str(epoch) for epoch in self.epochs if not epoch.passed]
        if wrong:
            return "\n".join(wrong)
        rows, steps = sum(epoch.rows for epoch in self.epochs), sum(epoch.steps for epoch in self.epochs)
        counted = ", ".join(_counted(*each) for each in ((len(self.epochs), "epoch"), (steps, "step"), (rows, "row")))
        said = f"{counted}: each received exactly once, at the step that it was planned for"
        said += "".join(f"; epoch {epoch.epoch} is partial" for epoch in self.epochs if epoch.partial)
        return said + "".join(f"; the record of epoch {epoch} is gone with its checkpoint" for epoch in self.unknown)


class RowPlan:
    """The rows that each step of a run is to receive, by their ids.

    Args:
        recipe: What is trained.
        plan: Its steps.
        data: The prepared rows.
        order: How the backend permutes them.
    """

    def __init__(self, recipe: Recipe, plan: TrainingPlan, data: LocalDataset, order: RowOrder = "torch") -> None:
        self.plan = plan
        self._recipe = recipe
        self._data = data
        self._order: RowOrder = order
        self._read: list[Any] = []

    def of_epoch(self, epoch: int) -> list[list[int]]:
        """The steps of an epoch (from 1), up to the end of the run; of a pack the ids of its rows."""
        steps = planned_rows(self._recipe, self.plan, epoch, self._order)
        if self._data.packed:
            packs = self._column("row_ids")
            return [[row for index in step for row in packs[index]] for step in steps]
        ids = self._column("row_id")
        return [[ids[index] for index in step] for step in steps]

    def _column(self, name: str) -> list[Any]:
        if not self._read:
            import pyarrow.parquet

            self._read = pyarrow.parquet.read_table(self._data.path, columns=[name])[name].to_pylist()
        return self._read


def require_planned(planned: Steps, received: Steps, *, epoch: int, first_step: int, complete: bool = False) -> None:
    """Stop an epoch that receives other rows than planned, before any of it is stored.

    Args:
        planned: All steps of the epoch.
        received: Its steps so far.
        epoch: From 1.
        first_step: Global step of its first one.
        complete: Whether it is over.

    Raises:
        LedgerError: With the rows and their steps.
    """
    clauses = _clauses(compare(planned, received, first_step=first_step, complete=complete))
    if len(received) > len(planned) or (complete and len(received) < len(planned)):
        clauses.append(f"{len(received)} steps were done, and {len(planned)} were planned")
    if clauses:
        raise LedgerError(
            "; ".join(clauses),
            where=f"epoch {epoch}, step {first_step + len(received) - 1}",
            fix="these steps are not published, and running again goes on from those that are; where it comes again, "
            "look at what changes the order of rows: a sampler, a callback, another version of the trainer",
        )


def read_report(store: CheckpointStore, head: Head, rows: RowPlan, first_epoch: int) -> LedgerReport:
    """Hold the records of a run against its plan. Reads no payload, so that pruned checkpoints count as others.

    Args:
        store: Where the records are.
        head: The run's head.
        rows: What was planned.
        first_epoch: The run's first epoch; later than 1 where it continues another one.

    Raises:
        CheckpointError: The record of a checkpoint that exists is missing or damaged.
    """
    epochs, unknown = [], []
    for epoch in range(first_epoch, head.last_epoch() + 1):
        received = _received(store, head, epoch)
        if received is None:
            unknown.append(epoch)
            continue
        planned = rows.of_epoch(epoch)
        first_step = (epoch - 1) * rows.plan.steps_per_epoch + 1
        epochs.append(
            EpochRows(
                epoch=epoch,
                steps=len(received),
                planned_steps=len(planned),
                rows=sum(map(len, received)),
                partial=len(planned) < rows.plan.steps_per_epoch,
                faults=tuple(compare(planned, received, first_step=first_step)),
            )
        )
    return LedgerReport(tuple(epochs), tuple(unknown))


def _received(store: CheckpointStore, head: Head, epoch: int) -> list[list[int]] | None:
    """The ledger of a completed epoch; None when its checkpoint was damaged and its record with it."""

    def is_end(entry: CheckpointEntry) -> bool:
        return entry.epoch == epoch and entry.epoch_complete

    for entry in reversed(head.entries()):
        if is_end(entry):
            return store.ledger(store.manifest(entry))
    # Later epochs were made from it before it was found damaged; its record may well be whole.
    for entry in filter(is_end, reversed(head.checkpoints)):
        try:
            return store.ledger(store.manifest(entry))
        except CheckpointError:
            continue
    return None
