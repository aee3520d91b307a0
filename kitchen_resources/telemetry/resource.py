"""The `telemetry` resource: where events are sent."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import List, Optional

import dagster as dg
from pydantic import Field, PrivateAttr

from kitchen_resources.endpoints import check_endpoint
from kitchen_resources.errors import ConfigError
from kitchen_resources.telemetry.attached import attached_handlers
from kitchen_resources.telemetry.background import Background
from kitchen_resources.telemetry.choosing import Choice
from kitchen_resources.telemetry.console import ConsoleHandler
from kitchen_resources.telemetry.dispatch import Dispatcher, Sink
from kitchen_resources.telemetry.jsonl import JsonlHandler
from kitchen_resources.telemetry.port import Telemetry

METRICS_HOST = "KITCHEN_METRICS_HOST"
"""Environment variable: the address on which Prometheus scrapes, by default this machine's own."""


class Prometheus(dg.Config):
    """Served for Prometheus by the process that trains, on the address that KITCHEN_METRICS_HOST names."""

    port: int = Field(default=9464, description="TCP port of /metrics; 0 for any that is free.")


class Collector(dg.Config):
    """Spans by OTLP over HTTP. Headers are those of OTEL_EXPORTER_OTLP_HEADERS."""

    endpoint: str = Field(
        default="http://127.0.0.1:4318",
        description="The collector; one that isn't on this machine must be listed in KITCHEN_ALLOWED_ENDPOINTS.",
    )


class Mlflow(dg.Config):
    """Metrics to MLflow. Credentials are MLflow's own environment variables."""

    tracking_uri: str = Field(
        default="http://127.0.0.1:5000",
        description="The server; one that isn't on this machine must be listed in KITCHEN_ALLOWED_ENDPOINTS.",
    )
    experiment: str = Field(default="kitchen", description="Name of the experiment; made where it isn't there.")


class TelemetryResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where events are sent. A handler that fails never fails or slows a training."""

    console: bool = Field(default=True, description="Progress lines on standard error.")
    jsonl: Optional[str] = Field(default=None, description="File to append every event to, one JSON object a line.")
    jsonl_max_mib: Optional[float] = Field(
        default=None,
        description="Size in MiB at which that file is renamed to FILE.1 and begun anew; null for never.",
    )
    jsonl_keep: int = Field(default=5, description="Such renamed files to keep.")
    prometheus: Optional[Prometheus] = Field(default=None, description="Metrics to scrape.")
    opentelemetry: Optional[Collector] = Field(default=None, description="Spans of runs, stages and epochs.")
    mlflow: Optional[Mlflow] = Field(default=None, description="A run of MLflow's for each run.")
    events: List[str] = Field(
        default=[],
        description="Patterns such as training.*: which events are sent; all when empty. The console isn't asked.",
    )
    step_every: int = Field(
        default=1,
        description="Send every so many-th step's event, and a run's first and last. The console isn't asked.",
    )

    _dispatcher: Optional[Dispatcher] = PrivateAttr(default=None)

    def adapter(self) -> Telemetry:
        """The dispatcher of all handlers, made when it is first used.

        Raises:
            ConfigError: A value is out of bounds, or an endpoint isn't allowed.
            CapabilityError: A package is missing.
        """
        if self._dispatcher is None:
            self._dispatcher = Dispatcher(sinks=list(self._sinks()))
        return self._dispatcher

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Write out what is held back."""
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._dispatcher = None

    def _sinks(self) -> Iterator[Sink]:
        chosen = Choice(self.events, self.step_every)
        attached = attached_handlers()
        if self.console and not any(one.kind == "console" for one in attached):
            yield Sink(ConsoleHandler())
        for one in attached:
            yield Sink(one.handler, keeps=True)
        if self.jsonl is not None:
            if self.jsonl_max_mib is not None and not self.jsonl_max_mib > 0:
                raise ConfigError("must be above 0", where="telemetry.jsonl_max_mib", fix="jsonl_max_mib: 100")
            if self.jsonl_keep < 0:
                raise ConfigError("must be at least 0", where="telemetry.jsonl_keep", fix="jsonl_keep: 5")
            path = Path(self.jsonl).expanduser()
            yield Sink(JsonlHandler(path, max_mib=self.jsonl_max_mib, keep=self.jsonl_keep), chosen)
        if self.prometheus is not None:
            from kitchen_resources.telemetry.prometheus import PrometheusHandler

            yield Sink(PrometheusHandler(self.prometheus.port, os.environ.get(METRICS_HOST, "127.0.0.1")), chosen)
        if self.opentelemetry is not None:
            from kitchen_resources.telemetry.spans import SpansHandler

            endpoint = check_endpoint(
                self.opentelemetry.endpoint, "http://127.0.0.1:4318", where="telemetry.opentelemetry.endpoint"
            )
            yield Sink(Background(SpansHandler(endpoint)), chosen)
        if self.mlflow is not None:
            from kitchen_resources.telemetry.tracking import MlflowHandler

            uri = check_endpoint(
                self.mlflow.tracking_uri, "http://127.0.0.1:5000", where="telemetry.mlflow.tracking_uri"
            )
            yield Sink(Background(MlflowHandler(uri, self.mlflow.experiment)), chosen)
