"""What a call does that carries out an order: one epoch by `trl`, told through the store.

It needs nobody's answer, so that it goes on while no launcher looks: what it publishes are drafts, files of the store
that a launcher makes checkpoints of. Only one call carries out an order; any other ends at once.
"""

import base64
import importlib.metadata
import os
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from kitchen_resources.blobs.content import ContentStore, StoredFile
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.manifest import state_digest
from kitchen_resources.digests import canonical_json, digest_bytes
from kitchen_resources.errors import BackendError, CapabilityError, ConfigError
from kitchen_resources.training.orders.order import Order, OrderOver, order_at
from kitchen_resources.training.orders.placing import earlier, ordered_job, ordered_parent
from kitchen_resources.training.port import CheckpointDraft, LocalCheckpoint, StepMetrics
from kitchen_resources.training.worker.main import told

SAY_S = 2.0
"""How long what there is to say may wait for more, in seconds."""

LOOK_S = 2.0
"""How often it is looked whether to stop, in seconds."""


class Stopped(BaseException):
    """The launcher asked for a stop, and what could be published is."""


def carry_out(key: str, call: str, blobs: BlobStore | None = None) -> None:
    """Carry out an order; returns nothing and raises nothing: all that is to be known is in the store.

    Args:
        key: What the order's keys start with.
        call: Id of this call, as the service knows it.
        blobs: The store; the one that KITCHEN_STORE names by default.

    Raises:
        ConfigError: KITCHEN_STORE names no store, or not the launcher's; then there is nowhere to say so.
    """
    blobs = blobs if blobs is not None else _store()
    order = order_at(blobs, key)
    value = order.get("order")
    if order.get("over") is not None:
        return
    if value is None:
        raise ConfigError(f"{blobs.uri} has no {key}", where="KITCHEN_STORE", fix="name the launcher's own store")
    if not order.put("claim", {"call": call}):
        claim = order.get("claim")
        if claim is None or claim["call"] != call:
            return
        # This call was begun before, on a machine that is gone. What it said is there; where it was is not known.
        after = max((number for number, _ in order.said(0)), default=0)
        with suppress(OrderOver):
            order.say(after + 1, [{"kind": "failed", **told(_lost("and the call begun again"))}])
        return
    voice = _Voice(order)
    try:
        _train(blobs, value, voice)
    except OrderOver:
        return
    except Stopped:
        voice.last({"kind": "stopped"})
    except KeyboardInterrupt:
        # How Modal takes a machine away.
        voice.last({"kind": "failed", **told(_lost("which was interrupted"))})
    except BaseException as error:  # noqa: BLE001  (whatever went wrong is told to the launcher)
        traceback.print_exc()
        voice.last({"kind": "failed", **told(error)})


def _lost(how: str) -> BackendError:
    return BackendError(f"the machine of the call was lost, {how}", retriable=True)


def _store() -> BlobStore:
    from kitchen_resources.blobs.resource import open_store

    place = os.environ.get("KITCHEN_STORE", "")
    if not place:
        raise ConfigError("names no store", where="KITCHEN_STORE", fix="give the function a secret that sets it")
    return open_store(place)


def _train(blobs: BlobStore, value: Mapping[str, Any], voice: "_Voice") -> None:
    require_same_libraries(value["job"]["resolution"]["environment"])
    from kitchen_resources.training.trl.session import TrlSession

    folder = blobs.scratch() / "orders"
    job = ordered_job(blobs, value, folder)
    job.scratch.mkdir(parents=True, exist_ok=True)
    events = OrderEvents(blobs, value, voice)
    parent = ordered_parent(blobs, value, job.scratch / f"parent-{voice.order.number}")
    session = TrlSession(job, exact_inside=value["exact_inside"])
    try:
        done = session.train_epoch(value["epoch"], parent, events)
    finally:
        session.close()
        # The models stay, for the next order that this machine gets.
        shutil.rmtree(job.scratch, ignore_errors=True)
    voice.say({"kind": "done", "steps_done": done.steps_done}, now=True)


def require_same_libraries(wanted: Mapping[str, Any]) -> None:
    """Refuse to train with other libraries than the run was planned with: the bits would be others.

    Raises:
        CapabilityError: With the first that differs.
    """
    for name, version in wanted.items():
        with suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.version(name)
            if found.partition("+")[0] != str(version).partition("+")[0]:
                raise CapabilityError(
                    f"has {name} {found}, and the launcher {version}",
                    where="the function's image",
                    fix="deploy the app again, from the launcher's environment",
                )


