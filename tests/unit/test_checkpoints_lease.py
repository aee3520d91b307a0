"""The lease: one process trains a run at a time, who waits for it is told for whom, and a dead one is replaced."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.checkpoints import lease as lease_module
from kitchen_resources.checkpoints.head import Head, Holder
from kitchen_resources.checkpoints.holder import this_holder
from kitchen_resources.checkpoints.lease import Lease, acquire
from kitchen_resources.errors import BlobError, CheckpointError, LeaseHeld, LeaseLost
from tests.faulty_blobs import FaultyBlobs, is_away
from tests.unit.checkpoint_drafts import KEY, RUN
from tests.unit.lease_bench import END, Clock, foreign, stored, write


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


# Taking and giving back


def test_a_lease_is_taken_changed_under_and_given_back(blobs: MemoryBlobs, take: Callable[..., Lease]) -> None:
    lease = take(run="run-1")
    held = stored(blobs)
    assert held.holder is not None
    assert (held.holder.run, held.token, held.heartbeat) == ("run-1", 1, 0)
    assert lease.update(lambda head: replace(head, end=END)) == replace(held, end=END)
    assert stored(blobs) == lease.head == replace(held, end=END)
    lease.release()
    assert stored(blobs) == Head(RUN, token=1, end=END)


def test_each_holder_has_the_next_token_and_what_was_written_stays(
    blobs: MemoryBlobs, take: Callable[..., Lease]
) -> None:
    for token in (1, 2, 3):
        lease = take()
        assert lease.token == token
        lease.update(lambda head: replace(head, end=replace(END, step=head.token)))
        lease.release()
    assert stored(blobs) == Head(RUN, token=3, end=replace(END, step=3))


def test_after_it_was_given_back_nothing_can_be_changed(blobs: MemoryBlobs, take: Callable[..., Lease]) -> None:
    lease = take()
    lease.release()
    lease.release()
    before = blobs.get(KEY)
    with pytest.raises(LeaseLost, match=f"^{KEY}: the lease was given back$"):
        lease.check()
    with pytest.raises(LeaseLost):
        lease.update(lambda head: replace(head, end=END))
    assert blobs.get(KEY) == before


def test_a_change_that_fails_changes_nothing_and_keeps_the_lease(
    blobs: MemoryBlobs, take: Callable[..., Lease]
) -> None:
    lease = take()
    before = blobs.get(KEY)
    with pytest.raises(CheckpointError, match="no checkpoint at step 3"):
        lease.update(lambda head: head.with_entry(3, payload="pruned"))
    assert blobs.get(KEY) == before
    lease.check()


def test_no_thread_is_left_when_it_was_given_back(take: Callable[..., Lease]) -> None:
    name = f"lease-{RUN[:8]}"
    lease = take()
    assert name in [thread.name for thread in threading.enumerate()]
    lease.release()
    assert name not in [thread.name for thread in threading.enumerate()]


# Waiting


def test_a_living_holder_is_waited_for_and_then_named(
    blobs: MemoryBlobs, take: Callable[..., Lease], clock: Clock
) -> None:
    first = take(run="run-7")
    waited: list[Holder] = []
    with pytest.raises(LeaseHeld) as held:
        acquire(blobs, RUN, run="run-8", wait_s=1.2, on_wait=waited.append)
    holder = first.head.holder
    assert holder is not None
    assert str(held.value) == (
        f"run {RUN[:12]}: is being trained by run run-7, process {holder.pid} on {holder.host.split('/')[0]}, "
        "and was still after 1.2 s\n  fix: wait for it, or raise lease_wait_s"
    )
    assert held.value.mendable
    assert waited == [holder]
    assert clock.sleeps == pytest.approx([0.5, 0.5, 0.2])
    first.check()


def test_without_a_wait_it_says_so_at_once(blobs: MemoryBlobs, take: Callable[..., Lease], clock: Clock) -> None:
    take()
    with pytest.raises(LeaseHeld):
        acquire(blobs, RUN, run="other", wait_s=0.0)
    assert clock.sleeps == []


def test_a_waiter_takes_the_lease_when_it_is_given_back(
    blobs: MemoryBlobs, take: Callable[..., Lease], clock: Clock
) -> None:
    first = take()
    clock.at_sleep = first.release
    second = take(run="next", wait_s=100.0)
    assert second.token == 2
    assert len(clock.sleeps) == 1


def test_threads_hold_it_one_at_a_time(blobs: MemoryBlobs) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> int:
        lease = acquire(blobs, RUN, run=str(number), wait_s=60.0)
        inside.append(number)
        most.append(len(inside))
        lease.update(lambda head: replace(head, end=replace(END, step=(head.end.step if head.end else 0) + 1)))
        inside.remove(number)
        lease.release()
        return lease.token

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(lease_module, "_POLL_S", 0.001)
        tokens = list(pool.map(work, range(8)))
    assert sorted(tokens) == list(range(1, 9))
    assert most == [1] * 8
    assert stored(blobs).end == replace(END, step=8)


# Taking over


def test_a_holder_elsewhere_is_replaced_when_its_heartbeat_stood_still_for_the_ttl(
    blobs: MemoryBlobs, take: Callable[..., Lease], clock: Clock
) -> None:
    write(blobs, Head(RUN, holder=foreign(), token=5, heartbeat=3))
    lease = take(wait_s=3600.0, ttl_s=30.0)
    assert lease.token == 6
    assert lease.head.heartbeat == 0
    assert 30.0 < sum(clock.sleeps) <= 31.0


def test_the_ttl_counts_on_the_waiters_clock_from_the_last_sign_of_life(
    blobs: MemoryBlobs, take: Callable[..., Lease], clock: Clock
) -> None:
    write(blobs, Head(RUN, holder=foreign(), token=5))

    def beat() -> None:
        # 40 signs of life, 20 s in all: less than the ttl lies between any two.
        if len(clock.sleeps) <= 40:
            write(blobs, replace(stored(blobs), heartbeat=len(clock.sleeps)))

    clock.at_sleep = beat
    assert take(wait_s=3600.0, ttl_s=10.0).token == 6
    assert 30.0 < sum(clock.sleeps) <= 31.0


def test_another_holder_in_between_starts_the_ttl_anew(
    blobs: MemoryBlobs, take: Callable[..., Lease], clock: Clock
) -> None:
    write(blobs, Head(RUN, holder=foreign(), token=5))

    def hand_over() -> None:
        if len(clock.sleeps) == 40:
            write(blobs, Head(RUN, holder=foreign(id="third"), token=6))

    clock.at_sleep = hand_over
    assert take(wait_s=3600.0, ttl_s=30.0).token == 7
    assert 50.0 < sum(clock.sleeps) <= 51.0


def test_who_waits_for_less_than_the_ttl_does_not_take_over(blobs: MemoryBlobs, clock: Clock) -> None:
    write(blobs, Head(RUN, holder=foreign(), token=5))
    with pytest.raises(LeaseHeld, match="run run-9, process 1 on other, and was still after 29 s"):
        acquire(blobs, RUN, run="me", wait_s=29.0, ttl_s=30.0)
    assert stored(blobs) == Head(RUN, holder=foreign(), token=5)


def test_a_holder_of_this_host_whose_process_is_gone_is_replaced_at_once(
    blobs: MemoryBlobs, take: Callable[..., Lease], clock: Clock
) -> None:
    write(blobs, Head(RUN, holder=replace(this_holder("dead"), started=1.0), token=5))
    assert take().token == 6
    assert clock.sleeps == []


def test_a_lease_that_this_process_could_not_give_back_is_taken_again_at_once(
    blobs: MemoryBlobs, take: Callable[..., Lease], clock: Clock
) -> None:
    away = FaultyBlobs(blobs)
    lease = take(away)
    away.before = is_away
    with pytest.raises(BlobError):
        lease.release()
    assert stored(blobs).holder is not None
    away.before = lambda verb, key: None
    assert take().token == 2
    assert clock.sleeps == []


def test_of_two_that_race_for_a_free_lease_one_gets_it(blobs: MemoryBlobs, clock: Clock) -> None:
    raced: list[Lease] = []

    def rival(verb: str, key: str) -> None:
        if verb == "compare_and_swap" and not raced:
            raced.append(acquire(blobs, RUN, run="rival", wait_s=0.0))

    with pytest.raises(LeaseHeld, match="run rival"):
        acquire(FaultyBlobs(blobs, before=rival), RUN, run="me", wait_s=0.0)
    assert stored(blobs).token == 1
    raced[0].release()
