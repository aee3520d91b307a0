"""Losing the lease: who was taken over changes nothing, and what only looks like a loss is none."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.checkpoints.head import Head, encode_head
from kitchen_resources.checkpoints.lease import Lease, acquire
from kitchen_resources.errors import BlobError, LeaseLost
from tests.faulty_blobs import FaultyBlobs, RetryingBlobs, is_away
from tests.unit.checkpoint_drafts import KEY, RUN
from tests.unit.lease_bench import END, Clock, foreign, stored, wait_until, write


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


# Fencing


def test_who_was_taken_over_changes_nothing_any_more(blobs: MemoryBlobs, take: Callable[..., Lease]) -> None:
    lease = take()
    theirs = Head(RUN, holder=foreign(), token=2)
    write(blobs, theirs)
    with pytest.raises(LeaseLost) as lost:
        lease.update(lambda head: replace(head, end=END))
    assert str(lost.value) == (
        f"{KEY}: the run was taken over by run run-9, process 1 on other\n"
        "  fix: nothing: the other process goes on from the last published checkpoint"
    )
    assert lost.value.mendable
    with pytest.raises(LeaseLost):
        lease.check()
    lease.release()
    assert stored(blobs) == theirs


def test_who_was_taken_over_by_one_that_has_finished_changes_nothing(
    blobs: MemoryBlobs, take: Callable[..., Lease]
) -> None:
    lease = take()
    theirs = Head(RUN, token=2, end=END)
    write(blobs, theirs)
    with pytest.raises(LeaseLost, match="taken over by nobody"):
        lease.update(lambda head: replace(head, end=None))
    assert stored(blobs) == theirs


def test_a_head_that_was_deleted_is_not_written_again(blobs: MemoryBlobs, take: Callable[..., Lease]) -> None:
    lease = take()
    blobs.delete(KEY)
    with pytest.raises(LeaseLost, match="taken over by nobody"):
        lease.update(lambda head: replace(head, end=END))
    assert blobs.get(KEY) is None


# Answers that were lost


class Once:
    """Fails the first swap after `arm`."""

    def __init__(self) -> None:
        self.armed = False

    def __call__(self, verb: str, key: str) -> None:
        if self.armed and verb == "compare_and_swap":
            self.armed = False
            is_away(verb, key)


def test_a_change_whose_answer_was_lost_is_there_and_the_lease_goes_on(
    blobs: MemoryBlobs, take: Callable[..., Lease]
) -> None:
    lost = Once()
    lease = take(FaultyBlobs(blobs, after=lost))
    lost.armed = True
    with pytest.raises(BlobError, match="the store is away"):
        lease.update(lambda head: replace(head, end=END))
    assert stored(blobs).end == END
    # The next change starts from what is really stored.
    lease.update(lambda head: replace(head, end=replace(END, step=head.end.step + 1 if head.end else 0)))
    assert stored(blobs).end == lease.head.end == replace(END, step=2)


def test_a_change_that_was_done_and_reported_as_lost_is_recognised() -> None:
    blobs = RetryingBlobs()
    lease = acquire(blobs, RUN, run="me", wait_s=0.0)
    blobs.repeats = 1
    calls: list[int] = []

    def change(head: Head) -> Head:
        calls.append(head.heartbeat)
        return replace(head, end=replace(END, step=head.end.step + 1 if head.end else 1))

    assert lease.update(change).end == replace(END, step=1)
    assert stored(blobs).end == replace(END, step=1)
    assert calls == [0]
    blobs.repeats = 1
    lease.release()
    assert stored(blobs).holder is None


def test_taking_it_that_was_done_and_reported_as_lost_is_recognised(clock: Clock) -> None:
    blobs = RetryingBlobs()
    blobs.repeats = 1
    lease = acquire(blobs, RUN, run="me", wait_s=0.0)
    assert lease.token == 1
    lease.update(lambda head: replace(head, end=END))
    assert stored(blobs).end == END
    assert clock.sleeps == []
    lease.release()


def test_a_taking_whose_answer_was_lost_holds_nobody_up(blobs: MemoryBlobs, clock: Clock) -> None:
    lost = Once()
    lost.armed = True
    with pytest.raises(BlobError):
        acquire(FaultyBlobs(blobs, after=lost), RUN, run="me", wait_s=0.0)
    lease = acquire(blobs, RUN, run="me again", wait_s=0.0)
    assert lease.token == 2
    assert clock.sleeps == []
    lease.release()


# The heartbeat


def test_the_heartbeat_goes_up_and_changes_are_kept(blobs: MemoryBlobs, take: Callable[..., Lease]) -> None:
    lease = take(ttl_s=0.01)
    lease.update(lambda head: replace(head, end=END))
    wait_until(lambda: stored(blobs).heartbeat >= 3)
    assert stored(blobs).end == END
    assert stored(blobs).token == 1
    lease.check()


def test_changes_and_heartbeats_at_once_lose_nothing(blobs: MemoryBlobs, take: Callable[..., Lease]) -> None:
    lease = take(ttl_s=0.001)
    for number in range(300):
        lease.update(lambda head: replace(head, end=replace(END, step=(head.end.step if head.end else 0) + 1)))
        assert lease.head.end == replace(END, step=number + 1)
    wait_until(lambda: lease.head.heartbeat > 0)
    assert stored(blobs).end == replace(END, step=300)


def test_the_heartbeat_notices_that_it_was_taken_over(blobs: MemoryBlobs, take: Callable[..., Lease]) -> None:
    lease = take(ttl_s=0.01)
    while True:
        found = blobs.get(KEY)
        assert found is not None
        if blobs.compare_and_swap(KEY, found.version, encode_head(Head(RUN, holder=foreign(), token=2))):
            break
    wait_until(lambda: lease._lost is not None)
    with pytest.raises(LeaseLost, match="taken over by run run-9"):
        lease.check()


def test_no_heartbeat_comes_in_between_while_a_change_is_made(blobs: MemoryBlobs, take: Callable[..., Lease]) -> None:
    lease = take(ttl_s=0.005)
    seen: list[int] = []

    def change(head: Head) -> Head:
        seen.append(stored(blobs).heartbeat)
        threading.Event().wait(0.05)
        seen.append(stored(blobs).heartbeat)
        return replace(head, end=END)

    lease.update(change)
    assert seen[0] == seen[1]
    wait_until(lambda: stored(blobs).heartbeat > seen[1])


class Outage:
    """Lets every verb fail, each costing a second of the lease's clock, until `count` of them have."""

    def __init__(self, clock: Clock, blobs: FaultyBlobs, count: int) -> None:
        self.failed = 0
        self._clock, self._blobs, self._count = clock, blobs, count
        blobs.before = self

    def __call__(self, verb: str, key: str) -> None:
        self.failed += 1
        self._clock.now += 1.0
        if self.failed == self._count:
            self._blobs.before = lambda verb, key: None
        is_away(verb, key)


