"""OpenTelemetry: a span for each run, its stages, and what they train."""

import hashlib
import logging
import os
import random
from collections.abc import Sequence
from typing import Any, cast

from kitchen_resources.errors import CapabilityError
from kitchen_resources.telemetry.port import Event

_NS = 1_000_000_000
_TIMEOUT_S = 5.0


class SpansHandler:
    """Sends spans by OTLP over HTTP: run > stage > epoch, and checkpoints; each when it is over.

    A trace is a run, and its number is the Dagster run's; the run's span has a number that follows from it. So the
    stages of one run are of one trace, whichever processes they are executed in.

    Args:
        endpoint: The collector, such as `http://127.0.0.1:4318`; spans go to `/v1/traces` below it.

    Raises:
        CapabilityError: A package is missing.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.common import http
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        except ImportError as error:
            raise CapabilityError(
                f"needs the package {error.name}, which isn't installed",
                where="telemetry.opentelemetry",
                fix="pip install 'crucible-kitchen[telemetry]'",
            ) from error
        # What it can't send it logs with a stack trace, span by span; here that is raised, and said once.
        logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").disabled = True
        # Each export draws its jitter from Python's `random`, which training draws from too: the bits of a run would follow
        # from who watches it.
        http.random = random.Random()
        self._numbers = _Numbers()
        self._endpoint = endpoint
        self._exporter = _Answered(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_TIMEOUT_S))
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "crucible-kitchen"}), id_generator=cast(Any, self._numbers)
        )
        self._provider.add_span_processor(SimpleSpanProcessor(cast(Any, self._exporter)))
        self._tracer = self._provider.get_tracer("crucible-kitchen")
        self._stages: list[tuple[str, str, int, float]] = []
        """Run, stage, number of the span and beginning of each stage that is going on here, the innermost last."""
        self._runs: dict[str, float] = {}
        """Beginning of each run that began here."""
        self._errors: dict[tuple[str, str], str] = {}
        """By run and stage, and by run and "" for the run."""

    def handle(self, event: Event) -> None:
        """See `Handler.handle`.

        Raises:
            ConnectionError: The collector takes no spans.
        """
        about = event.metadata
        if event.name == "workflow.run.start":
            self._runs[about["run"]] = event.time
        elif event.name == "stage.run.start":
            self._stages.append((about["run"], about["stage"], self._numbers.new(), event.time))
        elif event.name.endswith(".run.exception"):
            self._errors[about["run"], about.get("stage", "")] = str(about["error"])
        elif event.name == "stage.run.stop":
            error = self._errors.pop((about["run"], about["stage"]), "")
            number, began = self._stage_over(about["run"], about["stage"])
            above = _run_number(about["run"])
            name = f"stage {about['stage']}"
            self._span(event, name, about["run"], number=number, parent=above, error=error, began=began)
        elif event.name == "workflow.run.stop":
            error = self._errors.pop((about["run"], ""), "")
            number, began = _run_number(about["run"]), self._runs.pop(about["run"], None)
            name = f"run {about['recipe']}"
            self._span(event, name, about["run"], number=number, parent=None, error=error, began=began)
        elif event.name in ("training.epoch", "training.checkpoint") and self._stages:
            run, _, parent, _ = self._stages[-1]
            self._span(event, event.name.rpartition(".")[2], run, parent=parent)

    def close(self) -> None:
        """See `Handler.close`."""
        self._provider.shutdown()

    def _stage_over(self, run: str, stage: str) -> tuple[int, float | None]:
        """Number of the span of a stage that is over, and when it began where that was seen."""
        for place in reversed(range(len(self._stages))):
            if self._stages[place][:2] == (run, stage):
                return self._stages.pop(place)[2:]
        return self._numbers.new(), None

    def _span(
        self,
        event: Event,
        name: str,
        run: str,
        *,
        parent: int | None,
        number: int | None = None,
        error: str = "",
        began: float | None = None,
    ) -> None:
        """A span that is over now. Of one whose beginning was told elsewhere, by how long it took.

        By one clock where that can be, so that what lies in a span begins no earlier than it.
        """
        from opentelemetry import trace as api

        trace = _trace_number(run)
        self._numbers.next(trace, number)
        context = None
        if parent is not None:
            flags = api.TraceFlags(api.TraceFlags.SAMPLED)
            above = api.SpanContext(trace, parent, is_remote=True, trace_flags=flags)
            context = api.set_span_in_context(api.NonRecordingSpan(above))
        ended = round(event.time * _NS)
        started = ended - round(event.measurements.get("duration_s", 0.0) * _NS)
        if began is not None:
            started = min(round(began * _NS), ended)
        values = {**event.metadata, **event.measurements}
        span = self._tracer.start_span(
            name,
            context=context,
            start_time=started,
            attributes={
                f"kitchen.{key}": value if isinstance(value, (int, float)) else str(value)
                for key, value in values.items()
            },
        )
        if error:
            span.set_status(api.Status(api.StatusCode.ERROR, error))
        span.end(end_time=ended)
        if not self._exporter.answered:
            raise ConnectionError(f"{self._endpoint} takes no spans")


def _trace_number(run: str) -> int:
    """The number of a run's trace: that of the run itself, which Dagster makes as a UUID."""
    digits = run.replace("-", "")
    if len(digits) == 32 and set(digits) <= set("0123456789abcdef"):
        return int(digits, 16)
    return int.from_bytes(hashlib.sha256(run.encode()).digest()[:16])


def _run_number(run: str) -> int:
    """The number of a run's span."""
    return int.from_bytes(hashlib.sha256(run.encode()).digest()[:8])


class _Answered:
    """An exporter, and whether the last spans arrived: the SDK tells nobody."""

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter
        self.answered = True

    def export(self, spans: Sequence[Any]) -> Any:
        """See the SDK's `SpanExporter`."""
        result = self._exporter.export(spans)
        self.answered = result.name == "SUCCESS"
        return result

    def shutdown(self) -> None:
        """See the SDK."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """See the SDK."""
        return True


class _Numbers:
    """Numbers of the next span, where they are to be known elsewhere; see the SDK's `IdGenerator`."""

    def __init__(self) -> None:
        self._trace = 0
        self._span: int | None = None

    def next(self, trace: int, span: int | None) -> None:
        """What the next span gets."""
        self._trace, self._span = trace, span

    def new(self) -> int:
        """A number of a span. Not from `random`, which training draws from."""
        return int.from_bytes(os.urandom(8)) | 1

    def generate_trace_id(self) -> int:
        """See the SDK."""
        return self._trace or int.from_bytes(os.urandom(16)) | 1

    def generate_span_id(self) -> int:
        """See the SDK."""
        span, self._span = self._span, None
        return span if span is not None else self.new()

    def is_trace_id_random(self) -> bool:
        """See the SDK: it follows from the run."""
        return False
