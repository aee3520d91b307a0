"""The lease on a training run: one process trains it at a time, and a process that lost it can't publish."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import Head, Holder, decode_head, encode_head, head_key
from kitchen_resources.checkpoints.holder import is_gone, is_this_process, this_holder
from kitchen_resources.errors import KitchenError, LeaseHeld, LeaseLost

LEASE_TTL_S = 30.0
"""A holder on another host is taken to be gone when its heartbeat stood still for this long, in seconds."""

_POLL_S = 0.5

# The holders of this process that are at work or waiting. One that couldn't give its lease back, the store being
# away, is not among them: its process lives, and yet nobody need wait for it.
_held: set[str] = set()


class NotNeeded(Exception):
    """What a lease was wanted for was done meanwhile, by its holder."""


class Lease:
    """The right to change a run's head. Every change is one compare-and-swap on it.

    A thread renews the heartbeat. When the head was changed by anyone else the lease is lost for good: `check`
    and every change raise `LeaseLost` from then on.
    """

    def __init__(self, blobs: BlobStore, head: Head, version: str, holder: Holder, ttl_s: float) -> None:
        self._blobs = blobs
        self._key = head_key(head.fingerprint)
        self._head = head
        self._version = version
        self._holder = holder
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._lost: KitchenError | None = None
        self._beat_every_s = ttl_s / 5
        self._ttl_s = ttl_s
        self._thread = threading.Thread(target=self._beat, name=f"lease-{head.fingerprint[:8]}", daemon=True)
        self._thread.start()

    @property
    def head(self) -> Head:
        """The head as this holder last wrote it."""
        with self._lock:
            return self._head

    @property
    def token(self) -> int:
        """Number of this holder among all that the run has had."""
        return self._head.token

    def check(self) -> None:
        """Raise `LeaseLost` when another process took over, or the store could not be reached for too long."""
        if self._lost is not None:
            raise self._lost

    def update(self, change: Callable[[Head], Head]) -> Head:
        """Change the head.

        Raises:
            LeaseLost: Another process took the run over; nothing was changed.
        """
        with self._lock:
            self.check()
            return self._swap(change)

    def release(self) -> None:
        """Give the lease back; also after it was lost, and more than once."""
        self._stop.set()
        try:
            if self._thread is not threading.current_thread():
                self._thread.join()
            with self._lock:
                if self._lost is None:
                    try:
                        with suppress(LeaseLost):
                            self._swap(lambda head: replace(head, holder=None))
                    finally:
                        self._lost = LeaseLost("the lease was given back", where=self._key)
        finally:
            _held.discard(self._holder.id)

    def _swap(self, change: Callable[[Head], Head]) -> Head:
        while True:
            head = change(self._head)
            data = encode_head(head)
            version = self._blobs.compare_and_swap(self._key, self._version, data)
            if version is not None:
                self._head, self._version = head, version
                return head
            # A swap whose answer was lost, or that failed after it was done, looks like a lost race: see whose head
            # it is. As long as it names this holder, nobody else wrote it.
            stored = self._blobs.get(self._key)
            if stored is not None and stored.data == data:
                self._head, self._version = head, stored.version
                return head
            found = decode_head(stored.data, self._key) if stored else None
            if stored is None or found is None or found.holder is None or found.holder.id != self._holder.id:
                self._lost = LeaseLost(
                    f"the run was taken over by {_name(found.holder if found else None)}",
                    where=self._key,
                    fix="nothing: the other process goes on from the last published checkpoint",
                )
                raise self._lost
            self._head, self._version = found, stored.version

    def _beat(self) -> None:
        last_success = time.monotonic()
        while not self._stop.wait(self._beat_every_s):
            try:
                with self._lock:
                    if self._lost is not None or self._stop.is_set():
                        return
                    self._swap(lambda head: replace(head, heartbeat=head.heartbeat + 1))
                last_success = time.monotonic()
            except LeaseLost:
                return
            except KitchenError as error:
                # The store may be away for a moment; past the ttl another process may rightly take over.
                if time.monotonic() - last_success > self._ttl_s:
                    self._lost = LeaseLost(
                        f"the store could not be reached for {self._ttl_s:g} s: {error.what}", where=self._key
                    )
                    return


def acquire(
    blobs: BlobStore,
    fingerprint: str,
    *,
    run: str,
    wait_s: float,
    ttl_s: float = LEASE_TTL_S,
    on_wait: Callable[[Holder], None] = lambda holder: None,
    needed: Callable[[Head], bool] = lambda head: True,
) -> Lease:
    """Take the lease of a run, waiting for its holder to finish or to be gone.

    Args:
        blobs: The store.
        fingerprint: The run.
        run: Name of the work, for messages of others.
        wait_s: How long to wait for a living holder, in seconds.
        ttl_s: See `LEASE_TTL_S`; a holder on this host whose process is gone is replaced at once.
        on_wait: Called once when there is someone to wait for.
        needed: Whether the lease is still wanted, by the head that is seen while waiting.

    Raises:
        LeaseHeld: The holder still lives after `wait_s`.
        NotNeeded: It isn't wanted any more.
    """
    holder = this_holder(run)
    _held.add(holder.id)
    try:
        return _take(blobs, fingerprint, holder, wait_s, ttl_s, on_wait, needed)
    except BaseException:
        _held.discard(holder.id)
        raise


def _take(
    blobs: BlobStore,
    fingerprint: str,
    holder: Holder,
    wait_s: float,
    ttl_s: float,
    on_wait: Callable[[Holder], None],
    needed: Callable[[Head], bool],
) -> Lease:
    key = head_key(fingerprint)
    deadline = time.monotonic() + wait_s
    seen: tuple[int, int] | None = None
    seen_at = 0.0
    told = False
    while True:
        stored = blobs.get(key)
        head = decode_head(stored.data, key) if stored else Head(fingerprint)
        if told and not needed(head):
            raise NotNeeded
        now = time.monotonic()
        if (head.token, head.heartbeat) != seen:
            seen, seen_at = (head.token, head.heartbeat), now
        if stored is not None and head.holder == holder:
            # Taken by a swap whose answer was lost.
            return Lease(blobs, head, stored.version, holder, ttl_s)
        if head.holder is None or is_free(head.holder) or now - seen_at > ttl_s:
            taken = replace(head, holder=holder, token=head.token + 1, heartbeat=0)
            version = blobs.compare_and_swap(key, stored.version if stored else None, encode_head(taken))
            if version is not None:
                return Lease(blobs, taken, version, holder, ttl_s)
            continue
        if now >= deadline:
            raise LeaseHeld(
                f"is being trained by {_name(head.holder)}, and was still after {wait_s:g} s",
                where=f"run {fingerprint[:12]}",
                fix="wait for it, or raise lease_wait_s",
            )
        if not told:
            on_wait(head.holder)
            told = True
        time.sleep(min(_POLL_S, max(deadline - now, 0.01)))


def is_free(holder: Holder) -> bool:
    """Whether a holder is known not to be at work any more: its process is gone, or is this one and holds it not."""
    return is_gone(holder) or (is_this_process(holder) and holder.id not in _held)


def _name(holder: Holder | None) -> str:
    if holder is None:
        return "nobody"
    run = f"run {holder.run}, " if holder.run else ""
    return f"{run}process {holder.pid} on {holder.host.split('/')[0]}"