def test_a_store_that_is_away_for_less_than_the_ttl_costs_nothing_however_often(
    blobs: MemoryBlobs, take: Callable[..., Lease], clock: Clock
) -> None:
    away = FaultyBlobs(blobs)
    lease = take(away, ttl_s=0.01)
    lease._ttl_s = 5.0
    for _ in range(3):
        outage = Outage(clock, away, 4)
        wait_until(lambda outage=outage: outage.failed == 4)  # type: ignore[misc]
        beats = stored(blobs).heartbeat
        wait_until(lambda beats=beats: stored(blobs).heartbeat > beats + 1)  # type: ignore[misc]
        lease.check()
    assert lease.update(lambda head: replace(head, end=END)).end == END


def test_a_store_that_is_away_for_longer_than_the_ttl_costs_the_lease(
    blobs: MemoryBlobs, take: Callable[..., Lease], clock: Clock
) -> None:
    away = FaultyBlobs(blobs)
    lease = take(away, ttl_s=0.01)
    lease._ttl_s = 5.0
    outage = Outage(clock, away, 1000)
    wait_until(lambda: lease._lost is not None)
    assert outage.failed == 6
    with pytest.raises(LeaseLost, match=f"^{KEY}: the store could not be reached for 5 s: the store is away$"):
        lease.check()
    away.before = lambda verb, key: None
    before = blobs.get(KEY)
    with pytest.raises(LeaseLost):
        lease.update(lambda head: replace(head, end=END))
    assert blobs.get(KEY) == before


def test_giving_back_what_another_has_taken_is_no_error(blobs: MemoryBlobs, take: Callable[..., Lease]) -> None:
    lease = take()
    theirs = Head(RUN, holder=foreign(), token=2)
    write(blobs, theirs)
    lease.release()
    assert stored(blobs) == theirs
    with pytest.raises(LeaseLost):
        lease.check()
