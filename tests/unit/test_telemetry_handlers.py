"""Telemetry handlers: what a person reads, and what is on record."""

import io
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from kitchen_resources.telemetry.console import ConsoleHandler
from kitchen_resources.telemetry.jsonl import JsonlHandler, read_jsonl
from kitchen_resources.telemetry.port import Event

FINGERPRINT = "3f2a91c04b77" + "0" * 52
ABOUT = {"recipe": "supervised", "fingerprint": FINGERPRINT}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("kitchen_resources.telemetry.console.time.monotonic", clock)
    return clock


def step(number: int, total: int = 400, **measurements: float) -> Event:
    measured = {
        "loss": 1.23456,
        "learning_rate": 0.0002,
        "grad_norm": 1.0,
        "tokens": 512,
        "tokens_per_second": 12345.6,
        "duration_s": 0.5,
        "host_memory_bytes": 1,
        "device_memory_bytes": 0,
        **measurements,
    }
    return Event("training.step", 0.0, measured, {**ABOUT, "epoch": 2, "step": number, "total_steps": total})


def lines_of(*events: Event, every_s: float = 0.0) -> list[str]:
    stream = io.StringIO()
    handler = ConsoleHandler(stream, every_s)
    for event in events:
        handler.handle(event)
    handler.close()
    return stream.getvalue().splitlines()


# The console.


@pytest.mark.parametrize(
    ("name", "measurements", "metadata", "line"),
    [
        (
            "training.epoch",
            {"loss": 0.98765, "tokens": 5120, "tokens_per_second": 1234567.8, "duration_s": 61.4},
            {**ABOUT, "epoch": 1, "step": 200},
            "supervised: epoch 1 done, step 200  loss 0.9877  1,234,568 tok/s  61 s",
        ),
        (
            "training.epoch",
            {"tokens": 5120, "duration_s": 7200.0, "cost_usd": 1234.5},
            {**ABOUT, "epoch": 1, "step": 200},
            "supervised: epoch 1 done, step 200  2.0 h  1,234.50 USD",
        ),
        (
            "training.checkpoint",
            {"bytes": 1234567890, "duration_s": 0.1},
            {**ABOUT, "epoch": 1, "step": 200, "state_digest": "00"},
            "supervised: checkpoint at step 200  1,177.4 MiB",
        ),
        (
            "training.eval",
            {"held_out/loss": 1.5, "held_out/exact_match": 0.25},
            {**ABOUT, "epoch": 3, "step": 600},
            "supervised: epoch 3 evaluated  held_out/loss 1.5000  held_out/exact_match 0.2500",
        ),
        (
            "eval.complete",
            {"held_out/loss": 0.5},
            ABOUT,
            "supervised: model evaluated  held_out/loss 0.5000",
        ),
        (
            "dataset.prepared",
            {"rows": 5625, "held_out_rows": 625, "tokens": 200000, "trained_tokens": 61875},
            {"recipe": "supervised", "digest": "00"},
            "supervised: 5,625 rows to train on, 625 held out, 61,875 tokens learned an epoch",
        ),
        (
            "model.registered",
            {"count": 1},
            {"recipe": "supervised", "name": "supervised", "version": 3},
            "supervised: registered supervised version 3",
        ),
        (
            "stage.run.exception",
            {"duration_s": 1.0},
            {"recipe": "supervised", "run": "r", "stage": "dataset", "error": "DataError: row 17: no"},
            "supervised: dataset failed: DataError: row 17: no",
        ),
    ],
)
def test_console_line(name: str, measurements: dict[str, float], metadata: dict[str, Any], line: str) -> None:
    assert lines_of(Event(name, 0.0, measurements, metadata)) == [line]


def test_console_progress_line(clock: Clock) -> None:
    assert lines_of(step(100)) == [
        "supervised: epoch 2, step 100/400 (25%)  loss 1.2346  lr 2.00e-04  12,346 tok/s  about 2 min left"
    ]


@pytest.mark.parametrize(
    ("seconds_a_step", "said"),
    [(0.1, "10 s"), (0.89, "89 s"), (0.9, "2 min"), (53.9, "90 min"), (54.0, "1.5 h"), (0.0, "0 s")],
)
def test_console_span(clock: Clock, seconds_a_step: float, said: str) -> None:
    (line,) = lines_of(step(300, duration_s=seconds_a_step))
    assert line.endswith(f"about {said} left")


def test_console_shows_a_step_only_every_so_many_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    handler = ConsoleHandler(stream, every_s=10.0)
    shown: list[int] = []
    for number in range(1, 31):
        clock.now += 1.0
        handler.handle(step(number))
        if stream.getvalue().count("\n") > len(shown):
            shown.append(number)
    assert shown == [10, 20, 30]


