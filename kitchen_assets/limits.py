"""A limit of time for a stage."""

import ctypes
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kitchen_resources.errors import StageTimeout


@contextmanager
def time_limit(seconds: float | None, stage: str) -> Iterator[None]:
    """Break off what takes longer.

    In the process's main thread by a signal, which also ends a call that waits; in another thread between two lines of
    Python, so that a call into a library ends first.

    Args:
        seconds: The limit; None for none.
        stage: Name of the stage, for the message.

    Raises:
        StageTimeout: It took longer.
    """
    if seconds is None:
        yield
        return
    error = StageTimeout(f"took longer than {seconds:g} s", where=f"stage {stage}", fix="raise its timeout_s")
    limiting = _by_signal if threading.current_thread() is threading.main_thread() else _by_thread
    with limiting(seconds, error):
        yield


@contextmanager
def _by_signal(seconds: float, error: StageTimeout) -> Iterator[None]:
    def end(*_: Any) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, end)
    began = time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            # A limit around this one goes on.
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - began)))


@contextmanager
def _by_thread(seconds: float, error: StageTimeout) -> Iterator[None]:
    worker = threading.get_ident()
    lock, over = threading.Lock(), False

    def end() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker), ctypes.py_object(_Ended))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except _Ended:
        raise error from None
    finally:
        with lock:
            over = True
        timer.cancel()


class _Ended(BaseException):
    """Raised in a thread from outside; a class, because only a class can be."""
