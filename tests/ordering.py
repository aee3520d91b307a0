"""A backend that orders its epochs, and calls that carry them out in this process as soon as they are made."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.errors import BackendError
from kitchen_resources.numerics import preserved_numerics
from kitchen_resources.training.orders.carrying_out import carry_out
from kitchen_resources.training.orders.following import OrdersSession, Patience
from kitchen_resources.training.orders.port import Ended
from kitchen_resources.training.port import Capabilities, Session, TrainingJob
from kitchen_resources.training.trl.backend import TrlTrainer

AT_ONCE = Patience(look=0.0, ask=0.0, start=0.0, silence=0.0, stop=0.0)


class CallsHere:
    """Calls that are over when `spawn` returns.

    Args:
        blobs: The store.
        work: What a call does; carries its order out by default.

    Attributes:
        made: Orders of the calls, by id.
        canceled: Ids of those that were called off.
        how: What is told of a call's end, by id; what isn't there has returned.
        refuse: Raised by every question, when there is one.
    """

    where = "trainer.backend.here"

    def __init__(self, blobs: BlobStore, work: Callable[[str, str, BlobStore], None] = carry_out) -> None:
        self._blobs = blobs
        self._work = work
        self.made: dict[str, str] = {}
        self.canceled: list[str] = []
        self.how: dict[str, Ended | None] = {}
        self.refuse: BackendError | None = None

    def spawn(self, order: str) -> str:
        name = f"call-{len(self.made) + 1}"
        self.made[name] = order
        with preserved_numerics():
            self._work(order, name, self._blobs)
        return name

    def ended(self, call: str) -> Ended | None:
        if self.refuse is not None:
            raise self.refuse
        return self.how.get(call, Ended())

    def cancel(self, call: str) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.canceled.append(call)


class OrderingTrainer(TrlTrainer):
    """Trains by orders.

    Args:
        folder: Of the store.
    """

    def __init__(self, folder: Path, **how: Any) -> None:
        super().__init__(device="cpu", threads=1)
        self.blobs = LocalBlobs(folder)
        self.calls = CallsHere(self.blobs, **how)
        self.followed: list[str] = []

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), backend="orders", by_store=True)

    def open(self, job: TrainingJob) -> Session:
        return OrdersSession(
            replace(job, blobs=self.blobs),
            self.calls,
            exact_inside=self.capabilities().is_exact_inside(job.recipe),
            called=self.followed.append,
            patience=AT_ONCE,
        )
