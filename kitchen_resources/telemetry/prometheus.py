"""Prometheus: what runs measure, to be scraped from the process that trains."""

from typing import Any

from kitchen_resources.errors import CapabilityError
from kitchen_resources.telemetry.port import EVENTS, Event, declared

LABELS = ("recipe", "workflow", "stage", "success")
"""Metadata by which series are told apart; the rest would make one series of each step."""

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0, 4 * 3600.0, 24 * 3600.0)


class PrometheusHandler:
    """Serves `/metrics` from the first event until the run is over.

    Of each event `kitchen_<event>_total` counts; `kitchen_<event>_duration_seconds` is a histogram; every other
    measurement is the gauge `kitchen_<event>_<measurement>`, with those of evaluations under
    `kitchen_<event>_value{measure="<evaluation>/<metric>"}`. Dots become underscores.

    Args:
        port: TCP port; 0 for any that is free.
        host: Address to listen on.

    Raises:
        CapabilityError: The package is missing.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        try:
            from prometheus_client import CollectorRegistry
        except ImportError as error:
            raise CapabilityError(
                "needs the package prometheus_client, which isn't installed",
                where="telemetry.prometheus",
                fix="pip install 'crucible-kitchen[telemetry]'",
            ) from error
        self._registry = CollectorRegistry()
        self._place = (port, host)
        self._metrics: dict[str, Any] = {}
        self._server: Any = None
        self._thread: Any = None

    @property
    def port(self) -> int:
        """Where it listens; 0 when it doesn't."""
        return int(self._server.server_port) if self._server is not None else 0

    def handle(self, event: Event) -> None:
        """See `Handler.handle`."""
        from prometheus_client import Counter, Gauge, Histogram, start_http_server

        if self._server is None:
            port, host = self._place
            self._server, self._thread = start_http_server(port, addr=host, registry=self._registry)
        labels = {name: str(event.metadata.get(name, "")) for name in self._labels(event.name)}
        prefix = f"kitchen_{event.name.replace('.', '_')}"
        said = EVENTS[event.name][0]
        self._metric(Counter, prefix, said, labels).inc()
        known = set().union(*declared(event.name))
        for name, value in event.measurements.items():
            if name == "duration_s":
                made = self._metric(
                    Histogram, f"{prefix}_duration_seconds", "How long it took.", labels, buckets=_SECONDS
                )
                made.observe(value)
            elif name in known:
                self._metric(Gauge, f"{prefix}_{name}", f"{name} of the last such event.", labels).set(value)
            else:
                measured = {**labels, "measure": name}
                self._metric(Gauge, f"{prefix}_value", "What was measured last.", measured).set(value)

    def close(self) -> None:
        """See `Handler.close`."""
        server, thread, self._server = self._server, self._thread, None
        if server is not None:
            server.shutdown()
            server.server_close()
            thread.join()

    def _labels(self, event: str) -> list[str]:
        return [name for name in LABELS if name in EVENTS[event][2]]

    def _metric(self, kind: Any, name: str, said: str, labels: dict[str, str], **further: Any) -> Any:
        if name not in self._metrics:
            self._metrics[name] = kind(name, said, list(labels), registry=self._registry, **further)
        return self._metrics[name].labels(**labels)
