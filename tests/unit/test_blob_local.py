"""What the local blob store adds to the port: durability, links, refusals, and nothing left behind."""

import errno
import gc
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.errors import BlobError, DiskFull


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def blobs(root: Path) -> LocalBlobs:
    return LocalBlobs(root)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def failing(number: int) -> Callable[..., int]:
    def call(*args: object, **kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


def leftovers(root: Path) -> list[str]:
    return os.listdir(root / ".temp")


# Opening


def test_opening_makes_the_folder_and_its_parents(tmp_path: Path) -> None:
    assert LocalBlobs(tmp_path / "a" / "b").put_if_absent("k", b"v") is True
    assert (tmp_path / "a" / "b" / "k").read_bytes() == b"v"


def test_a_second_opening_finds_the_objects(root: Path, blobs: LocalBlobs) -> None:
    blobs.put_if_absent("a/b", b"v")
    again = LocalBlobs(root)
    assert list(again.list("")) == ["a/b"]
    assert again.scratch() == root / ".scratch"


def test_a_root_that_is_a_file_is_refused(root: Path) -> None:
    root.write_text("")
    with pytest.raises(BlobError, match=r"store: is not a folder\n  fix: set KITCHEN_STORE"):
        LocalBlobs(root)
    with pytest.raises(BlobError, match="KITCHEN_STORE"):
        LocalBlobs(root / "inner")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_store_that_cannot_be_written_is_refused(
    root: Path, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", failing(number))
    with pytest.raises(BlobError, match="KITCHEN_STORE") as refused:
        LocalBlobs(root)
    assert os.strerror(number) in str(refused.value)
    assert leftovers(root) == []


def test_a_file_system_without_hard_links_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    with pytest.raises(BlobError, match=r"KITCHEN_STORE .* has hard links"):
        LocalBlobs(root)


def test_a_full_store_opens_so_that_things_can_be_deleted(
    root: Path, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs.put_if_absent("a", b"v")
    monkeypatch.setattr(os, "link", failing(errno.ENOSPC))
    assert LocalBlobs(root).delete("a") is True


def test_a_store_whose_folder_is_gone_is_not_an_empty_store(root: Path, blobs: LocalBlobs) -> None:
    blobs.put_if_absent("a", b"v")
    shutil.rmtree(root)
    verbs: list[Callable[[], object]] = [
        lambda: blobs.get("a"),
        lambda: blobs.size("a"),
        lambda: list(blobs.list("")),
        lambda: blobs.put_if_absent("a", b"v"),
        lambda: blobs.delete("a"),
        blobs.free_bytes,
        blobs.scratch,
    ]
    for verb in verbs:
        with pytest.raises(BlobError, match="store"):
            verb()
    assert not root.exists()


def test_a_folder_that_came_back_empty_takes_no_write(root: Path, blobs: LocalBlobs) -> None:
    shutil.rmtree(root)
    root.mkdir()
    with pytest.raises(BlobError, match=r"\.temp: is gone"):
        blobs.compare_and_swap("head", None, b"v")


def test_uri_is_percent_encoded(tmp_path: Path) -> None:
    assert LocalBlobs(tmp_path / "a b#ü").uri == f"file://{os.path.realpath(tmp_path)}/a%20b%23%C3%BC"


def test_a_root_given_as_a_symbolic_link_is_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    LocalBlobs(tmp_path / "link").put_if_absent("a", b"v")
    assert (tmp_path / "real" / "a").read_bytes() == b"v"


def test_a_relative_root_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = LocalBlobs(Path("store"))
    monkeypatch.chdir("/")
    store.put_if_absent("a", b"v")
    assert (tmp_path / "store" / "a").read_bytes() == b"v"


def test_free_bytes_is_what_the_disk_has(root: Path, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 2, {root: 7}[path]))
    assert blobs.free_bytes() == 7


# Objects as files


def test_stored_files_are_read_only(root: Path, blobs: LocalBlobs, tmp_path: Path) -> None:
    version = blobs.compare_and_swap("created", None, b"v")
    blobs.put_if_absent("swapped", b"v")
    blobs.compare_and_swap("swapped", version, b"w")
    (tmp_path / "file").write_bytes(b"v")
    (tmp_path / "file").chmod(0o600)
    blobs.put_file("file", tmp_path / "file")
    blobs.get_file("created", tmp_path / "out")
    paths = [root / "created", root / "swapped", root / "file", tmp_path / "file", tmp_path / "out"]
    assert [mode(path) for path in paths] == [0o444] * 5


def test_files_are_taken_and_given_as_hard_links(root: Path, blobs: LocalBlobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"v")
    blobs.put_file("a/b", tmp_path / "file")
    blobs.get_file("a/b", tmp_path / "out")
    assert (root / "a/b").stat().st_ino == (tmp_path / "file").stat().st_ino == (tmp_path / "out").stat().st_ino


def test_the_target_of_a_symbolic_link_is_copied(root: Path, blobs: LocalBlobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"v")
    (tmp_path / "file").chmod(0o644)
    (tmp_path / "link").symlink_to("file")
    assert blobs.put_file("a", tmp_path / "link") is True
    assert (root / "a").read_bytes() == b"v"
    assert stat.S_ISREG((root / "a").lstat().st_mode)
    assert (root / "a").stat().st_ino != (tmp_path / "file").stat().st_ino
    assert mode(tmp_path / "file") == 0o644


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_files_are_copied_where_they_cannot_be_linked(
    root: Path, blobs: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    link = os.link

    def link_inside_only(source: str | Path, target: str | Path, **options: int) -> None:
        if options.get("src_dir_fd") is None or options.get("dst_dir_fd") is None:
            raise OSError(number, os.strerror(number))
        link(source, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", link_inside_only)
    (tmp_path / "file").write_bytes(b"v" * 3_000_000)
    assert blobs.put_file("a/b", tmp_path / "file") is True
    blobs.get_file("a/b", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"v" * 3_000_000
    assert len({path.stat().st_ino for path in (root / "a/b", tmp_path / "file", tmp_path / "out")}) == 3
    assert mode(root / "a/b") == mode(tmp_path / "out") == 0o444
    assert leftovers(root) == []


def test_a_swap_leaves_what_was_given_out_as_it_was(blobs: LocalBlobs, tmp_path: Path) -> None:
    version = blobs.compare_and_swap("head", None, b"one")
    blobs.get_file("head", tmp_path / "out")
    blobs.compare_and_swap("head", version, b"two")
    assert (tmp_path / "out").read_bytes() == b"one"


@pytest.mark.parametrize("make", [LocalBlobs, lambda root: MemoryBlobs()], ids=["local", "memory"])
def test_no_key_is_the_folder_of_another(make: Callable[[Path], BlobStore], root: Path) -> None:
    store = make(root)
    store.put_if_absent("a/b", b"v")
    with pytest.raises(BlobError, match="/a: "):
        store.put_if_absent("a", b"v")
    with pytest.raises(BlobError, match="/a/b/c: "):
        store.compare_and_swap("a/b/c", None, b"v")
    assert list(store.list("")) == ["a/b"]


def test_files_of_others_are_not_listed(root: Path, blobs: LocalBlobs) -> None:
    blobs.put_if_absent("a/b", b"v")
    for foreign in [".DS_Store", "a/.nfs01", "a/new file", "a/größe"]:
        (root / foreign).write_text("")
    os.mkfifo(root / "a/pipe")
    assert list(blobs.list("")) == ["a/b"]


def test_a_pipe_under_a_key_is_refused_rather_than_waited_for(root: Path, blobs: LocalBlobs) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(BlobError, match=r"pipe: .*\n  fix: rm "):
        blobs.get("pipe")


# Symbolic links


@pytest.mark.parametrize("key", ["out/secret", "out/new", "folder/link", "folder/dangling", "inside/b"])
def test_symbolic_links_are_never_followed(root: Path, blobs: LocalBlobs, tmp_path: Path, key: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    blobs.put_if_absent("folder/b", b"v")
    (root / "out").symlink_to(outside)
    (root / "inside").symlink_to("folder")
    (root / "folder/link").symlink_to(outside / "secret")
    (root / "folder/dangling").symlink_to(outside / "new")
    (tmp_path / "file").write_bytes(b"x")
    verbs: list[Callable[[], object]] = [
        lambda: blobs.put_if_absent(key, b"x"),
        lambda: blobs.compare_and_swap(key, None, b"x"),
        lambda: blobs.compare_and_swap(key, "0" * 64, b"x"),
        lambda: blobs.get(key),
        lambda: blobs.put_file(key, tmp_path / "file"),
        lambda: blobs.get_file(key, tmp_path / "copy"),
        lambda: blobs.delete(key),
        lambda: blobs.size(key),
    ]
    for verb in verbs:
        with pytest.raises(BlobError, match="is a symbolic link"):
            verb()
    assert list(blobs.list("")) == ["folder/b"]
    assert sorted(os.listdir(outside)) == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", [".temp", ".locks", ".scratch"])
def test_a_store_whose_own_folders_lead_out_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    root.mkdir()
    (root / name).symlink_to(tmp_path)
    with pytest.raises(BlobError, match="is a symbolic link"):
        LocalBlobs(root)


# A full disk


@pytest.mark.parametrize("call", ["write", "link", "replace", "fsync", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_changes_nothing_and_says_what_is_needed(
    root: Path, blobs: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    version = blobs.compare_and_swap("head", None, b"one")
    (tmp_path / "file").write_bytes(b"x" * 1000)
    verbs: dict[str, Callable[[], object]] = {
        "write link fsync mkdir": lambda: blobs.put_if_absent("new/object", b"x" * 1000),
        "write replace fsync": lambda: blobs.compare_and_swap("head", version, b"x" * 1000),
        "link fsync mkdir": lambda: blobs.put_file("new/file", tmp_path / "file"),
    }
    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing(number))
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(5, 2, 3))
        for calls, verb in verbs.items():
            if call in calls.split():
                with pytest.raises(DiskFull, match=f"{os.strerror(number)}; 1000 bytes are needed, 3 are free"):
                    verb()
    assert leftovers(root) == []
    assert list(blobs.list("")) == ["head"]
    assert [verb() for verb in verbs.values()].count(True) == 2


def test_a_full_disk_leaves_no_part_of_a_copy(
    blobs: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs.put_if_absent("a", b"12345")
    monkeypatch.setattr(os, "link", failing(errno.EXDEV))
    monkeypatch.setattr(os, "write", failing(errno.ENOSPC))
    with pytest.raises(DiskFull, match=r"out: .*; 5 bytes are needed, \d+ are free"):
        blobs.get_file("a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_failures_name_the_object_and_the_cause(
    root: Path, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", failing(errno.EIO))
    with pytest.raises(BlobError, match=rf"{root}/a/b: .*Input/output error"):
        blobs.put_if_absent("a/b", b"v")
    assert list(blobs.list("")) == []


def test_bytes_are_written_whole_when_the_system_takes_them_in_parts(
    root: Path, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
    blobs.put_if_absent("a", bytes(range(250)))
    assert (root / "a").read_bytes() == bytes(range(250))


def test_no_descriptor_stays_open(root: Path, blobs: LocalBlobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"v")
    before = os.dup(0)
    os.close(before)
    version = blobs.compare_and_swap("a/head", None, b"v")
    blobs.compare_and_swap("a/head", version, b"w")
    blobs.compare_and_swap("a/head", version, b"w")
    blobs.put_file("a/file", tmp_path / "file")
    blobs.put_file("a/file", tmp_path / "file")
    blobs.get_file("a/file", tmp_path / "out")
    with pytest.raises(BlobError):
        blobs.get_file("a/none", tmp_path / "out 2")
    with pytest.raises(BlobError):
        blobs.put_if_absent("a/file/under", b"v")
    next(blobs.list("a/"))
    blobs.get("a/head")
    blobs.delete("a/head")
    after = os.dup(0)
    os.close(after)
    assert after == before


# Memory


def test_memory_scratch_goes_with_the_store() -> None:
    store = MemoryBlobs()
    scratch = store.scratch()
    (scratch / "file").write_text("")
    del store
    gc.collect()
    assert not scratch.exists()


def test_memory_changes_its_objects_under_its_lock() -> None:
    store = MemoryBlobs()

    class Watched(dict[str, bytes]):
        def __setitem__(self, key: str, data: bytes) -> None:
            assert store._lock.locked()
            super().__setitem__(key, data)

        def pop(self, key: str, *default: object) -> object:  # type: ignore[override]
            assert store._lock.locked()
            return super().pop(key, None)

    store._objects = Watched()
    version = store.compare_and_swap("a", None, b"one")
    store.put_if_absent("b", b"one")
    store.compare_and_swap("a", version, b"two")
    store.delete("a")
    assert dict(store._objects) == {"b": b"one"}
