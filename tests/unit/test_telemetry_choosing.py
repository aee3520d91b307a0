"""Which events handlers get, what is attached by a program, and handlers in a thread of their own."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import kitchen_assets as kitchen
from kitchen_resources.errors import ConfigError
from kitchen_resources.telemetry.attached import attached_handlers
from kitchen_resources.telemetry.background import Background, Behind
from kitchen_resources.telemetry.choosing import Choice
from kitchen_resources.telemetry.dispatch import Dispatcher, Sink
from kitchen_resources.telemetry.jsonl import read_jsonl
from kitchen_resources.telemetry.port import EVENTS, Event
from kitchen_resources.telemetry.resource import TelemetryResource


class Kept:
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = 0

    def handle(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def nothing_attached() -> Iterator[None]:
    yield
    left = attached_handlers()
    for one in left:
        one.detach()
    assert left == []


def step(number: int, name: str = "training.step") -> Event:
    return Event(name, 0.0, {}, {"step": number, "total_steps": 25})


def taken(choice: Choice, name: str = "training.step") -> list[int]:
    return [number for number in range(1, 26) if choice.takes(step(number, name))]


# Choosing.


def test_all_is_taken_unless_something_is_chosen() -> None:
    assert taken(Choice()) == list(range(1, 26))
    assert all(Choice().takes(Event(name, 0.0, {}, {"step": 1})) for name in EVENTS)


def test_patterns_choose_by_name() -> None:
    choice = Choice(["training.*", "workflow.run.stop"])
    chosen = {name for name in EVENTS if choice.takes(Event(name, 0.0, {}, {"step": 1}))}
    assert chosen == {name for name in EVENTS if name.startswith("training.")} | {"workflow.run.stop"}


@pytest.mark.parametrize("name", ["training.step", "dpo.step", "rl.step", "distillation.step"])
def test_of_steps_every_so_many_th_is_taken_and_the_first_and_last(name: str) -> None:
    assert taken(Choice(step_every=10), name) == [1, 10, 20, 25]


def test_a_pattern_of_nothing_and_a_step_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'trainning\.\*' is of no event"):
        Choice(["trainning.*"])
    with pytest.raises(ConfigError, match="must be at least 1, got 0"):
        Choice(step_every=0)


def test_a_sink_gets_what_it_chose_and_stays_open_where_it_is_anothers() -> None:
    all_of_it, few = Kept(), Kept()
    dispatcher = Dispatcher(sinks=[Sink(all_of_it, keeps=True), Sink(few, Choice(["stage.*"]))])
    dispatcher.emit("stage.run.start", {}, {})
    dispatcher.emit("workflow.run.start", {}, {})
    dispatcher.close()
    assert [event.name for event in all_of_it.events] == ["stage.run.start", "workflow.run.start"]
    assert [event.name for event in few.events] == ["stage.run.start"]
    assert (all_of_it.closed, few.closed) == (0, 1)


# Attaching.


def run_noop(**config: Any) -> None:
    resources = {key: value for key, value in kitchen.noop().items() if key != "telemetry"}
    with dg.DagsterInstance.ephemeral() as instance:
        kitchen.run(
            "supervised",
            {"model": "org/model", "dataset": "rows", "epochs": 1, "evaluations": [], **config},
            {**resources, "telemetry": {"console": False}},
            instance=instance,
        )


def test_an_attached_file_gets_every_run_until_it_is_detached(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    attached = kitchen.attach_telemetry("jsonl", path=str(path))
    run_noop()
    first = [record["event"] for record in read_jsonl(path)]
    assert first[0] == "workflow.run.start"
    assert first[-1] == "workflow.run.stop"
    assert "training.step" in first
    run_noop()
    twice = len(read_jsonl(path))
    assert twice == 2 * len(first)
    attached.detach()
    attached.detach()
    run_noop()
    assert len(read_jsonl(path)) == twice


def test_an_object_is_a_handler_and_is_closed_when_it_is_detached() -> None:
    handler = Kept()
    with kitchen.attach_telemetry(handler):
        run_noop()
        assert handler.closed == 0
    assert handler.closed == 1
    assert {event.name for event in handler.events} >= {"workflow.run.start", "training.epoch", "workflow.run.stop"}


def test_an_attached_console_is_the_only_one(capsys: pytest.CaptureFixture[str]) -> None:
    with kitchen.attach_telemetry("console"):
        resource = TelemetryResource()
        telemetry = resource.adapter()
        telemetry.emit("model.registered", {"count": 1}, {"recipe": "r", "name": "r", "version": 1})
    assert capsys.readouterr().err.count("registered r version 1") == 1


def test_what_cannot_be_attached_is_refused(tmp_path: Path) -> None:
    for given, options, said in (
        ("prometeus", {}, "there is no handler 'prometeus'"),
        ("jsonl", {}, "jsonl wants a path"),
        ("jsonl", {"file": "x"}, "jsonl takes no file"),
        (Kept(), {"path": "x"}, "an object takes no path"),
        (3, {}, "3 is no handler"),
    ):
        with pytest.raises(ConfigError, match=said):
            kitchen.attach_telemetry(given, **options)  # type: ignore[arg-type]


# In a thread.


def test_a_thread_hands_over_in_order_and_closes_at_the_end() -> None:
    handler = Kept()
    background = Background(handler)
    for number in range(100):
        background.handle(step(number))
    background.close()
    background.close()
    assert [event.metadata["step"] for event in handler.events] == list(range(100))
    assert handler.closed == 1


def test_a_handler_that_waits_holds_nobody_up_and_what_finds_no_room_is_dropped() -> None:
    class Stuck(Kept):
        def __init__(self) -> None:
            super().__init__()
            self.began, self.goes_on = threading.Event(), threading.Event()

        def handle(self, event: Event) -> None:
            self.began.set()
            self.goes_on.wait()
            super().handle(event)

    handler = Stuck()
    background = Background(handler, room=2, end_s=0.05)
    background.handle(step(0))
    handler.began.wait()
    background.handle(step(1))
    background.handle(step(2))
    with pytest.raises(Behind, match="1 events were dropped"):
        background.handle(step(3))
    with pytest.raises(Behind, match="were left when the run was over"):
        background.close()
    handler.goes_on.set()


def test_what_a_threads_handler_raises_is_said_once_by_the_dispatcher(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Kept):
        def handle(self, event: Event) -> None:
            super().handle(event)
            raise ConnectionError("nobody there")

    handler, other = Broken(), Kept()
    dispatcher = Dispatcher([Background(handler), other])
    for _ in range(5):
        dispatcher.emit("stage.run.start", {}, {})
    dispatcher.close()
    said = [record.message for record in caplog.records if record.name == "kitchen.telemetry"]
    assert len(said) == 1
    assert "telemetry handler Broken failed" in said[0]
    assert "nobody there" in said[0]
    assert len(handler.events) == len(other.events) == 5
