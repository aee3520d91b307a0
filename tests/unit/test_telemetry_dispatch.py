"""The dispatcher and the resource of telemetry: who is given an event, and what a failure does."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.telemetry.dispatch import Dispatcher, NoopTelemetry
from kitchen_resources.telemetry.jsonl import read_jsonl
from kitchen_resources.telemetry.port import EVENTS, Event
from kitchen_resources.telemetry.resource import TelemetryResource


class Recorder:
    """A handler that keeps what it is given, and raises what it is told to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.events: list[Event] = []
        self.closed = 0
        self.error = error

    def handle(self, event: Event) -> None:
        self.events.append(event)
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed += 1
        if self.error is not None:
            raise self.error


# The dispatcher.


def test_every_handler_is_given_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kitchen_resources.telemetry.dispatch.time.time", lambda: 77.0)
    handlers = [Recorder(), Recorder()]
    telemetry = Dispatcher(handlers)
    telemetry.emit("model.registered", {"count": 1}, {"version": 3})
    telemetry.emit("dataset.load", {"rows": 2}, {})
    telemetry.close()
    for handler in handlers:
        assert handler.events == [
            Event("model.registered", 77.0, {"count": 1}, {"version": 3}),
            Event("dataset.load", 77.0, {"rows": 2}, {}),
        ]
        assert handler.closed == 1


def test_a_failing_handler_hurts_no_one_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    failing, after = Recorder(OSError("disk full")), Recorder()
    telemetry = Dispatcher([failing, after])
    with caplog.at_level(logging.WARNING, "kitchen.telemetry"):
        for version in range(3):
            telemetry.emit("model.registered", {"count": 1}, {"version": version})
        telemetry.close()
    assert [event.metadata["version"] for event in after.events] == [0, 1, 2]
    assert after.closed == failing.closed == 1
    assert [record.getMessage() for record in caplog.records] == [
        "telemetry handler Recorder failed on model.registered, and events may be missing there (this is said once): "
        "OSError('disk full')"
    ]


def test_a_handler_that_recovers_is_given_events_again(caplog: pytest.LogCaptureFixture) -> None:
    handler = Recorder(OSError("away"))
    telemetry = Dispatcher([handler])
    telemetry.emit("dataset.load", {"rows": 1}, {})
    handler.error = None
    telemetry.emit("dataset.load", {"rows": 2}, {})
    assert [event.measurements["rows"] for event in handler.events] == [1, 2]


def test_two_failing_handlers_are_each_said_once(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Dispatcher([Recorder(OSError("first")), Recorder(ValueError("second"))])
    telemetry.close()
    telemetry.emit("dataset.load", {"rows": 1}, {})
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "failed on close" in said[0]
    assert "OSError('first')" in said[0]
    assert "ValueError('second')" in said[1]


def test_an_interrupt_is_not_a_failure_of_a_handler() -> None:
    telemetry = Dispatcher([Recorder(KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        telemetry.emit("dataset.load", {"rows": 1}, {})


def test_an_unknown_event_is_a_mistake() -> None:
    handler = Recorder()
    with pytest.raises(KeyError, match=r"training\.stpe"):
        Dispatcher([handler]).emit("training.stpe", {}, {})
    assert handler.events == []


def test_noop_takes_every_event() -> None:
    telemetry = NoopTelemetry()
    for name in EVENTS:
        telemetry.emit(name, {}, {})
    telemetry.close()


# The resource.


def emitted(resource: TelemetryResource, metadata: Mapping[str, Any]) -> None:
    resource.adapter().emit("model.registered", {"count": 1}, metadata)


ABOUT_VERSION = {"recipe": "r", "name": "n", "version": 4}


def test_resource_prints_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    emitted(TelemetryResource(), ABOUT_VERSION)
    assert capsys.readouterr().err == "r: registered n version 4\n"


def test_resource_writes_jsonl_and_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    resource = TelemetryResource(console=False, jsonl="~/events.jsonl")
    emitted(resource, ABOUT_VERSION)
    assert resource.adapter() is resource.adapter()
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    resource.teardown_after_execution(None)  # type: ignore[arg-type]
    assert len(synced) == 1
    assert [event["metadata"] for event in read_jsonl(tmp_path / "events.jsonl")] == [ABOUT_VERSION]
    assert capsys.readouterr() == ("", "")
    # The same resource serves the next run.
    emitted(resource, ABOUT_VERSION)
    resource.teardown_after_execution(None)  # type: ignore[arg-type]
    assert len(read_jsonl(tmp_path / "events.jsonl")) == 2
