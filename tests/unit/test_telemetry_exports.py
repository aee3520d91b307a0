"""Prometheus by a real scrape, and OpenTelemetry to a real collector, of whole runs."""

import contextlib
import http.server
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

import kitchen_assets as kitchen
from kitchen_resources.errors import CapabilityError, ConfigError, KitchenError
from kitchen_resources.telemetry.port import EVENTS, Event
from kitchen_resources.telemetry.prometheus import PrometheusHandler
from kitchen_resources.telemetry.resource import Collector, Prometheus, TelemetryResource
from kitchen_resources.telemetry.spans import SpansHandler

SMALL = {"model": "org/model", "dataset": "rows", "epochs": 2, "batch_size": 16, "evaluations": []}


def run(telemetry: dict[str, Any], **config: Any) -> str:
    """A whole run without a backend; returns its id."""
    with dg.DagsterInstance.ephemeral() as instance:
        with contextlib.suppress(KitchenError):
            kitchen.run(
                "supervised",
                {**SMALL, **config},
                {**kitchen.noop(), "telemetry": {"console": False, **telemetry}},
                instance=instance,
            )
        return instance.get_runs()[0].run_id


# Prometheus.


def scrape(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(**given: str) -> frozenset[tuple[str, str]]:
    return frozenset(given.items())


@pytest.fixture
def handler() -> Iterator[PrometheusHandler]:
    handler = PrometheusHandler(0)
    yield handler
    handler.close()


def test_a_whole_run_is_scraped(handler: PrometheusHandler) -> None:
    with kitchen.attach_telemetry(handler):
        run({})
        found = scrape(handler.port)
        recipe = labels(recipe="supervised")
        # 64 simulated rows less the tenth that is held out.
        steps = found["kitchen_training_step_total", recipe]
        assert steps == 8
        assert found["kitchen_training_epoch_total", recipe] == 2
        assert found["kitchen_training_step_duration_seconds_count", recipe] == steps
        assert found["kitchen_training_step_loss", recipe] == found["kitchen_training_step_loss", recipe] > 0
        assert found["kitchen_training_checkpoint_bytes", recipe] > 0
        assert (
            found["kitchen_dataset_prepared_rows", recipe] + found["kitchen_dataset_prepared_held_out_rows", recipe]
            == 64
        )
        over = labels(recipe="supervised", workflow="supervised", success="True")
        assert found["kitchen_workflow_run_stop_total", over] == 1
        epochs = labels(recipe="supervised", stage="train_epoch", success="True")
        assert found["kitchen_stage_run_stop_duration_seconds_count", epochs] == 2
        run({})
        assert scrape(handler.port)["kitchen_workflow_run_stop_total", over] == 2


def test_evaluations_are_one_metric_with_a_label(handler: PrometheusHandler) -> None:
    about = {"recipe": "r", "fingerprint": "f", "epoch": 1, "step": 3}
    handler.handle(Event("training.eval", 0.0, {"held_out/loss": 1.5, "dates/exact_match": 0.25}, about))
    found = scrape(handler.port)
    assert found["kitchen_training_eval_value", labels(recipe="r", measure="held_out/loss")] == 1.5
    assert found["kitchen_training_eval_value", labels(recipe="r", measure="dates/exact_match")] == 0.25


def test_no_label_has_a_value_of_each_step(handler: PrometheusHandler) -> None:
    assert {"fingerprint", "step", "epoch", "run", "digest"}.isdisjoint(
        name for event in EVENTS for name in handler._labels(event)
    )


def test_a_port_that_is_taken_is_said_once_and_hurts_nothing(
    handler: PrometheusHandler, caplog: pytest.LogCaptureFixture
) -> None:
    handler.handle(Event("stage.run.start", 0.0, {}, {"stage": "raw", "recipe": "r"}))
    run({"prometheus": {"port": handler.port}})
    said = [record.message for record in caplog.records if record.name == "kitchen.telemetry"]
    assert len(said) == 1
    assert "PrometheusHandler failed on workflow.run.start" in said[0]


# OpenTelemetry.


class Collecting:
    """An OTLP collector over HTTP that keeps spans."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.status = 200
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                request = ExportTraceServiceRequest()
                request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
                if outer.status == 200:
                    for resource in request.resource_spans:
                        names = {item.key: item.value.string_value for item in resource.resource.attributes}
                        assert names["service.name"] == "crucible-kitchen"
                        outer.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def named(self, start: str) -> list[Any]:
        return [span for span in self.spans if span.name.startswith(start)]


@pytest.fixture
def collector() -> Iterator[Collecting]:
    collector = Collecting()
    yield collector
    collector.close()


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


def test_a_run_is_a_trace_of_stages_and_epochs(collector: Collecting) -> None:
    run_id = run({"opentelemetry": {"endpoint": collector.endpoint}})
    assert {span.trace_id.hex() for span in collector.spans} == {run_id.replace("-", "")}
    (whole,) = collector.named("run ")
    assert (whole.name, whole.parent_span_id) == ("run supervised", b"")
    stages = collector.named("stage ")
    assert {span.parent_span_id for span in stages} == {whole.span_id}
    names = [span.name.removeprefix("stage ") for span in stages]
    assert names == [
        "raw",
        "dataset",
        "plan_epochs",
        "train_epoch",
        "train_epoch",
        "model",
        "evaluation",
        "registered_model",
    ]
    trained = [span.span_id for span in stages if span.name == "stage train_epoch"]
    assert [span.parent_span_id for span in collector.named("epoch")] == trained
    assert [attributes(span)["kitchen.epoch"] for span in collector.named("epoch")] == [1, 2]
    assert {span.parent_span_id for span in collector.named("checkpoint")} == set(trained)
    assert len({span.span_id for span in collector.spans}) == len(collector.spans)
    for span in stages:
        assert whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= whole.end_time_unix_nano
    assert attributes(whole)["kitchen.success"] is True
    assert attributes(whole)["kitchen.workflow"] == "supervised"


def test_a_failure_is_the_status_of_its_stage_and_run(collector: Collecting) -> None:
    run({"opentelemetry": {"endpoint": collector.endpoint}}, epochs=0)
    (stage,), (whole,) = collector.named("stage "), collector.named("run ")
    for span in (stage, whole):
        assert span.status.code == 2
        assert span.status.message.startswith("ConfigError: recipe supervised")


def test_a_collector_that_takes_nothing_is_said_once_and_hurts_nothing(
    collector: Collecting, caplog: pytest.LogCaptureFixture
) -> None:
    collector.status = 400
    run({"opentelemetry": {"endpoint": collector.endpoint}})
    said = [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert len([one for one in said if "telemetry handler SpansHandler failed" in one]) == 1
    assert [one for one in said if "Failed to export" in one] == []


def test_training_draws_the_same_random_numbers(collector: Collecting) -> None:
    import random

    random.seed(7)
    expected = random.random()
    random.seed(7)
    handler = SpansHandler(collector.endpoint)
    about = {"stage": "raw", "recipe": "r", "run": "not a uuid"}
    handler.handle(Event("stage.run.start", 0.0, {}, about))
    handler.handle(Event("stage.run.stop", 1.0, {"duration_s": 1.0}, {**about, "success": True}))
    handler.close()
    assert random.random() == expected
    assert len(collector.spans) == 1


# Config.


def test_endpoints_elsewhere_must_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = TelemetryResource(console=False, opentelemetry=Collector(endpoint="https://collector.example.com"))
    with pytest.raises(
        ConfigError, match=r"telemetry\.opentelemetry\.endpoint: https://collector\.example\.com is not"
    ):
        resource.adapter()
    monkeypatch.setenv("KITCHEN_ALLOWED_ENDPOINTS", "https://collector.example.com")
    resource.adapter().close()


def test_values_out_of_bounds_are_refused() -> None:
    for fields, said in (
        ({"jsonl": "x", "jsonl_max_mib": 0.0}, "telemetry.jsonl_max_mib: must be above 0"),
        ({"jsonl": "x", "jsonl_keep": -1}, "telemetry.jsonl_keep: must be at least 0"),
        ({"events": ["nothing"]}, "telemetry.events: 'nothing' is of no event"),
    ):
        with pytest.raises(ConfigError, match=said):
            TelemetryResource(console=False, **fields).adapter()


@pytest.mark.parametrize(
    ("fields", "package", "extra"),
    [
        ({"prometheus": Prometheus()}, "prometheus_client", "telemetry"),
        ({"opentelemetry": Collector()}, "opentelemetry.exporter.otlp.proto.http.trace_exporter", "telemetry"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], package: str, extra: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(CapabilityError) as refused:
        TelemetryResource(console=False, **fields).adapter()
    assert package.partition(".")[0] in str(refused.value)
    assert f"crucible-kitchen[{extra}]" in str(refused.value)
