"""A run that is asked to stop ends at the end of its step, with what it has done published where that is exact."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.training import stopping
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.stopping import StopRequest
from tests.engine import Engine, HookedTrainer, epoch_ends, states, undisturbed

SIGNALS = [signal.SIGINT, signal.SIGTERM]


class Interrupted(BaseException):
    """What the handlers of the process raise, as those of an orchestrator do."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[int, Any]]:
    """Handlers of the process that raise at once; they must be there again when all is over."""

    def raise_at_once(number: int, frame: object) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, raise_at_once) for number in SIGNALS}
    yield dict.fromkeys(SIGNALS, raise_at_once)
    assert all(signal.getsignal(number) is raise_at_once for number in SIGNALS)
    for number, handler in before.items():
        signal.signal(number, handler)


def signalled_at(step: int, number: int = signal.SIGINT, times: int = 1) -> HookedTrainer:
    """A backend in whose step a signal arrives."""

    def hit(reached: int) -> None:
        if reached == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return HookedTrainer(hit)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_step_ends_and_is_published_and_the_next_run_goes_on_there(number: int) -> None:
    engine = Engine(adapter=signalled_at(5, number))
    with pytest.raises(Interrupted) as raised:
        engine.finish()
    assert raised.value.args == (number,)
    head = engine.head()
    assert (list(states(head)), head.holder, head.end) == ([3, 5], None, None)
    assert not head.entries()[-1].epoch_complete
    said = "stopped on request at step 5, which is published; the next run goes on from there"
    assert said in engine.told.said
    assert list(engine.blobs.scratch().glob("runs/*/*")) == []
    again = engine.with_(adapter=NoopTrainer())
    assert again.finish().steps_done == 4
    assert "going on from step 5 (epoch 2)" in again.told.said
    assert epoch_ends(engine.head()) == undisturbed()


def test_at_the_end_of_an_epoch_that_checkpoint_is_published_once() -> None:
    engine = Engine(adapter=signalled_at(6))
    with pytest.raises(Interrupted):
        engine.finish()
    assert [entry.step for entry in engine.head().checkpoints] == [3, 6]
    assert engine.with_(adapter=NoopTrainer()).finish().steps_done == 3


def test_a_step_that_is_saved_anyway_is_saved_once() -> None:
    engine = Engine(adapter=signalled_at(2))
    with pytest.raises(Interrupted):
        engine.finish(checkpoint_steps=2)
    assert [entry.step for entry in engine.head().checkpoints] == [2]


def test_the_same_request_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # A terminal sends Ctrl-C to a run and to the processes of its steps, and the run passes it on to them.
    engine = Engine(adapter=signalled_at(5, times=3))
    with pytest.raises(Interrupted):
        engine.finish()
    assert list(states(engine.head())) == [3, 5]


def test_a_second_signal_raises_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_SAME_S", 0.0)
    engine = Engine(adapter=signalled_at(5, times=2))
    with pytest.raises(Interrupted):
        engine.finish()
    assert list(states(engine.head())) == [3]
    assert engine.head().holder is None


def test_a_step_that_takes_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE_S", 0.01)

    def hang(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            while True:
                time.sleep(0.001)

    engine = Engine(adapter=HookedTrainer(hang))
    with pytest.raises(Interrupted):
        engine.finish()
    assert list(states(engine.head())) == [3]


def test_a_publication_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE_S", 0.05)
    engine = Engine(adapter=signalled_at(5))
    put = engine.store.blobs.put_if_absent

    def slow(key: str, data: bytes) -> bool:
        time.sleep(0.1)
        return put(key, data)

    def publish(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(engine.blobs, "put_if_absent", slow)

    engine = engine.with_(adapter=HookedTrainer(publish))
    with pytest.raises(Interrupted):
        engine.finish()
    assert list(states(engine.head())) == [3, 5]


def test_between_epochs_the_signal_is_the_process_s_own() -> None:
    engine = Engine()
    run = engine.run()
    run.ensure(1)
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGINT)
    run.ensure(2)
    assert list(states(engine.head())) == [3, 6]


def test_inside_a_block_of_samples_nothing_is_published() -> None:
    fields = {
        "model": "embedded:tiny",
        "environment": {"name": "arithmetic"},
        "steps_per_epoch": 4,
        "batch_size": 8,
        "group_size": 4,
        "groups_per_batch": 2,
        "epochs": 2,
        "max_length": 64,
    }
    recipe = bind(ReinforcementRecipe, fields, RecipeDefinition(name="reinforcement"))
    assert not NoopTrainer().capabilities().is_exact_inside(recipe)
    assert recipe.draws(1) is not None
    events = _Events()
    stop = events.stop

    def ask_inside() -> None:
        with stop.listening():
            os.kill(os.getpid(), signal.SIGINT)
            events.published.stopping(exact=False)

    with pytest.raises(Interrupted):
        ask_inside()
    assert events.said == ["stopped on request; the next run goes on from the last published checkpoint"]


class _Events:
    """The events of an epoch, with a stop request of their own."""

    def __init__(self) -> None:
        from kitchen_resources.training.events import PublishingEvents

        self.stop = StopRequest()
        self.said: list[str] = []
        nothing: Any = None
        self.published = PublishingEvents(
            launch=nothing,
            lease=nothing,
            record=nothing,
            parent=None,
            inside=None,
            epoch=1,
            first_step=1,
            planned=nothing,
            published=nothing,
            stop=self.stop,
            say=self.said.append,
        )


def test_in_another_thread_nothing_is_changed(handlers: dict[int, Any]) -> None:
    found: list[Any] = []

    def work() -> None:
        with StopRequest().listening():
            found.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == list(handlers.values())


def test_without_a_handler_it_is_a_keyboard_interrupt(handlers: dict[int, Callable[..., None]]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), StopRequest().listening():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, handlers[signal.SIGTERM])


def test_what_a_process_ignores_is_ignored(handlers: dict[int, Callable[..., None]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGINT, handlers[signal.SIGINT])
