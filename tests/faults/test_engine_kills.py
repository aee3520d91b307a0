"""The engine on a local store, killed by SIGKILL at any line: run again, it ends as if nothing had happened."""

import os
import random
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kitchen_resources
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints import lease as lease_module
from kitchen_resources.checkpoints.head import RunEnd
from kitchen_resources.checkpoints.lease import acquire, is_free
from kitchen_resources.errors import LeaseHeld, LeaseLost
from tests.engine import (
    ROWS,
    Engine,
    HookedTrainer,
    Told,
    epoch_ends,
    needed_files,
    payload_keys,
    states,
    undisturbed,
)
from tests.faults.forked import LineCounter, Say, forked

FIELDS: dict[str, Any] = {"checkpoint_steps": 2, "keep_last": 2}
STEPS = [2, 3, 4, 6, 8, 9]
PACKAGE = Path(kitchen_resources.__file__).parent
COUNTED = tuple(str(PACKAGE / name) for name in ("checkpoints", "blobs", "training", "launch.py"))


@pytest.fixture(scope="module", autouse=True)
def warm() -> dict[int, str]:
    """The states of an undisturbed run; it also imports everything before the first fork."""
    return undisturbed(**FIELDS)


class Saying(Told):
    """An observer that says what it is told."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def say(self, message: str) -> None:
        self._say(f"said {message}")

    def published(self, entry: Any) -> None:
        self._say(f"published {entry.step} {entry.state_digest}")


def train(root: Path, deadly: int = 0) -> Callable[[Say], None]:
    """The work of a child: a whole launch, which dies at a line; it says at the end how many lines it ran."""

    def work(say: Say) -> None:
        engine = Engine(blobs=LocalBlobs(root), adapter=HookedTrainer(lambda step: say(f"step {step}")))
        engine.told = Saying(say)
        lines = LineCounter(COUNTED, deadly)
        lines.start()
        finished = engine.finish(**FIELDS)
        lines.stop()
        say(f"done {finished.steps_done} {lines.count}")

    return work


def words(lines: list[str], first: str) -> list[list[str]]:
    return [line.split(" ")[1:] for line in lines if line.split(" ")[0] == first]


def check_between(root: Path, published: dict[int, str]) -> None:
    """After a kill: what was published is there, and whatever is there is whole."""
    engine = Engine(blobs=LocalBlobs(root))
    found: dict[int, str] = {}
    for fingerprint in engine.store.find(""):
        head = engine.store.head(fingerprint)
        found = states(head)
        assert len(head.checkpoints) == len(found), "a checkpoint was published twice"
        for entry in head.entries():
            if entry.payload == "present":
                engine.store.checkout(fingerprint, entry, root / ".scratch" / "seen")
    assert published.items() <= found.items(), "a published checkpoint was lost"


def check_end(root: Path) -> None:
    """At the end: everything is there once, and nothing else."""
    blobs = LocalBlobs(root)
    engine = Engine(blobs=blobs)
    head = engine.head()
    assert epoch_ends(head) == undisturbed(**FIELDS)
    assert [entry.step for entry in head.checkpoints] == STEPS
    assert [entry.payload for entry in head.entries()] == ["pruned"] * 4 + ["present"] * 2
    # Killed just before it was given back, a lease names a dead process; nobody waits for that.
    assert head.holder is None or is_free(head.holder)
    assert head.end == RunEnd("completed", epoch=3, step=9)
    for entry in head.entries():
        rows = engine.store.ledger(engine.store.manifest(entry))
        if entry.epoch_complete:
            assert sorted(row for step in rows for row in step) == list(range(ROWS))
    assert len(payload_keys(engine)) == needed_files(engine) == 2
    assert os.listdir(root / ".temp") == []
    assert list((root / ".scratch" / "runs").glob("*/*")) == []
    assert [key for key in blobs.list("launches/") if "failed" in key] == []


class Campaign:
    """Launches of one recipe on one store, one after the other, and what they published before they died."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.published: dict[int, str] = {}
        self.kills = 0
        self.steps = 0

    def launch(self, deadly: int = 0, kill_after: int = 0) -> bool:
        """One launch, killed at a line of its code, or from outside when it has said so many lines.

        Returns:
            Whether it got through.
        """
        with forked(train(self.root, deadly)) as child:
            lines = [child.line() for _ in range(kill_after)]
            if kill_after and lines[-1]:
                child.kill()
            lines += child.rest()
            status = child.wait()
        assert [line for line in lines if line.startswith("failed:")] == []
        assert [line for line in lines if "waiting" in line] == [], "a dead holder was waited for"
        for step, digest in words(lines, "published"):
            assert self.published.setdefault(int(step), digest) == digest
        self.steps += len(words(lines, "step"))
        assert status in (0, -signal.SIGKILL)
        if status:
            self.kills += 1
            check_between(self.root, self.published)
        return status == 0

    def finish(self) -> None:
        """Look at what there is at the end, and that there is nothing left to do."""
        assert self.published.items() <= states(Engine(blobs=LocalBlobs(self.root)).head()).items()
        check_end(self.root)
        with forked(train(self.root)) as child:
            assert words(child.rest(), "done")[0][0] == "0"
        check_end(self.root)