def test_the_end_of_an_epoch_puts_off_the_next_progress_line(clock: Clock) -> None:
    epoch = Event(
        "training.epoch",
        0.0,
        {"loss": 1.0, "tokens": 1, "tokens_per_second": 1.0, "duration_s": 1.0},
        {**ABOUT, "epoch": 1, "step": 9},
    )
    stream = io.StringIO()
    handler = ConsoleHandler(stream, every_s=10.0)
    clock.now += 9.0
    handler.handle(epoch)
    clock.now += 9.0
    handler.handle(step(10))
    assert stream.getvalue().count("\n") == 1
    clock.now += 1.0
    handler.handle(step(11))
    assert "step 11/400" in stream.getvalue()


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("workflow.run.start", {"recipe": "supervised", "run": "r", "workflow": "supervised"}),
        ("stage.run.start", {"recipe": "supervised", "run": "r", "stage": "raw"}),
        ("stage.run.stop", {"recipe": "supervised", "run": "r", "stage": "raw", "success": True}),
        # The stage that failed has said so.
        ("workflow.run.exception", {"recipe": "supervised", "run": "r", "workflow": "supervised", "error": "no"}),
        # Nothing was measured, so there is nothing to say.
        ("eval.complete", ABOUT),
        ("training.eval", {**ABOUT, "epoch": 1, "step": 2}),
    ],
)
def test_console_says_nothing(name: str, metadata: dict[str, Any]) -> None:
    assert lines_of(Event(name, 0.0, {}, metadata)) == []


def test_console_writes_to_standard_error(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleHandler(every_s=0.0).handle(step(1))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("supervised: epoch 2, step 1/400 (0%)")


# JSONL.


def test_jsonl_record(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "events.jsonl"
    handler = JsonlHandler(path)
    handler.handle(Event("model.registered", 12.5, {"count": 1}, {"recipe": "süß", "name": "a\nb", "version": 2}))
    # Flushed event by event: it is there before the handler is closed.
    assert path.read_bytes() == (
        b'{"timestamp": 12.5, "event": "model.registered", "measurements": {"count": 1}, '
        b'"metadata": {"recipe": "s\\u00fc\\u00df", "name": "a\\nb", "version": 2}}\n'
    )
    handler.close()


def test_jsonl_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for number in range(2):
        handler = JsonlHandler(path)
        handler.handle(Event("stage.run.start", number, {}, {"stage": f"of process {number}"}))
        handler.close()
        handler.close()
        handler.handle(Event("stage.run.start", number, {}, {"stage": "after closing"}))
        handler.close()
    assert [event["metadata"]["stage"] for event in read_jsonl(path)] == [
        "of process 0",
        "after closing",
        "of process 1",
        "after closing",
    ]


def test_jsonl_without_an_event_makes_no_file(tmp_path: Path) -> None:
    JsonlHandler(tmp_path / "events.jsonl").close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("half", "read"),
    [
        ('{"timestamp": 1.0, "event": "training.st', ["first", "stage.run.start"]),
        # Only its line end is missing.
        ('{"event": "second"}', ["first", "second", "stage.run.start"]),
    ],
)
def test_half_a_line_spoils_no_other(tmp_path: Path, half: str, read: list[str]) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "first"}\n' + half)
    handler = JsonlHandler(path)
    handler.handle(Event("stage.run.start", 2.0, {}, {"stage": "raw"}))
    handler.close()
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"event": "first"}', half]
    assert json.loads(lines[2])["metadata"] == {"stage": "raw"}
    assert [event["event"] for event in read_jsonl(path)] == read


def test_a_killed_process_loses_no_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    program = f"""
from pathlib import Path
from kitchen_resources.telemetry.jsonl import JsonlHandler
from kitchen_resources.telemetry.port import Event
import os, signal
handler = JsonlHandler(Path({str(path)!r}))
for step in range(100):
    handler.handle(Event("training.step", 0.0, {{"loss": 1.0}}, {{"step": step}}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [event["metadata"]["step"] for event in read_jsonl(path)] == list(range(100))


class _Odd:
    def __repr__(self) -> str:
        return "an odd value"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ((1, 2, ("a",)), [1, 2, ["a"]]),
        (math.nan, None),
        (-math.inf, None),
        ([1.0, {"x": math.inf}], [1.0, {"x": None}]),
        (numpy.float32(0.25), 0.25),
        (numpy.int64(7), 7),
        (numpy.array([1.5, math.nan]), [1.5, None]),
        ({("a", 1): 2, 3: 4}, {"('a', 1)": 2, "3": 4}),
        ({"only"}, ["only"]),
        (Path("a/b"), "a/b"),
        (b"\xff", "b'\\xff'"),
        (_Odd(), "an odd value"),
        (len, "<built-in function len>"),
        ("\ud800", "\ud800"),
        (None, None),
        (True, True),
    ],
)
def test_odd_values_are_on_record(tmp_path: Path, value: Any, written: Any) -> None:
    path = tmp_path / "events.jsonl"
    handler = JsonlHandler(path)
    handler.handle(Event("training.step", 0.0, {"measured": value}, {"about": value}))
    handler.close()
    (line,) = path.read_text().splitlines()
    strict = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert strict["measurements"] == {"measured": written}
    assert strict["metadata"] == {"about": written}
