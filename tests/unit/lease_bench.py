"""What lease tests work with: a clock that only sleeping moves, and the head as others would write it."""

import threading
from collections.abc import Callable
from typing import Any

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import Head, Holder, RunEnd, decode_head, encode_head
from tests.unit.checkpoint_drafts import KEY

END = RunEnd("completed", epoch=1, step=1)


class Clock:
    """A monotonic clock that only sleeping moves, and what is done at each sleep."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []
        self.at_sleep: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        self.at_sleep()


def stored(blobs: BlobStore) -> Head:
    found = blobs.get(KEY)
    assert found is not None
    return decode_head(found.data, KEY)


def write(blobs: BlobStore, head: Head) -> None:
    found = blobs.get(KEY)
    assert blobs.compare_and_swap(KEY, found.version if found else None, encode_head(head)) is not None


def foreign(**fields: Any) -> Holder:
    values = {"id": "theirs", "host": "other/1", "boot": "b/n", "pid": 1, "started": 1.0, "run": "run-9"}
    return Holder(**{**values, **fields})


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another thread; it is the test's own time limit that ends a wait in vain."""
    tick = threading.Event()
    for _ in range(2000):
        if condition():
            return
        tick.wait(0.005)
    raise AssertionError("it did not happen")
