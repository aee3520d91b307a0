"""What a worker process wrote to stderr last: prints of user code, and where it was when it was killed."""

import collections
import itertools
import logging
import re
import threading
from pathlib import Path
from typing import IO

_log = logging.getLogger(__name__)

_KEPT_LINES = 120
_TOLD_LINES = 5
_TOLD_FRAMES = 4
_LONGEST_LINE = 2000
_JOIN_S = 2.0

# As faulthandler writes a stack, the innermost frame first.
_STACK = re.compile(r"(Current thread|Thread|Stack) .*\(most recent call first\):")
_HOST = Path(__file__).with_name("serving.py")
_FRAME = re.compile(r'  File "(.+)", line (\d+) in (.+)')


class LastWords:
    """Reads a worker's stderr in a thread, so that it never waits for a reader, and keeps the last lines.

    Args:
        stream: The end to read from; closed when it ends.
        pid: Of the worker, for the debug log that every line goes to.
    """

    def __init__(self, stream: IO[bytes], pid: int) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._thread = threading.Thread(target=self._read, args=(stream, pid), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the last line. A process that left the worker's group could keep the stream open: 2 s at most."""
        self._thread.join(_JOIN_S)

    def said(self) -> str:
        """The last lines for a message, or nothing."""
        lines = list(self._lines)[-_TOLD_LINES:]
        return "; it last wrote: " + "\n".join(lines) if lines else ""

    def place(self) -> str:
        """The innermost frames of the last stack that was written, for a message, or nothing."""
        stack: list[re.Match[str]] = []
        for line in self._lines:
            if _STACK.match(line):
                stack = []
            elif frame := _FRAME.match(line):
                stack.append(frame)
        called = itertools.takewhile(lambda frame: Path(frame[1]) != _HOST, stack[:_TOLD_FRAMES])
        frames = [f"{Path(frame[1]).name}, line {frame[2]}, in {frame[3]}" for frame in called]
        return "; it was at " + " < ".join(frames) if frames else ""

    def _read(self, stream: IO[bytes], pid: int) -> None:
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                text = line.decode(errors="replace").rstrip()
                self._lines.append(text)
                _log.debug("worker %s: %s", pid, text)
