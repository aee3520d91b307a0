"""Servers that a page tells to start: in a process group of their own, and stopped as by Ctrl-C."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_STOP_S = 60


@contextmanager
def started(command: list[str], folder: Path, environment: Mapping[str, str]) -> "Iterator[subprocess.Popen[bytes]]":
    """A server, gone afterwards with all its processes."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_default_signals,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _default_signals() -> None:
    """A background job may have been started with Ctrl-C ignored, and would hand that on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
