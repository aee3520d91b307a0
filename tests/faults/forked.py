"""Forked children of a warmed process: started in milliseconds, heard through a pipe, and killed at will."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Say = Callable[[str], None]


class Child:
    """A child process and the lines that it says."""

    def __init__(self, pid: int, reader: int) -> None:
        self.pid = pid
        self._lines = os.fdopen(reader, encoding="utf-8")
        self._status: int | None = None

    def line(self) -> str:
        """The next line; empty when the child has ended."""
        return self._lines.readline().rstrip("\n")

    def rest(self) -> list[str]:
        """All further lines, until the child has ended."""
        return self._lines.read().splitlines()

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit status; minus the signal's number when a signal ended it."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def close(self) -> None:
        if self._status is None:
            self.kill()
            self.wait()
        self._lines.close()


@contextmanager
def forked(work: Callable[[Say], None]) -> Iterator[Child]:
    """A child that does `work`, which is given a function to say a line; killed at the end if it still lives."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, of which those of pyarrow and tokenizers mind the fork themselves.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _work_and_exit(work, writer)
    os.close(writer)
    child = Child(pid, reader)
    try:
        yield child
    finally:
        child.close()


def _work_and_exit(work: Callable[[Say], None], writer: int) -> None:
    """Never returns into the parent's test."""
    status = 1

    def say(text: str) -> None:
        os.write(writer, f"{text}\n".encode())

    try:
        # A kill of the process is what is tried here, not a power cut, and syncing takes most of the time.
        os.fsync = lambda fd: None
        work(say)
        status = 0
    except BaseException:  # noqa: BLE001  (said to the parent, which expects none)
        say("failed: " + traceback.format_exc().replace("\n", " | "))
    finally:
        os._exit(status)


class LineCounter:
    """Counts the lines of code that this thread runs below some folders, and kills the process at the n-th.

    Args:
        folders: What the paths of counted files start with.
        deadly: The line at which to die, from 1; 0 for none.
    """

    def __init__(self, folders: tuple[str, ...], deadly: int = 0) -> None:
        self.count = 0
        self._folders = folders
        self._deadly = deadly

    def start(self) -> None:
        sys.settrace(self._call)

    def stop(self) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self._folders) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self._deadly:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._line
