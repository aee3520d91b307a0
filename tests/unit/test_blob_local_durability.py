"""Durability of the local blob store: the order of writes, the locks, and what dead writers leave."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kitchen_resources.blobs.flocks import locked
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.temporary import temporary_file
from kitchen_resources.digests import digest_bytes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def blobs(root: Path) -> LocalBlobs:
    return LocalBlobs(root)


def leftovers(root: Path) -> list[str]:
    return os.listdir(root / ".temp")


# Durability


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is put on stable storage or named, in order, by inode."""
    seen: list[tuple[str, int]] = []
    fsync, link, replace = os.fsync, os.link, os.replace

    def seen_fsync(fd: int) -> None:
        seen.append(("sync", os.fstat(fd).st_ino))
        fsync(fd)

    def seen_link(source: str, target: str, **options: int) -> None:
        link(source, target, **options)  # type: ignore[arg-type]
        seen.append(("link", os.stat(target, dir_fd=options["dst_dir_fd"]).st_ino))

    def seen_replace(source: str, target: str, **options: int) -> None:
        replace(source, target, **options)
        seen.append(("replace", os.stat(target, dir_fd=options["dst_dir_fd"]).st_ino))

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "link", seen_link)
    monkeypatch.setattr(os, "replace", seen_replace)
    return seen


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_an_object_is_durable_before_its_name_and_its_name_before_the_call_returns(
    root: Path, blobs: LocalBlobs, calls: list[tuple[str, int]]
) -> None:
    blobs.put_if_absent("a/b/c", b"v")
    file, folders = inode(root / "a/b/c"), [inode(root), inode(root / "a"), inode(root / "a/b")]
    assert calls == [("sync", file), ("link", file), *(("sync", folder) for folder in folders)]
    calls.clear()
    blobs.put_if_absent("a/b/d", b"v")
    file = inode(root / "a/b/d")
    assert calls == [("sync", file), ("link", file), ("sync", folders[-1])]


def test_a_swap_is_durable(root: Path, blobs: LocalBlobs, calls: list[tuple[str, int]]) -> None:
    version = blobs.compare_and_swap("a/head", None, b"one")
    calls.clear()
    blobs.compare_and_swap("a/head", version, b"two")
    file = inode(root / "a/head")
    assert calls == [("sync", file), ("replace", file), ("sync", inode(root / "a"))]


def test_a_taken_file_is_durable(root: Path, blobs: LocalBlobs, tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    (tmp_path / "file").write_bytes(b"v")
    blobs.put_file("file", tmp_path / "file")
    file = inode(tmp_path / "file")
    assert calls == [("sync", file), ("link", file), ("sync", inode(root))]


def test_what_another_created_is_durable_before_it_is_reported(
    root: Path, blobs: LocalBlobs, calls: list[tuple[str, int]]
) -> None:
    (root / "a").mkdir()
    (root / "a/b").write_bytes(b"v")
    assert blobs.put_if_absent("a/b", b"v") is False
    assert calls == [("sync", inode(root)), ("sync", inode(root / "a"))]


def test_a_deletion_is_durable(root: Path, blobs: LocalBlobs, calls: list[tuple[str, int]]) -> None:
    blobs.put_if_absent("a/b", b"v")
    calls.clear()
    blobs.delete("a/b")
    assert calls == [("sync", inode(root / "a"))]


def test_a_new_root_is_durable(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    LocalBlobs(tmp_path / "x" / "store")
    synced = [number for call, number in calls if call == "sync"]
    assert synced == [inode(tmp_path / "x"), inode(tmp_path)]


# Locks


def test_swap_and_delete_hold_the_sidecar_while_they_change_the_object(
    root: Path, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[str, str]] = []

    def note(call: str) -> Callable[..., None]:
        original: Callable[..., None] = getattr(os, call)

        def noted(name: str, *arguments: str, **options: int) -> None:
            folder = os.open(root / ".locks", os.O_RDONLY)
            for sidecar in os.listdir(folder):
                try:
                    with locked(sidecar, os.O_RDONLY, folder=folder, wait=False):
                        pass
                except BlockingIOError:
                    held.append((name if name == "head" else call, sidecar))
            os.close(folder)
            original(name, *arguments, **options)

        return noted

    version = blobs.compare_and_swap("a/head", None, b"one")
    monkeypatch.setattr(os, "replace", note("replace"))
    monkeypatch.setattr(os, "unlink", note("unlink"))
    blobs.compare_and_swap("a/head", version, b"two")
    blobs.delete("a/head")
    sidecar = digest_bytes(b"a/head")[:2]
    # The second is the temporary file's own name, which the swap has just taken.
    assert held == [("replace", sidecar), ("unlink", sidecar), ("head", sidecar)]


# What dead writers leave


def test_opening_removes_what_dead_writers_left_and_nothing_of_the_living(root: Path, blobs: LocalBlobs) -> None:
    (root / ".temp" / "1-dead.tmp").write_bytes(b"half")
    (root / ".temp" / "note.txt").write_bytes(b"of somebody else")
    (root / ".scratch" / "attempt").mkdir()
    with temporary_file(root) as living:
        LocalBlobs(root)
        assert sorted(leftovers(root)) == sorted([living.name, "note.txt"])
    assert leftovers(root) == ["note.txt"]
    assert (root / ".scratch" / "attempt").is_dir()


def test_a_writer_whose_new_file_was_taken_for_a_leftover_makes_another(
    root: Path, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    removed: list[bool] = []

    def lock_late(fd: int, operation: int) -> None:
        if not removed:
            removed.append(True)
            LocalBlobs(root)
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    assert blobs.put_if_absent("a", b"v") is True
    assert removed == [True]
    assert (root / "a").read_bytes() == b"v"
    assert leftovers(root) == []


def test_sidecars_are_few_however_many_objects_are_deleted(
    root: Path, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for number in range(300):
        (root / f"object-{number}").write_bytes(b"")
        assert blobs.delete(f"object-{number}") is True
    assert len(os.listdir(root / ".locks")) <= 256
    assert {len(name) for name in os.listdir(root / ".locks")} == {2}
