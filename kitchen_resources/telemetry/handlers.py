"""Console and JSONL handlers."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from kitchen_resources.telemetry.port import METHOD_METRICS, Event

_PROGRESS_EVERY_S = 10.0


class ConsoleHandler:
    """Lines for a person: a progress line every ten seconds of a long epoch, and one for what else happens."""

    def __init__(self, stream: IO[str] | None = None, every_s: float = _PROGRESS_EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._last = time.monotonic()

    def handle(self, event: Event) -> None:
        """See `Handler.handle`."""
        line = self._line(event)
        if line is not None:
            print(line, file=self._stream or sys.stderr, flush=True)

    def close(self) -> None:
        """See `Handler.close`."""

    def _line(self, event: Event) -> str | None:
        values, about = event.measurements, event.metadata
        recipe = about.get("recipe", "")
        if event.name == "training.step":
            if time.monotonic() - self._last < self._every_s:
                return None
            self._last = time.monotonic()
            done, total = about["step"], about["total_steps"]
            left = (total - done) * values["duration_s"]
            return (
                f"{recipe}: epoch {about['epoch']}, step {done}/{total} ({done / total:.0%})  {_learned(values)}  "
                f"lr {values['learning_rate']:.2e}  {values['tokens_per_second']:,.0f} tok/s  about {_span(left)} left"
            )
        if event.name == "training.epoch":
            self._last = time.monotonic()
            return (
                f"{recipe}: epoch {about['epoch']} done, step {about['step']}  {_learned(values)}  "
                f"{values['tokens_per_second']:,.0f} tok/s  {_span(values['duration_s'])}"
            )
        if event.name == "training.checkpoint":
            return f"{recipe}: checkpoint at step {about['step']}  {values['bytes'] / 2**20:,.1f} MiB"
        if event.name in ("training.eval", "eval.complete") and values:
            numbers = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            what = f"epoch {about['epoch']} evaluated" if "epoch" in about else "model evaluated"
            return f"{recipe}: {what}  {numbers}"
        if event.name == "dataset.prepared":
            return (
                f"{recipe}: {values['rows']:,.0f} rows to train on, {values['held_out_rows']:,.0f} held out, "
                f"{values['trained_tokens']:,.0f} tokens learned an epoch"
            )
        if event.name == "model.registered":
            return f"{recipe}: registered {about['name']} version {about['version']}"
        if event.name == "stage.run.exception":
            return f"{recipe}: {about['stage']} failed: {about['error']}"
        return None


class JsonlHandler:
    """One JSON object a line, appended and flushed event by event, so that a killed run loses none.

    A number that isn't finite is null, for JSON has no such number; what JSON doesn't know is written as its text.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def handle(self, event: Event) -> None:
        """See `Handler.handle`."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
            self._end_half_line()
        record = {
            "timestamp": event.time,
            "event": event.name,
            "measurements": {name: _plain(value) for name, value in event.measurements.items()},
            "metadata": {name: _plain(value) for name, value in event.metadata.items()},
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """See `Handler.close`."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _end_half_line(self) -> None:
        """A process killed while writing leaves half a line: end it, so that it spoils no other."""
        assert self._file is not None
        if self._path.stat().st_size:
            with self._path.open("rb") as stream:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    self._file.write("\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The events of a JSONL file; half lines of killed processes are left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if hasattr(value, "tolist"):
        # Numbers and arrays of numpy and torch.
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _learned(values: Mapping[str, Any]) -> str:
    """The loss, and what tells more in some methods: a policy's loss is about 0, however well it does."""
    further = "".join(f"  {name} {values[name]:.4f}" for name in METHOD_METRICS if name in values)
    return f"loss {values['loss']:.4f}{further}"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
