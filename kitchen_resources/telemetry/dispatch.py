"""Sending events to handlers, none of which can fail or stop a training."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kitchen_resources.telemetry.port import EVENTS, Event, Handler

_log = logging.getLogger("kitchen.telemetry")


class Dispatcher:
    """A `Telemetry` over any number of handlers."""

    def __init__(self, handlers: Sequence[Handler] = ()) -> None:
        self._handlers = list(handlers)
        self._broken: set[int] = set()

    def emit(self, name: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        """See `Telemetry.emit`."""
        if name not in EVENTS:
            raise KeyError(name)
        event = Event(name, time.time(), measurements, metadata)
        for index, handler in enumerate(self._handlers):
            self._guard(index, handler, event)

    def close(self) -> None:
        """See `Telemetry.close`."""
        for index, handler in enumerate(self._handlers):
            self._guard(index, handler, None)

    def _guard(self, index: int, handler: Handler, event: Event | None) -> None:
        try:
            if event is None:
                handler.close()
            else:
                handler.handle(event)
        except Exception as error:  # noqa: BLE001  (whatever a handler does, training goes on)
            if index not in self._broken:
                self._broken.add(index)
                _log.warning(
                    "telemetry handler %s failed on %s, and events may be missing there (this is said once): %r",
                    type(handler).__name__,
                    event.name if event else "close",
                    error,
                )


class NoopTelemetry:
    """A `Telemetry` that sends nothing anywhere."""

    def emit(self, name: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        """See `Telemetry.emit`."""
        if name not in EVENTS:
            raise KeyError(name)

    def close(self) -> None:
        """See `Telemetry.close`."""
