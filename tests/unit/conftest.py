"""A checkpoint store over each kind of blob store, leases of its one run, and the clock that they see."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints import lease as lease_module
from kitchen_resources.checkpoints.lease import Lease, acquire
from kitchen_resources.checkpoints.store import CheckpointStore
from tests.unit.checkpoint_drafts import RUN
from tests.unit.lease_bench import Clock


@pytest.fixture(params=["local", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobStore:
    if request.param == "memory":
        return MemoryBlobs()
    # That bytes outlast a power cut has tests of its own, and here would take most of the time.
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    return LocalBlobs(tmp_path / "store")


@pytest.fixture
def store(blobs: BlobStore) -> CheckpointStore:
    return CheckpointStore(blobs)


@pytest.fixture
def lease(blobs: BlobStore) -> Iterator[Lease]:
    lease = acquire(blobs, RUN, run="me", wait_s=0.0)
    yield lease
    lease.release()


@pytest.fixture
def take(blobs: BlobStore) -> Iterator[Callable[..., Lease]]:
    """Acquires leases of the run, which are given back when the test is over."""
    taken: list[Lease] = []

    def acquire_one(on: BlobStore = blobs, **how: Any) -> Lease:
        lease = acquire(on, RUN, **{"run": "me", "wait_s": 0.0, **how})
        taken.append(lease)
        return lease

    yield acquire_one
    for lease in taken:
        lease.release()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all leases."""
    clock = Clock()
    monkeypatch.setattr(lease_module, "time", clock)
    return clock
