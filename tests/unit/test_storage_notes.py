"""Notes of launches that are over: which of them go, and which may be needed and stay."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kitchen_resources.checkpoints.lease import acquire
from tests.engine import Engine, register
from tests.unit.collections_of_garbage import DAY, NOW, ORPHAN, SHA256, collected, engine_with_orphan


@pytest.fixture
def engine() -> Engine:
    return engine_with_orphan()


def note(engine: Engine, launch: str, what: str, value: Any) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    engine.blobs.put_if_absent(f"launches/{launch}/{what}", data)


@pytest.fixture
def noted(engine: Engine) -> Engine:
    """The store with a launch that was started 40 days ago, is over, and alone names the orphan."""
    note(engine, "one", "started-supervised", b"%f" % (NOW - 40 * DAY))
    note(engine, "one", "stopped-supervised", b"")
    note(engine, "one", "supervised-0/prepared.json", {"blob": SHA256})
    note(engine, "one", "supervised-0/preflight.json", {"run": "one"})
    note(engine, "one", "io/step/result.json", 3)
    return engine


def launches_left(engine: Engine) -> set[str]:
    return {key.split("/")[1] for key in engine.blobs.list("launches/")} & {"one", "two"}


def test_notes_of_a_launch_that_is_long_over_go_and_keep_nothing_alive(noted: Engine) -> None:
    found = collected(noted.blobs)
    assert (found.launches, found.notes, found.marked) == (("one",), 5, 1)
    assert launches_left(noted) == set()
    assert collected(noted.blobs, days=1).deleted == {SHA256: len(ORPHAN)}


def test_a_dry_run_counts_what_the_notes_alone_name(noted: Engine) -> None:
    found = collected(noted.blobs, dry_run=True)
    assert (found.launches, found.notes, found.marked) == (("one",), 5, 1)
    assert launches_left(noted) == {"one"}


def kept_notes() -> Iterator[tuple[str, Callable[[Engine], object]]]:
    yield "young enough", lambda e: note(e, "one", "started-other", b"%f" % (NOW - 29 * DAY))
    yield "not over", lambda e: e.blobs.delete("launches/one/stopped-supervised")
    yield "of no known age", lambda e: e.blobs.delete("launches/one/started-supervised")
    yield "with a damaged note", lambda e: note(e, "one", "supervised-0/base.json", b"{")
    yield "with no table in a note", lambda e: note(e, "one", "supervised-0/base.json", [])
    yield (
        "registered lately",
        lambda e: note(e, "one", "supervised-0/registered.json", {"version": 1, "run": "one", "at": NOW - DAY}),
    )
    yield "named by a version", lambda e: register(e, e.head(), 6, launch="one")
    yield "in training", lambda e: acquire(e.blobs, "ab" * 32, run="one", wait_s=0.0)
    yield (
        "whose run another one trains",
        lambda e: (
            note(e, "one", "supervised-0/run.json", {"fingerprint": "ab" * 32}),
            acquire(e.blobs, "ab" * 32, run="x", wait_s=0.0),
        ),
    )
    yield (
        "executed again lately",
        lambda e: (
            note(e, "one", "supervised-0/steps-two.json", {"optimizer_steps": 3}),
            note(e, "two", "started-supervised", b"%f" % (NOW - DAY)),
        ),
    )


@pytest.mark.parametrize(("name", "change"), list(kept_notes()), ids=[name for name, _ in kept_notes()])
def test_notes_that_may_be_needed_stay(noted: Engine, name: str, change: Callable[[Engine], object]) -> None:
    change(noted)
    found = collected(noted.blobs)
    assert (found.launches, found.marked) == ((), 0)
    assert "one" in launches_left(noted)


def test_a_launch_that_wrote_no_end_is_over_at_twice_the_age(noted: Engine) -> None:
    noted.blobs.delete("launches/one/stopped-supervised")
    assert collected(noted.blobs, days=19).launches == ()
    assert collected(noted.blobs, days=21).launches == ("one",)


def test_a_launch_whose_notes_are_gone_prepares_again(engine: Engine) -> None:
    first = engine.finish(run_id="one", seed=1)
    note(engine, "one", "started-supervised", b"0")
    assert collected(engine.blobs, days=1).launches == ("one",)
    again = engine.finish(run_id="two", root_id="one", seed=1)
    assert (again.steps_done, again.head.fingerprint) == (0, first.head.fingerprint)