def lines_of_a_launch(root: Path) -> int:
    with forked(train(root)) as child:
        ((steps, lines),) = words(child.rest(), "done")
    assert steps == "9"
    return int(lines)


@pytest.mark.parametrize("least", [110, pytest.param(140, marks=pytest.mark.full)])
def test_killed_at_any_line_it_ends_as_undisturbed(
    tmp_path: Path, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(least)
    total = lines_of_a_launch(tmp_path / "count")
    assert total > 3000
    kills = runs = steps = 0
    while kills < least:
        runs += 1
        campaign = Campaign(tmp_path / f"run-{runs}")
        while not campaign.launch(deadly=chance.randint(1, total)):
            pass
        campaign.finish()
        kills += campaign.kills
        steps += campaign.steps
    # An interval between checkpoints is two steps: a kill repeats at most so many.
    assert 9 * runs <= steps <= 9 * runs + 2 * kills
    with capsys.disabled():
        print(
            f"\nnoop: {kills} kills at random lines of {total} in {runs} runs; {steps - 9 * runs} steps made again, 0 lost"
        )


@pytest.mark.parametrize("least", [30, pytest.param(60, marks=pytest.mark.full)])
def test_killed_from_outside_it_ends_as_undisturbed(
    tmp_path: Path, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(least)
    kills = runs = 0
    while kills < least:
        runs += 1
        campaign = Campaign(tmp_path / f"run-{runs}")
        while not campaign.launch(kill_after=chance.randint(1, 14)):
            pass
        campaign.finish()
        kills += campaign.kills
    with capsys.disabled():
        print(f"\nnoop: {kills} kills from outside in {runs} runs, 0 lost")


def test_processes_at_once_train_each_step_once(tmp_path: Path) -> None:
    def work(say: Say) -> None:
        lease_module._POLL_S = 0.005
        engine = Engine(blobs=LocalBlobs(tmp_path / "store"))
        say(f"done {engine.finish(**FIELDS, lease_wait_s=60.0).steps_done}")

    with forked(work) as one, forked(work) as two, forked(work) as three, forked(work) as four:
        done = sorted(int(child.line().removeprefix("done ")) for child in (one, two, three, four))
    assert done == [0, 0, 0, 9]
    check_end(tmp_path / "store")


# One holder


RUN = "ab" * 32


def hold(root: Path) -> Callable[[Say], None]:
    """Takes the lease, says so, and on SIGUSR1 tries to change the head."""

    def work(say: Say) -> None:
        # Before the lease's thread is started, which inherits it.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        lease = acquire(LocalBlobs(root), RUN, run="theirs", wait_s=0.0, ttl_s=3600.0)
        say("holds")
        signal.sigwait([signal.SIGUSR1])
        try:
            lease.update(lambda head: replace(head, end=RunEnd("completed", 1, 1)))
            say("changed it")
        except LeaseLost as error:
            say(f"lost: {error.what}")

    return work


def test_a_living_process_is_named_and_a_killed_one_replaced_at_once(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "store")
    with forked(hold(tmp_path / "store")) as child:
        assert child.line() == "holds"
        with pytest.raises(LeaseHeld, match=f"is being trained by run theirs, process {child.pid} on "):
            acquire(blobs, RUN, run="mine", wait_s=0.0)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        lease = acquire(blobs, RUN, run="mine", wait_s=0.0)
    assert lease.token == 2
    lease.release()


def test_a_stopped_process_that_was_taken_over_changes_nothing_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = LocalBlobs(tmp_path / "store")
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    with forked(hold(tmp_path / "store")) as child:
        assert child.line() == "holds"
        child.kill(signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(lease_module.time, "monotonic", lambda: clock[0])
            patch.setattr(lease_module.time, "sleep", sleep)
            lease = acquire(blobs, RUN, run="mine", wait_s=100.0, ttl_s=30.0)
        assert 30.0 < clock[0] < 32.0
        child.kill(signal.SIGUSR1)
        child.kill(signal.SIGCONT)
        assert (
            child.line()
            == f"lost: the run was taken over by run mine, process {os.getpid()} on {socket.gethostname()}"
        )
    assert lease.update(lambda head: head).end is None
    lease.release()
