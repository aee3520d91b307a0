"""The `telemetry` resource: where events are sent."""

from pathlib import Path
from typing import Optional

import dagster as dg
from pydantic import Field, PrivateAttr

from kitchen_resources.telemetry.dispatch import Dispatcher
from kitchen_resources.telemetry.handlers import ConsoleHandler, JsonlHandler
from kitchen_resources.telemetry.port import Handler, Telemetry


class TelemetryResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where events are sent. A handler that fails never fails or slows a training."""

    console: bool = Field(default=True, description="Progress lines on standard error.")
    jsonl: Optional[str] = Field(default=None, description="File to append every event to, one JSON object a line.")

    _dispatcher: Optional[Dispatcher] = PrivateAttr(default=None)

    def adapter(self) -> Telemetry:
        """The dispatcher of all handlers, made when it is first used."""
        if self._dispatcher is None:
            handlers: list[Handler] = [ConsoleHandler()] if self.console else []
            if self.jsonl is not None:
                handlers.append(JsonlHandler(Path(self.jsonl).expanduser()))
            self._dispatcher = Dispatcher(handlers)
        return self._dispatcher

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Write out what is held back."""
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._dispatcher = None