class _Voice:
    """Says things in the order's name, several at a time.

    Attributes:
        order: The order.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self._said = 0
        self._waiting: list[dict[str, Any]] = []
        self._last = time.monotonic()

    def say(self, message: dict[str, Any], *, now: bool = False) -> None:
        """Say something, soon or now."""
        self._waiting.append(message)
        if now or time.monotonic() - self._last >= SAY_S:
            self.flush()

    def last(self, message: dict[str, Any]) -> None:
        """Say how it ended, as far as anybody listens and the store takes it."""
        with suppress(Exception, OrderOver):
            self.say(message, now=True)

    def flush(self) -> None:
        """Say what is waiting."""
        if self._waiting:
            self.order.say(self._said + 1, self._waiting)
            self._said, self._waiting = self._said + 1, []
        self._last = time.monotonic()


class OrderEvents:
    """The `TrainingEvents` of a call: steps and drafts are said, and nothing is waited for."""

    def __init__(self, blobs: BlobStore, value: Mapping[str, Any], voice: _Voice) -> None:
        self._content = ContentStore(blobs)
        self._rows, self._steps = earlier(blobs, value)
        self._voice = voice
        self._asked = False
        self._looked = time.monotonic()

    def step(self, metrics: StepMetrics) -> None:
        """See `TrainingEvents.step`."""
        self._voice.say({"kind": "step", "metrics": asdict(metrics)})

    def stopping(self, *, exact: bool) -> bool:
        """See `TrainingEvents.stopping`."""
        if not self._asked and time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            self._voice.flush()
            if self._voice.order.get("over") is not None:
                raise OrderOver
            self._asked = self._voice.order.get("stop") is not None
        if self._asked and not exact:
            raise Stopped
        return self._asked

    def checkpoint(self, draft: CheckpointDraft) -> LocalCheckpoint:
        """See `TrainingEvents.checkpoint`: its files go to the store, and what they are is said."""
        files = {}
        for name in [*draft.state_files, *draft.other_files]:
            stored = self._content.put_file(draft.folder / name)
            files[name] = StoredFile(stored.sha256, stored.size, name in draft.state_files)
        ledger = [list(step) for step in draft.row_ids]
        cursor = (draft.epoch, draft.global_step, draft.steps_into_epoch)
        digest = state_digest(files, digest_bytes(canonical_json(ledger)), cursor)
        value = {**self._draft(draft, files, ledger), "state_digest": digest}
        self._voice.say({"kind": "checkpoint", "draft": value}, now=True)
        if self._asked:
            raise Stopped
        return LocalCheckpoint(
            folder=draft.folder,
            epoch=draft.epoch,
            global_step=draft.global_step,
            steps_into_epoch=draft.steps_into_epoch,
            epoch_complete=draft.epoch_complete,
            state_digest=digest,
        )

    def _draft(
        self, draft: CheckpointDraft, files: Mapping[str, StoredFile], ledger: list[list[int]]
    ) -> dict[str, Any]:
        return {
            "files": {name: file.sha256 for name, file in files.items()},
            "state_files": list(draft.state_files),
            "other_files": list(draft.other_files),
            "epoch": draft.epoch,
            "global_step": draft.global_step,
            "steps_into_epoch": draft.steps_into_epoch,
            "epoch_complete": draft.epoch_complete,
            "metrics": dict(draft.metrics),
            # As objects of their own: a message is to stay small, so that collections search it.
            "row_ids": self._content.put_json(ledger),
            "steps": self._content.put_json([asdict(step) for step in draft.steps]),
            "records": {
                name: self._content.put_json({"base64": base64.b64encode(data).decode()})
                for name, data in draft.records.items()
            },
        }

    def check(self) -> None:
        """See `TrainingEvents.check`: the launcher does."""

    def earlier_rows(self) -> Sequence[Sequence[int]]:
        """See `TrainingEvents.earlier_rows`."""
        return self._rows

    def earlier_steps(self) -> Sequence[StepMetrics]:
        """See `TrainingEvents.earlier_steps`."""
        return self._steps
