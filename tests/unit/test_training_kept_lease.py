"""A launch keeps the lease from its first epoch to its last, though each is a step of its own: one trains, others wait."""

import threading
from typing import Any

import pytest

from kitchen_resources.checkpoints.head import Head
from kitchen_resources.errors import LeaseHeld
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.noop import NoopTrainer
from tests.engine import Engine


@pytest.fixture
def engine() -> Engine:
    return Engine()


def keeping() -> LiveTrainer:
    return LiveTrainer(NoopTrainer(), keeps_lease=True)


def test_nobody_who_waits_trains_the_next_epoch(engine: Engine) -> None:
    live = keeping()
    engine.run(live=live, run_id="first").ensure(1)
    holder = engine.head().holder
    assert holder is not None
    assert holder.run == "first"
    with pytest.raises(LeaseHeld, match="run first"):
        engine.run(lease_wait_s=0.1).ensure(2)
    # The first epoch is there: its own launch and the others need no lease for it.
    assert engine.run(lease_wait_s=0.0).ensure(1) == 0
    assert engine.run(live=live, run_id="first").ensure(2) == 3
    assert engine.run(live=live, run_id="first").finish().steps_done == 3
    assert engine.head().holder is None
    assert engine.run().finish().steps_done == 0


def test_who_waits_for_an_epoch_goes_on_when_its_holder_has_made_it(engine: Engine) -> None:
    live = keeping()
    waiting = threading.Event()
    done: list[int] = []

    def wait() -> None:
        run = engine.run(run_id="second", lease_wait_s=60.0)
        run._observer.say = lambda message: waiting.set() if "waiting" in message else None  # type: ignore[method-assign]
        done.append(run.ensure(2))

    engine.run(live=live, run_id="first").ensure(1)
    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(20)
    engine.run(live=live, run_id="first").ensure(2)
    thread.join(20)
    assert done == [0]
    head: Head = engine.head()
    assert head.holder is not None
    assert (head.holder.run, head.token) == ("first", 1)
    live.let_go()
    assert engine.head().holder is None


@pytest.mark.parametrize("how", ["lost", "another run"])
def test_a_kept_lease_that_is_of_no_use_is_given_back(engine: Engine, how: str) -> None:
    live = keeping()
    engine.run(live=live).ensure(1)
    fields: dict[str, Any] = {"seed": 1} if how == "another run" else {}
    if how == "lost":
        live._lease.release()  # type: ignore[union-attr]
    run = engine.run(live=live, **fields)
    assert run.finish().steps_done == (9 if how == "another run" else 6)
    assert engine.run().head().holder is None
    assert run.head().holder is None
    live.discard()


def test_a_failure_gives_it_back(engine: Engine) -> None:
    live = keeping()
    engine.run(live=live).ensure(1)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken")

    live.adapter.open = broken  # type: ignore[method-assign]
    live.discard()
    with pytest.raises(RuntimeError, match="broken"):
        engine.run(live=live).ensure(2)
    assert engine.head().holder is None
    live.let_go()
