"""All orders in which the store verbs of several actors can be done, each tried once.

An actor is a function that works with a blob store. It runs in a thread of its own and stops before every verb, until
it is its turn; so that what happens depends on the order alone. Orders that have led to the same point, the same
objects and the same answers to everyone, are followed once. A point is reached by doing everything again from the start.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kitchen_resources.blobs.memory import MemoryBlobs
from tests.faulty_blobs import VERBS, WRITES

Act = Callable[["Turns"], Any]
"""What an actor does, with its own view of the store; the result is what it was told."""


class _Given(BaseException):
    """Ends an actor whose point isn't followed further."""


class Turns:
    """A store as one actor sees it: before each verb it waits for its turn.

    Args:
        inner: The store of all.
        name: The actor.
        relevant: Whether others may change what a verb on this key reads; else it takes no turn.
    """

    def __init__(self, inner: MemoryBlobs, name: str, relevant: Callable[[str], bool]) -> None:
        self.inner = inner
        self.name = name
        self.log: list[Any] = []
        self.waits = False
        self.done = False
        self.result: Any = None
        self._relevant = relevant
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._ended = False

    def start(self, act: Act) -> None:
        """Let the actor run to its first verb."""
        self._thread = threading.Thread(target=self._run, args=(act,), daemon=True)
        self._thread.start()
        self._stopped.acquire()

    def step(self) -> None:
        """Let the actor do one verb, and run to the next."""
        self._go.release()
        self._stopped.acquire()

    def end(self) -> None:
        """End the actor where it is."""
        self._ended = True
        self._go.release()
        self._thread.join()

    def pause(self) -> None:
        """Wait until somebody else has changed something."""
        self.waits = True
        self._turn()

    def _run(self, act: Act) -> None:
        local.actor = self
        try:
            self.result = act(self)
        except _Given:
            pass
        except Exception as error:  # noqa: BLE001  # Told to the test, whatever it is
            self.result = error
        self.done = True
        self._stopped.release()

    def _turn(self) -> None:
        self._stopped.release()
        self._go.acquire()
        if self._ended:
            raise _Given

    def list(self, prefix: str) -> Iterator[str]:
        return iter([key for key, _ in self.list_sizes(prefix)])

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        def listed() -> list[tuple[str, int]]:
            return list(self.inner.list_sizes(prefix))

        return iter(self._do("list", prefix, listed))

    def __getattr__(self, verb: str) -> Any:
        if verb not in VERBS:
            return getattr(self.inner, verb)

        def call(key: str, *args: Any) -> Any:
            return self._do(verb, key, lambda: getattr(self.inner, verb)(key, *args))

        return call

    def _do(self, verb: str, key: str, work: Callable[[], Any]) -> Any:
        if not self._relevant(key):
            return work()
        self._turn()
        found = work()
        self.log.append((verb, key, repr(found)))
        return found


local = threading.local()
"""`local.actor`: the actor whose thread this is."""


@dataclass
class Found:
    """What the search came by.

    Attributes:
        points: Different points reached.
        ends: Points at which all actors were done.
        failures: Of those, what `check` said, with the order.
    """

    points: int = 0
    ends: int = 0
    failures: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)


def all_orders(
    world: Callable[[], MemoryBlobs],
    actors: Mapping[str, Act],
    check: Callable[[MemoryBlobs, Mapping[str, Any]], str | None],
    relevant: Callable[[str], bool],
) -> Found:
    """Try all orders.

    Args:
        world: Makes the store as it is at the start, each time the same.
        actors: What each does; deterministic but for what the store answers.
        check: Says what is wrong at the end, given the store and what each actor was told; None when nothing is.
        relevant: See `Turns`.
    """
    found = Found()
    seen: set[Any] = set()
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        order = waiting.pop()
        blobs, turns = _replay(world, actors, order, relevant)
        while (point := _point(blobs, turns)) not in seen:
            seen.add(point)
            runnable = [turn.name for turn in turns.values() if not turn.done and not turn.waits]
            if not runnable:
                found.ends += 1
                is_over = all(turn.done for turn in turns.values())
                results = {name: turn.result for name, turn in turns.items()}
                said = check(blobs, results) if is_over else "somebody waits for ever"
                if said is not None:
                    found.failures.append((said, order))
                break
            # One way on is gone at once; the others from the start.
            waiting += [(*order, name) for name in runnable[1:]]
            order = (*order, runnable[0])
            _step(turns, runnable[0])
        for turn in turns.values():
            if not turn.done:
                turn.end()
    found.points = len(seen)
    return found


def _replay(
    world: Callable[[], MemoryBlobs],
    actors: Mapping[str, Act],
    order: Sequence[str],
    relevant: Callable[[str], bool],
) -> tuple[MemoryBlobs, dict[str, Turns]]:
    blobs = world()
    turns = {name: Turns(blobs, name, relevant) for name in actors}
    for name, act in actors.items():
        turns[name].start(act)
    for name in order:
        _step(turns, name)
    return blobs, turns


def _step(turns: Mapping[str, Turns], name: str) -> None:
    before = len(turns[name].log)
    turns[name].step()
    if any(verb in WRITES for verb, _, _ in turns[name].log[before:]):
        for turn in turns.values():
            turn.waits = False


def _point(blobs: MemoryBlobs, turns: Mapping[str, Turns]) -> Any:
    objects = tuple(sorted(blobs._objects.items()))
    return objects, tuple((tuple(turn.log), turn.waits, turn.done) for turn in turns.values())
