"""The console handler."""

import sys
import time
from collections.abc import Mapping
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
            done = [f"epoch {about['epoch']} done, step {about['step']}", _learned(values)]
            if "tokens_per_second" in values:
                done.append(f"{values['tokens_per_second']:,.0f} tok/s")
            done.append(_span(values["duration_s"]))
            if "cost_usd" in values:
                done.append(f"{values['cost_usd']:,.2f} USD")
            return f"{recipe}: {'  '.join(part for part in done if part)}"
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


def _learned(values: Mapping[str, Any]) -> str:
    """The loss, and what tells more in some methods: a policy's loss is about 0, however well it does."""
    return "  ".join(f"{name} {values[name]:.4f}" for name in ("loss", *METHOD_METRICS) if name in values)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
