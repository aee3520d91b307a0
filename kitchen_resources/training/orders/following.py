"""A `Session` whose epochs are orders: places one, or goes on following the one that a lost launcher has placed."""

import base64
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.errors import BackendError, BlobError, DiskFull, KitchenError, LeaseLost
from kitchen_resources.training.orders.order import Order, fetch_files, orders_of
from kitchen_resources.training.orders.placing import Orderer, Value
from kitchen_resources.training.orders.port import Calls, Ended
from kitchen_resources.training.port import (
    CheckpointDraft,
    EpochResult,
    LocalCheckpoint,
    TrainingEvents,
    TrainingJob,
)
from kitchen_resources.training.pytorch.export import export_model
from kitchen_resources.training.worker.job_file import steps_from
from kitchen_resources.training.worker.session import told_error


@dataclass(frozen=True)
class Patience:
    """How long a launcher waits, in seconds.

    Attributes:
        look: Between two looks at what was said.
        ask: Between two questions to the service.
        start: For a call to begin.
        silence: For a service that doesn't answer.
        stop: For the draft of a call that was asked to stop.
    """

    look: float = 2.0
    ask: float = 15.0
    start: float = 3600.0
    silence: float = 900.0
    stop: float = 120.0


class OrdersSession:
    """See the module. What it keeps between epochs is no state: which files are stored.

    Args:
        job: What to train; it has a store.
        calls: The service.
        exact_inside: Whether a run can go on exactly from inside an epoch.
        called: Told of each call that is followed, by its id.
        patience: How long to wait for what.
    """

    def __init__(
        self,
        job: TrainingJob,
        calls: Calls,
        *,
        exact_inside: bool,
        called: Callable[[str], None],
        patience: Patience,
    ) -> None:
        assert job.blobs is not None
        self._job = job
        self._blobs = job.blobs
        self._calls = calls
        self._exact_inside = exact_inside
        self._called = called
        self._patience = patience
        self._orderer = Orderer(job.blobs, job, exact_inside=exact_inside)

    def train_epoch(self, epoch: int, parent: LocalCheckpoint | None, events: TrainingEvents) -> EpochResult:
        """See `Session.train_epoch`. An order that is under way is followed, and none is placed beside it."""
        events.check()
        order = self._under_way(epoch, parent)
        if order is None:
            order = self._place(epoch, parent, events)
        following = _Following(self._blobs, self._job, order, self._calls, self._patience, self._called)
        try:
            result = following.attend(parent, events, exact=self._exact_inside)
        except (LeaseLost, BlobError, DiskFull):
            # Whoever comes next goes on following it.
            raise
        except BaseException as error:
            # Where the service can't be reached it stays, is told to stop through the store, and is called off later.
            # A launcher that was taken over calls off nothing: the order is its successor's.
            with suppress(BackendError, BlobError, LeaseLost):
                events.check()
                call_off(order, self._calls, type(error).__name__)
            raise
        order.end("done")
        self._remove_folders_but(result.checkpoint.folder)
        return result

    def export(self, checkpoint: LocalCheckpoint, target: Path, *, merged: bool) -> None:
        """See `Session.export`."""
        export_model(self._job.base, self._job.serving(), checkpoint, target, merged=merged)

    def close(self) -> None:
        """See `Session.close`."""

    def _remove_folders_but(self, kept: Path) -> None:
        """Only now: until its end the epoch may have gone on from what the one before had published."""
        for folder in self._job.scratch.glob("order-*"):
            if folder != kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _place(self, epoch: int, parent: LocalCheckpoint | None, events: TrainingEvents) -> Order:
        value = self._orderer.order(epoch, parent, events)
        number = max((order.number for order in orders_of(self._blobs, self._job.fingerprint)), default=0) + 1
        order = Order(self._blobs, self._job.fingerprint, number)
        events.check()
        if not order.put("order", value):
            raise LeaseLost("another process has ordered meanwhile", where=f"run {self._job.fingerprint[:12]}")
        return order

    def _under_way(self, epoch: int, parent: LocalCheckpoint | None) -> Order | None:
        """The order that makes this epoch from here; any other that isn't over is called off."""
        found = None
        for order in orders_of(self._blobs, self._job.fingerprint):
            if order.get("over") is not None:
                # What a launcher that died had no time for, and what its call has said since.
                order.tidy()
                continue
            value = order.get("order")
            if found is None and value is not None and _leads_on(order, value, epoch, parent):
                found = order
                continue
            call_off(order, self._calls, "another order took its place")
        return found


