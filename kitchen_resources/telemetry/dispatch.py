"""Sending events to handlers, none of which can fail or stop a training."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kitchen_resources.telemetry.background import Background
from kitchen_resources.telemetry.choosing import Choice
from kitchen_resources.telemetry.port import EVENTS, Event, Handler

_log = logging.getLogger("kitchen.telemetry")


@dataclass(frozen=True)
class Sink:
    """A handler, and which events it gets.

    Attributes:
        handler: The handler.
        choice: Its events; None for all.
        keeps: Whether it is somebody else's, and stays open when the run is over.
    """

    handler: Handler
    choice: Choice | None = None
    keeps: bool = False


class Dispatcher:
    """A `Telemetry` over any number of handlers.

    Args:
        handlers: Handlers that get every event.
        sinks: Others.
    """

    def __init__(self, handlers: Sequence[Handler] = (), sinks: Sequence[Sink] = ()) -> None:
        self._sinks = [*(Sink(handler) for handler in handlers), *sinks]
        self._broken: set[int] = set()

    def emit(self, name: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        """See `Telemetry.emit`."""
        if name not in EVENTS:
            raise KeyError(name)
        event = Event(name, time.time(), measurements, metadata)
        for index, sink in enumerate(self._sinks):
            if sink.choice is None or sink.choice.takes(event):
                self._guard(index, sink.handler, event)

    def close(self) -> None:
        """See `Telemetry.close`."""
        for index, sink in enumerate(self._sinks):
            if not sink.keeps:
                self._guard(index, sink.handler, None)

    def _guard(self, index: int, handler: Handler, event: Event | None) -> None:
        try:
            if event is None:
                handler.close()
            else:
                handler.handle(event)
        except Exception as error:  # noqa: BLE001  (whatever a handler does, training goes on)
            if index not in self._broken:
                self._broken.add(index)
                named = handler.handler if isinstance(handler, Background) else handler
                _log.warning(
                    "telemetry handler %s failed on %s, and events may be missing there (this is said once): %r",
                    type(named).__name__,
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
