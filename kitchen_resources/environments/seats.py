"""Seats: places for one worker at a time, which is replaced when it was lost."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

from kitchen_resources.environments.serving import Wire


class Worker(Protocol):
    """What answers requests: a process, or this one."""

    @property
    def alive(self) -> bool:
        """Whether it still waits for requests."""
        ...

    def ask(self, request: Wire, parts: int | None) -> list[Wire]:
        """The answers to the parts of a request; fewer, with a failure as the last, when the worker is lost at one."""
        ...

    def interrupt(self) -> None:
        """End it while another thread waits for its answers."""
        ...

    def leave(self) -> None:
        """Tell it to end."""
        ...

    def close(self) -> None:
        """See that it has ended."""
        ...


class Seat:
    """A place for a worker, which is started when it is needed and replaced when it was lost.

    Args:
        hire: Starts a worker.

    Attributes:
        lives: How many workers there were.
    """

    def __init__(self, hire: Callable[[], Worker]) -> None:
        self._hire = hire
        self._worker: Worker | None = None
        self._closed = False
        self.lives = 0

    @property
    def occupied(self) -> bool:
        """Whether there is a worker that waits for requests."""
        return self._worker is not None and self._worker.alive

    def worker(self) -> Worker:
        """The worker; a new one, without any group, where there is none.

        Raises:
            KitchenError: User code can't be imported, or refuses its options.
        """
        if self._closed:
            raise RuntimeError("the environments are closed")
        if self._worker is not None and self._worker.alive:
            return self._worker
        if self._worker is not None:
            self._worker.close()
        self._worker = self._hire()
        self.lives += 1
        return self._worker

    def ask_all(self, op: str, parts: Sequence[Wire]) -> list[Wire]:
        """An answer for every part, each independent of the others: a lost worker costs only the part it was lost at."""
        answers: list[Wire] = []
        while len(answers) < len(parts):
            rest = parts[len(answers) :]
            answers += self.worker().ask({"op": op, "parts": rest}, len(rest))
        return answers

    def stop(self, *, at_once: bool) -> None:
        """Tell the worker to end; at once when a thread may be waiting for it."""
        self._closed = True
        if self._worker is not None:
            self._worker.interrupt() if at_once else self._worker.leave()

    def close(self) -> None:
        """See that the worker has ended."""
        if self._worker is not None:
            self._worker.close()


class Seats:
    """A number of seats, whose workers are at work at once.

    Args:
        hire: Starts a worker.
        count: Number of seats.
    """

    def __init__(self, hire: Callable[[], Worker], count: int) -> None:
        self.all = [Seat(hire) for _ in range(count)]
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="environments")
        self._running: list[Future[None]] = []

    def work(self, tasks: Mapping[Seat, Sequence[Callable[[], None]]]) -> None:
        """Do the tasks of each seat one after the other, and those of all seats at once; of one alone, in this thread."""
        if len(tasks) == 1:
            _in_turn(*tasks.values())
            return
        self._running = [self._threads.submit(_in_turn, todo) for todo in tasks.values()]
        wait(self._running)
        for done in self._running:
            done.result()

    def close(self) -> None:
        """End all workers, at once where a thread still waits for one."""
        waited_for = any(not task.done() for task in self._running)
        for seat in self.all:
            seat.stop(at_once=waited_for)
        self._threads.shutdown(cancel_futures=True)
        for seat in self.all:
            seat.close()


def _in_turn(tasks: Sequence[Callable[[], None]]) -> None:
    for task in tasks:
        task()