class _Following:
    """One order as it is followed."""

    def __init__(
        self,
        blobs: BlobStore,
        job: TrainingJob,
        order: Order,
        calls: Calls,
        patience: Patience,
        called: Callable[[str], None],
    ) -> None:
        self._content = ContentStore(blobs)
        self._job = job
        self._order = order
        self._calls = calls
        self._patience = patience
        self._called = called
        self._call = ""
        self._is_begun = False
        self._heard = 0
        self._published: LocalCheckpoint | None = None
        self._drafted: Path | None = None

    def attend(self, parent: LocalCheckpoint | None, events: TrainingEvents, *, exact: bool) -> EpochResult:
        """Follow it to its end."""
        step = (self._order.get("heard") or {"step": 0})["step"]
        past = _Past(step=step, published=parent.global_step if parent and parent.restart == "all" else 0)
        self._make_call()
        began = asked = answered = time.monotonic()
        stop_by: float | None = None
        while True:
            if (done := self._hear(events, past)) is not None:
                return done
            now = time.monotonic()
            if stop_by is None and events.stopping(exact=exact and self._begun()):
                self._order.put("stop", {})
                stop_by = now + self._patience.stop
            if stop_by is not None and now > stop_by:
                events.stopping(exact=False)
            if now - asked >= self._patience.ask:
                asked = now
                try:
                    self._follow_claim()
                    ended = self._calls.ended(self._call)
                    answered = now
                except BackendError as error:
                    if not error.mendable or now - answered > self._patience.silence:
                        raise
                    ended = None
                looked_at = self._call
                self._follow_claim()
                if ended is not None and self._call != looked_at:
                    # Of two calls the other one carries it out.
                    continue
                if ended is not None:
                    # What it said last, before it is believed to say no more.
                    if (done := self._hear(events, past)) is not None:
                        return done
                    raise self._ended(ended)
                if not self._begun() and now - began > self._patience.start:
                    raise BackendError(
                        f"the call {self._call} has not begun in {self._patience.start:g} s",
                        where=self._calls.where,
                        fix="see at the service what it waits for, or raise start_deadline_s",
                        retriable=True,
                    )
            time.sleep(self._patience.look)

    # The call.

    def _make_call(self) -> None:
        """The call of the order; made, unless there is one. Of two only one carries it out: `carry_out`."""
        known = self._order.get("claim") or self._order.get("call")
        if known is None:
            self._order.put("call", {"call": self._calls.spawn(self._order.key)})
        self._follow_claim()

    def _follow_claim(self) -> None:
        """Follow the call that carries the order out, as far as is known."""
        found = self._order.get("claim") or self._order.get("call")
        assert found is not None
        if found["call"] != self._call:
            self._call = found["call"]
            with suppress(Exception):
                # A tag for people; what is paid for isn't given up for it.
                self._called(self._call)

    def _begun(self) -> bool:
        self._is_begun = self._is_begun or self._order.get("claim") is not None
        return self._is_begun

    def _ended(self, ended: Ended) -> BackendError:
        how = ended.how or "it returned, and said nothing of an end"
        return BackendError(
            f"the call {self._call} ended: {how}",
            where=self._calls.where,
            fix=ended.fix or "run it again: it goes on from the last checkpoint",
            # What would end so again has at least brought the run further.
            retriable=ended.retriable or self._published is not None,
        )

    # What it says.

    def _hear(self, events: TrainingEvents, past: "_Past") -> EpochResult | None:
        """Hear what was said since; the epoch's end, when that was said."""
        for number, messages in self._order.said(self._heard):
            self._heard = number
            told = past.step
            for message in messages:
                if (done := self._heard_one(message, events, past)) is not None:
                    return done
            if past.step > told:
                self._order.replace("heard", {"step": past.step})
        return None

    def _heard_one(self, message: Value, events: TrainingEvents, past: "_Past") -> EpochResult | None:
        kind = message["kind"]
        if kind == "step":
            (metrics,) = steps_from([message["metrics"]])
            if metrics.global_step > past.step:
                events.step(metrics)
                past.step = metrics.global_step
        elif kind == "checkpoint":
            if message["draft"]["global_step"] > past.published:
                self._publish(message["draft"], events)
        elif kind == "done":
            if self._published is None:
                raise BackendError("the call ended before the epoch did", where=self._calls.where, retriable=True)
            return EpochResult(self._published, message["steps_done"])
        elif kind == "stopped":
            # It was to stop where nothing can be published.
            events.stopping(exact=False)
            raise BackendError("the call stopped unasked", where=self._calls.where, retriable=True)
        elif kind == "failed":
            raise _failure(message)
        return None

    def _publish(self, value: Mapping[str, Any], events: TrainingEvents) -> None:
        if {*value["state_files"], *value["other_files"]} != set(value["files"]):
            raise BackendError("a draft names other files than it has", where=self._calls.where)
        folder = self._job.scratch / f"order-{self._order.number}-{int(value['global_step'])}"
        fetch_files(self._content, value["files"], folder)
        self._published = events.checkpoint(self._draft(value, folder))
        if self._drafted is not None:
            # The files of the one before are the store's now.
            shutil.rmtree(self._drafted, ignore_errors=True)
        self._drafted = folder

    def _draft(self, value: Mapping[str, Any], folder: Path) -> CheckpointDraft:
        return CheckpointDraft(
            folder=folder,
            state_files=value["state_files"],
            other_files=value["other_files"],
            epoch=value["epoch"],
            global_step=value["global_step"],
            steps_into_epoch=value["steps_into_epoch"],
            epoch_complete=value["epoch_complete"],
            row_ids=json.loads(self._content.get(value["row_ids"])),
            metrics=value["metrics"],
            steps=steps_from(json.loads(self._content.get(value["steps"]))),
            records={
                name: base64.b64decode(json.loads(self._content.get(sha256))["base64"])
                for name, sha256 in value["records"].items()
            },
        )


