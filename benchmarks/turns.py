"""Two processes that work in turns, a training step each, so that what slows the machine down slows both alike.

Of the standard library alone: the plain script uses it too, and imports nothing of the kitchen.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepTime:
    """One optimiser step with everything that is done from one step's end to the next.

    Attributes:
        epoch: From 1.
        started: Moment in seconds; after the wait for the turn.
        ended: Moment in seconds.
        cpu: CPU seconds of all threads of the process in between.
    """

    epoch: int
    started: float
    ended: float
    cpu: float

    @property
    def seconds(self) -> float:
        """By the clock on the wall."""
        return self.ended - self.started


class Turns:
    """This process's side of the game. Told of each step's end, it lets the other process do its step.

    The last step of an epoch and the first one of the next are one turn, with all that lies between them.

    Args:
        receive: Descriptor that the other side sends to.
        send: Descriptor that the other side receives from.
        first: Whether this side begins.
        steps_per_epoch: Steps of an epoch.
    """

    def __init__(self, *, receive: int, send: int, first: bool, steps_per_epoch: int) -> None:
        self._receive = receive
        self._send = send
        self._first = first
        self._steps_per_epoch = steps_per_epoch
        self._started = self._cpu = 0.0
        self.steps: list[StepTime] = []

    def begin(self) -> None:
        """Wait until both sides are ready, and it is this side's turn."""
        os.write(self._send, b"r")
        self._wait()
        if not self._first:
            self._wait()
        self._mark()

    def step_ended(self) -> None:
        """Note the step; hand over and wait, unless an epoch ends here."""
        epoch, last = 1 + len(self.steps) // self._steps_per_epoch, (len(self.steps) + 1) % self._steps_per_epoch == 0
        cpu = time.process_time() - self._cpu
        self.steps.append(StepTime(epoch, self._started, time.perf_counter(), cpu))
        if not last:
            os.write(self._send, b"t")
            self._wait()
        self._mark()

    def end(self) -> None:
        """All is done: let the other side do its last turn."""
        if self._first:
            os.write(self._send, b"t")

    def _mark(self) -> None:
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def _wait(self) -> None:
        if not os.read(self._receive, 1):
            raise RuntimeError("the other side is gone")


def turns_of(given: dict[str, Any]) -> Turns:
    """This side of the game, of the arguments that the process was started with."""
    return Turns(
        receive=given["receive"], send=given["send"], first=given["first"], steps_per_epoch=given["steps_per_epoch"]
    )


def write_result(path: str, turns: Turns, **more: Any) -> None:
    """Hand over what was measured."""
    steps = [[step.epoch, step.started, step.ended, step.cpu] for step in turns.steps]
    Path(path).write_text(json.dumps({"steps": steps, **more}), encoding="utf-8")
