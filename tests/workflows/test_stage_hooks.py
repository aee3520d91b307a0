"""Stages: what runs before and after, limits of time, and what is done again."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kitchen_assets.context import StageContext
from kitchen_assets.control import Node, loop
from kitchen_resources.errors import DataError
from tests.workflows.own import OwnBench, made


@pytest.fixture
def bench(tmp_path: Path) -> OwnBench:
    return OwnBench(tmp_path)


def test_a_cleanup_that_fails_too_hides_no_failure(bench: OwnBench) -> None:
    def fails(_: StageContext) -> None:
        raise DataError("why it failed")

    def also(_: StageContext) -> None:
        raise OSError("and this")

    result = bench.run([made("work", fails, cleanup=also)], raises=False)
    failure = result.failure_data_for_node("mine__work")
    assert failure is not None
    assert "why it failed" in str(failure.user_failure_data)
    assert not bench.run([made("fine", lambda _: None, cleanup=also)], raises=False).success


@pytest.mark.parametrize("fails", ["", "validate", "execute"])
def test_cleanup_runs_whatever_happens(bench: OwnBench, fails: str) -> None:
    def act(name: str) -> Callable[[StageContext], None]:
        def run(_: StageContext) -> None:
            bench.say(name)
            if name == fails:
                raise DataError("planted")

        return run

    stages = [made("work", act("execute"), validate=act("validate"), cleanup=act("cleanup"))]
    result = bench.run(stages, raises=False)
    assert result.success is (fails == "")
    assert (
        bench.said
        == {
            "": ["validate", "execute", "cleanup"],
            "validate": ["validate", "cleanup"],
            "execute": ["validate", "execute", "cleanup"],
        }[fails]
    )


def test_a_stage_that_takes_too_long_is_broken_off(bench: OwnBench) -> None:
    def sleeps(_: StageContext) -> None:
        time.sleep(60)

    result = bench.run([made("sleeps", sleeps, timeout_s=0.2, cleanup=lambda _: bench.say("clean"))], raises=False)
    failure = result.failure_data_for_node("mine__sleeps")
    assert failure is not None
    assert "StageTimeout: stage sleeps: took longer than 0.2 s" in str(failure.user_failure_data)
    assert bench.said == ["clean"]


def test_so_it_is_in_a_thread(bench: OwnBench) -> None:
    def spins(_: StageContext) -> None:
        while True:
            time.sleep(0.01)

    seen: list[bool] = []

    def run() -> None:
        seen.append(bench.run([made("spins", spins, timeout_s=0.2)], raises=False).success)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize("inside", [False, True])
def test_what_fails_now_and_then_is_done_again(bench: OwnBench, inside: bool) -> None:
    def fails_twice(_: StageContext) -> None:
        bench.say("tried")
        if len(bench.said) < 3:
            raise OSError("not now")

    flaky = made("flaky", fails_twice, retries=2)
    stages: list[Node] = [loop("once", over=lambda _: [1], ordered=True, body=[flaky])] if inside else [flaky]
    assert bench.run(stages, raises=False).success
    assert bench.said == ["tried"] * 3


def test_what_no_repeat_can_mend_is_not_done_again(bench: OwnBench) -> None:
    def wrong(_: StageContext) -> None:
        bench.say("tried")
        raise DataError("a row is wrong")

    assert not bench.run([made("wrong", wrong, retries=5)], raises=False).success
    assert bench.said == ["tried"]


def test_an_attempt_starts_from_what_was_there_before_the_one_that_failed(bench: OwnBench) -> None:
    def counts(context: StageContext) -> None:
        context.state["count"] = context.state.get("count", 0) + 1
        bench.say(context.state["count"])
        if len(bench.said) < 3:
            raise OSError("not now")

    bench.run([made("counts", counts, retries=2)])
    assert bench.said == ["1", "1", "1"]
