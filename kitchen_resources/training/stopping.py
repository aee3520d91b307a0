"""Stopping at a step's end: Terminate, Ctrl-C and SIGTERM ask for it, and what is trained by then isn't lost.

A signal that raised at once would throw away all steps since the last checkpoint. So while an epoch is trained it is
only noted. The step that is under way ends, its state is published where the method can go on from it exactly, and
then the interrupt is raised as it would have been. A second signal, or a step that takes too long, raises at once.

Ctrl-C reaches every process of a terminal's group, and Dagster's own executors pass it on to their children besides: what
comes within a moment of the first is the same request once more.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

GRACE_S = 8.0
"""How long to wait for the end of a step, in seconds."""

_SAME_S = 1.0
"""Within this time of the first, in seconds, a further signal is no second request."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked the training to stop, which is heard while `listening`."""

    def __init__(self) -> None:
        self._asked_by: int | None = None
        self._asked_at = 0.0
        self._takes_too_long = False
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    @property
    def asked(self) -> bool:
        """Whether to stop at the end of this step."""
        return self._asked_by is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals instead of raising for them; one that was noted raises at the end, if nothing else did.

        In a thread other than the main one no signal is heard, and none needs to be.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        # What the process ignores, as one in the background does Ctrl-C, isn't meant for it.
        self._before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._heard)
        try:
            yield
            if self.asked:
                self.stop()
        finally:
            self._restore()

    def take_time(self) -> None:
        """Wait for what is being published, however long that takes; a second signal still raises at once."""
        if self._timer is not None:
            self._timer.cancel()

    def stop(self) -> NoReturn:
        """Raise the interrupt that was asked for."""
        asked_by = self._asked_by if self._asked_by is not None else signal.SIGINT
        before = self._before.get(asked_by)
        self._restore()
        if callable(before):
            before(asked_by, None)
        # Without a handler of its own SIGTERM would end the process here, and nothing would be cleared up.
        raise KeyboardInterrupt

    def _heard(self, number: int, frame: FrameType | None) -> None:
        # Nothing is said or logged here: what the signal interrupts may hold the log's lock.
        if self.asked:
            if time.monotonic() < self._asked_at + _SAME_S and not self._takes_too_long:
                return
            self.stop()
        self._asked_by, self._asked_at = number, time.monotonic()
        self._timer = threading.Timer(GRACE_S, self._interrupt, (number,))
        self._timer.daemon = True
        self._timer.start()

    def _interrupt(self, number: int) -> None:
        """End the step under way, from another thread."""
        thread = threading.main_thread().ident
        assert thread is not None
        self._takes_too_long = True
        signal.pthread_kill(thread, number)

    def _restore(self) -> None:
        self.take_time()
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
