"""The JSONL handler: every event a line of a file, which is rotated by size."""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kitchen_resources.telemetry.port import Event

_MIB = 2**20


class JsonlHandler:
    """One JSON object a line, each written by one append, so that a killed run loses none and processes can share a file.

    A number that isn't finite is null, for JSON has no such number; what JSON doesn't know is written as its text.

    Args:
        path: The file; its folder is made. What is full is renamed to `path.1`, what was there before to `path.2`, …
        max_mib: Size from which on a file is full, in MiB; None for never.
        keep: Full files to keep.
    """

    def __init__(self, path: Path, *, max_mib: float | None = None, keep: int = 5) -> None:
        self._path = path
        self._max_bytes = None if max_mib is None else round(max_mib * _MIB)
        self._keep = keep
        self._file: int | None = None

    def handle(self, event: Event) -> None:
        """See `Handler.handle`."""
        record = {
            "timestamp": event.time,
            "event": event.name,
            "measurements": {name: plain(value) for name, value in event.measurements.items()},
            "metadata": {name: plain(value) for name, value in event.metadata.items()},
        }
        line = json.dumps(record).encode() + b"\n"
        file = self._current(len(line))
        # One append: of a process that is killed there is a whole line, or none, or half of one at the file's end.
        written = os.write(file, line)
        while written < len(line):
            written += os.write(file, line[written:])

    def close(self) -> None:
        """See `Handler.close`."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                os.fsync(file)
            finally:
                os.close(file)

    def _current(self, more: int) -> int:
        """The file to append to, after another process may have renamed it, and after it is full."""
        if self._file is None or not self._is_current(self._file):
            self.close()
            self._file = self._open()
        if self._max_bytes is not None and os.fstat(self._file).st_size + more > self._max_bytes:
            with self._rotating():
                if self._is_current(self._file) and os.fstat(self._file).st_size:
                    self._rotate()
            self.close()
            self._file = self._open()
        return self._file

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            # A process killed while writing has left half a line: end it, so that it spoils no other.
            os.write(file, b"\n")
        return file

    def _rotate(self) -> None:
        for number in range(self._keep, 0, -1):
            older = self._full(number)
            newer = self._full(number - 1) if number > 1 else self._path
            if newer.exists():
                newer.replace(older)
        if self._keep == 0:
            self._path.unlink()

    def _full(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    @contextmanager
    def _rotating(self) -> Iterator[None]:
        """Alone among processes."""
        lock = os.open(self._path.with_name(f".{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The events of a JSONL file; half lines of killed processes are left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if hasattr(value, "tolist"):
        # Numbers and arrays of numpy and torch.
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
