"""A worker process as seen from the one that starts it: requests, answers in time, and its end."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import IO, Any, cast

from kitchen_resources.environments.last_words import LastWords
from kitchen_resources.environments.serving import Wire, refused
from kitchen_resources.errors import ConfigError

START_LIMIT_S = 120.0
"""Seconds for a worker to import user code and make its builder, which may read a large file."""

_LEAVE_S = 2.0
_STACK_S = 1.0


class _Lost(Exception):
    """The worker is of no more use: why, and as which kind of failure."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class WorkerProcess:
    """One running worker.

    Args:
        setup: What `Host` takes.
        time_limit_s: Seconds for each part of a request.

    Raises:
        KitchenError: User code can't be imported, or refuses its options.
    """

    def __init__(self, setup: Wire, time_limit_s: float) -> None:
        self._time_limit_s = time_limit_s
        self._popen = subprocess.Popen(
            # -P: the current folder shadows no package. -u: what is printed before a crash isn't lost.
            [sys.executable, "-P", "-u", "-m", "kitchen_resources.environments.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=_surroundings(),
            # A group of its own: what user code starts ends with it, and Ctrl-C is ours to handle.
            start_new_session=True,
        )
        self._in, self._out = cast(IO[bytes], self._popen.stdin), cast(IO[bytes], self._popen.stdout)
        os.set_blocking(self._in.fileno(), False)
        self._received = b""
        self._idle = True
        self._last_words = LastWords(cast(IO[bytes], self._popen.stderr), self._popen.pid)
        self._start(setup)

    @property
    def alive(self) -> bool:
        """Whether it still waits for requests."""
        return self._idle and not (self._in.closed or _ready(self._out, select.POLLIN, 0.0))

    def ask(self, request: Wire, parts: int | None) -> list[Wire]:
        """Send a request, and wait for the answers to its parts.

        Args:
            request: What `Host.answers` takes.
            parts: How many answers there are; None for as many as are a problem, and the one behind them.

        Returns:
            The answers in order. When the worker hangs or dies at one, that one is the last: a failure of kind
            `timeout` or `crashed`, and the process is gone.
        """
        answers: list[Wire] = []
        # What ends this in the middle, such as Ctrl-C, leaves answers behind that nobody asks for.
        self._idle = False
        try:
            self._send(request, self._time_limit_s)
            while parts is None or len(answers) < parts:
                answers.append(self._receive(self._time_limit_s))
                if parts is None and "problem" not in answers[-1]:
                    break
        except _Lost as lost:
            answers.append({"failure": {"kind": lost.kind, "message": str(lost)}})
        self._idle = True
        return answers

    def leave(self) -> None:
        """Tell it to end, without waiting for that."""
        self._in.close()

    def interrupt(self) -> None:
        """Kill it while another thread waits for its answers; that thread sees a crash."""
        # Not reaped before the signal: the number of a reaped process may be another one's.
        if self._popen.returncode is None:
            # On macOS, a group whose only process has ended can't be signalled.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, and everything it started; it has 2 s to do so itself."""
        self.leave()
        if not self._idle:
            self.interrupt()
        if not self._out.closed:
            _ready(self._out, 0, _LEAVE_S)
        self._kill()

    def _start(self, setup: Wire) -> None:
        limits = {"start_limit_s": START_LIMIT_S, "time_limit_s": self._time_limit_s}
        try:
            self._send({**setup, **limits}, START_LIMIT_S)
            answer = self._receive(START_LIMIT_S)
        except _Lost as lost:
            raise ConfigError(
                f"its worker process didn't start: {lost}",
                where=f"environment {setup['name']}",
                fix=f"see what this does: python -c 'import {setup['environment'].partition(':')[0]}'",
            ) from None
        if "refused" in answer:
            self.close()
            raise refused(answer, where=f"environment {setup['name']}")

    def _send(self, message: Wire, limit_s: float) -> None:
        data = memoryview(json.dumps(message, allow_nan=False).encode() + b"\n")
        deadline = time.monotonic() + limit_s
        while data:
            if not _ready(self._in, select.POLLOUT, deadline - time.monotonic()):
                raise self._timed_out(limit_s)
            try:
                data = data[os.write(self._in.fileno(), data) :]
            except BrokenPipeError:
                raise self._crashed() from None

    def _receive(self, limit_s: float) -> Wire:
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._received:
            if not _ready(self._out, select.POLLIN, deadline - time.monotonic()):
                raise self._timed_out(limit_s)
            chunk = os.read(self._out.fileno(), 1 << 16)
            if not chunk:
                raise self._crashed()
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)  # type: ignore[no-any-return]

    def _timed_out(self, limit_s: float) -> _Lost:
        # Answered with the stack of user code, by a handler that needs no interpreter, and by the end of the worker.
        os.kill(self._popen.pid, signal.SIGUSR1)
        _ready(self._out, 0, _STACK_S)
        self._kill()
        return _Lost("timeout", f"no answer within {limit_s:g} s{self._last_words.place()}")

    def _crashed(self) -> _Lost:
        self._kill()
        code = self._popen.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return _Lost("crashed", f"its process {how}{self._last_words.said()}")

    def _kill(self) -> None:
        self.leave()
        self.interrupt()
        self._popen.wait()
        self._out.close()
        self._last_words.finish()


def _ready(stream: IO[bytes], event: int, seconds: float) -> bool:
    """Whether the event, or the end of the stream, is there within a time."""
    poll = select.poll()
    poll.register(stream.fileno(), event)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _surroundings() -> dict[str, str]:
    """Environment variables of a worker."""
    changes: dict[str, Any] = {
        # What can be imported here can be imported there.
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path),
        # The order of a set of texts is part of what some environments ask; every worker must see the same.
        "PYTHONHASHSEED": "0",
        # Workers run side by side, and each would start a thread a core.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    return {**os.environ, **changes}
