"""A run on a local disk that is full, whose clock is set, or in which links lie: nothing is lost, nothing is followed."""

import errno
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.lease import acquire
from kitchen_resources.errors import BlobError, DiskFull, LeaseHeld
from tests.engine import Engine, HookedTrainer, epoch_ends, needed_files, payload_keys, states, undisturbed

FIELDS: dict[str, Any] = {"epochs": 2, "checkpoint_steps": 2, "keep_last": 2}


@pytest.fixture(autouse=True)
def without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """That bytes outlast a power cut has tests of its own, and here would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def local(root: Path, **how: Any) -> Engine:
    return Engine(blobs=LocalBlobs(root), **how)


# A full disk

_CALLS = ("write", "link", "replace", "mkdir")


class Disk:
    """Counts what needs room on the store's disk; full from the n-th on, until it is freed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full_from: int = 0) -> None:
        self.count = 0
        self.full_from = full_from
        for name in _CALLS:
            monkeypatch.setattr(os, name, self._call(getattr(os, name)))
        usage = shutil.disk_usage
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 2, 7) if self.is_full else usage(path)
        )

    @property
    def is_full(self) -> bool:
        return 0 < self.full_from <= self.count

    def _call(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **how: Any) -> Any:
            # Of the store: it names its files within open folders, or writes to descriptors.
            if how or isinstance(args[0], int):
                self.count += 1
                if self.is_full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **how)

        return call


def test_a_disk_that_is_full_from_any_write_on_loses_nothing_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = undisturbed(**FIELDS)
    with monkeypatch.context() as patched:
        engine = local(tmp_path / "count")
        disk = Disk(patched)
        engine.finish(**FIELDS)
    assert disk.count > 100
    refused = 0
    for moment in random.Random(0).sample(range(1, disk.count + 1), 12):
        engine = local(tmp_path / f"at-{moment}")
        with monkeypatch.context() as patched:
            Disk(patched, full_from=moment)
            try:
                engine.finish(**FIELDS)
            except DiskFull as error:
                refused += 1
                said = str(error)
                assert "7 are free" in said or "0.0 MiB are free" in said, said
                assert "are needed" in said or "needs" in said, said
                assert "free space at" in said or "free disk space" in said, said
        before = states(engine.head()) if engine.store.find("") else {}
        again = engine.with_()
        finished = again.finish(**FIELDS)
        assert epoch_ends(finished.head) == whole, moment
        assert before.items() <= states(finished.head).items(), moment
        assert len(payload_keys(again)) == needed_files(again) == 2, moment
        assert os.listdir(tmp_path / f"at-{moment}" / ".temp") == []
    # All but those in which only a note of the end is missing.
    assert refused >= 10


# Clocks


@pytest.mark.parametrize("years", [[10], [-10], [10, -10, 30]])
def test_a_clock_that_is_set_in_the_middle_of_a_run_moves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, years: list[int]
) -> None:
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + shift[0]) * 1e9))
    jumps = iter(years)

    def set_clock(step: int) -> None:
        if step % 3 == 2:
            shift[0] = next(jumps, 0) * 365 * 86400.0
            (fingerprint,) = engine.store.find("")
            with pytest.raises(LeaseHeld):
                acquire(LocalBlobs(tmp_path / "store"), fingerprint, run="another", wait_s=0.0)

    engine = local(tmp_path / "store", adapter=HookedTrainer(set_clock))
    finished = engine.finish(checkpoint_steps=2)
    assert finished.steps_done == 9
    assert epoch_ends(finished.head) == undisturbed()
    assert [entry.step for entry in finished.head.checkpoints] == [2, 3, 4, 6, 8, 9]
    shift[0] = -20 * 365 * 86400.0
    again = engine.with_(adapter=Engine().adapter)
    assert again.finish(checkpoint_steps=2).steps_done == 0
    assert states(again.head()) == states(finished.head)


# Links


def interrupted(root: Path) -> Engine:
    """A run that was cut off behind its second epoch."""
    engine = local(root)
    engine.run(keep_last=9).ensure(2)
    return engine


def test_a_link_in_place_of_a_payload_file_is_not_followed(tmp_path: Path) -> None:
    engine = interrupted(tmp_path / "store")
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    entry = engine.head().entries()[-1]
    (file,) = engine.store.manifest(entry).files.values()
    (key,) = [key for key in payload_keys(engine) if key.endswith(file.sha256)]
    link = tmp_path / "store" / key
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(BlobError) as caught:
        engine.with_().finish(keep_last=9)
    assert str(caught.value) == (
        f"{link}: is a symbolic link, which the store never makes or follows\n  fix: rm {link}"
    )
    assert outside.read_bytes() == b"secret"
    assert epoch_ends(engine.head()).items() < undisturbed().items()
    link.unlink()
    again = engine.with_()
    finished = again.finish(keep_last=9)
    assert finished.steps_done == 6
    assert epoch_ends(finished.head) == undisturbed()
    assert "is missing or has another size" in again.told.said[0]


@pytest.mark.parametrize("folder", ["payload", ""], ids=["the payload's folder", "the run's folder"])
def test_a_link_in_place_of_a_folder_is_neither_read_nor_written_through(tmp_path: Path, folder: str) -> None:
    engine = interrupted(tmp_path / "store")
    link = tmp_path / "store" / "runs" / engine.head().fingerprint / folder
    outside = tmp_path / "outside"
    link.rename(outside)
    link.symlink_to(outside)
    before = {path: path.read_bytes() for path in sorted(outside.rglob("*")) if path.is_file()}
    assert before
    with pytest.raises(BlobError) as caught:
        engine.with_().finish(keep_last=9)
    assert str(caught.value).startswith(f"{link}: is a symbolic link, which the store never makes or follows")
    assert {path: path.read_bytes() for path in sorted(outside.rglob("*")) if path.is_file()}.keys() == before.keys()
    link.unlink()
    outside.rename(link)
    finished = engine.with_().finish(keep_last=9)
    assert finished.steps_done == 3
    assert epoch_ends(finished.head) == undisturbed()