@dataclass
class _Past:
    """What was done with an order already.

    Attributes:
        step: The last step that a launcher has told of.
        published: The last step that is a checkpoint.
    """

    step: int
    published: int


def _failure(message: Value) -> KitchenError:
    """What a call failed by. A store or a lease that it had trouble with was its own, and not this launcher's."""
    error = told_error({**message, "type": message["type"] or "BackendError"})
    if isinstance(error, (BlobError, LeaseLost, DiskFull)):
        return BackendError(error.what, where=error.where, fix=error.fix, retriable=bool(message["mendable"]))
    return error


def _leads_on(order: Order, value: Value, epoch: int, parent: LocalCheckpoint | None) -> bool:
    """Whether an order makes an epoch from a checkpoint on: it began there, or has come there itself."""
    if value["epoch"] != epoch:
        return False
    began = value["parent"]["state_digest"] if value["parent"] else ""
    if began == (parent.state_digest if parent else ""):
        return True
    return parent is not None and any(
        message["kind"] == "checkpoint" and message["draft"]["state_digest"] == parent.state_digest
        for _, messages in order.said(0)
        for message in messages
    )


def call_off(order: Order, calls: Calls, how: str) -> None:
    """End an order's call, and the order.

    Raises:
        BackendError: The service can't be told. The call is asked to stop, but may go on until it sees that.
    """
    order.put("stop", {})
    known = {found["call"] for name in ("claim", "call") if (found := order.get(name)) is not None}
    for call in sorted(known):
        calls.cancel(call)
    order.end(how)
