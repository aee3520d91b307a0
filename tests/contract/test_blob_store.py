"""The blob port's contract, run over every adapter."""

import random
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.digests import digest_file
from kitchen_resources.errors import BlobError
from tests.object_store import ObjectStore

ADAPTERS: dict[str, Callable[[Path], BlobStore]] = {
    "local": lambda folder: LocalBlobs(folder / "store"),
    "memory": lambda folder: MemoryBlobs(),
}
SERVED = ("s3", "s3 with a prefix")
ALL_BYTES = bytes(range(256))
INVALID_KEYS = {
    "empty": "",
    "absolute": "/a",
    "parent": "a/../b",
    "here": "a/./b",
    "empty segment": "a//b",
    "folder": "a/",
    "dot start": "a/.b",
    "too long": "a/" * 256 + "b",
    "NUL": "a\0b",
    "newline": "a\n",
    "space": "a b",
    "backslash": "a\\b",
    "non-ASCII": "größe",
}


@pytest.fixture(params=[*ADAPTERS, *SERVED])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param not in SERVED:
        return ADAPTERS[request.param](tmp_path)
    server: ObjectStore = request.getfixturevalue("s3_server")
    return server.blobs(f"{uuid.uuid4().hex}/of/one" if request.param == "s3 with a prefix" else uuid.uuid4().hex)


def few(blobs: BlobStore, times: int) -> int:
    """How often to race: less on a server, which lets racing writers wait for a second."""
    return max(2, times // 5) if blobs.uri.startswith("s3://") else times


def race(threads: int, work: Callable[[int], object]) -> list[object]:
    """Results of `work(0)`, `work(1)` …, each in a thread of its own, all let go at once."""
    gate = threading.Barrier(threads)

    def run(number: int) -> object:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def increment(blobs: BlobStore, key: str) -> None:
    while True:
        stored = blobs.get(key)
        value = int(stored.data) if stored else 0
        if blobs.compare_and_swap(key, stored.version if stored else None, str(value + 1).encode()):
            return


def test_it_is_a_blob_store(blobs: BlobStore) -> None:
    assert isinstance(blobs, BlobStore)
    assert "://" in blobs.uri


def test_created_once_and_read_back(blobs: BlobStore) -> None:
    assert blobs.get("runs/a/head.json") is None
    assert blobs.put_if_absent("runs/a/head.json", ALL_BYTES) is True
    assert blobs.put_if_absent("runs/a/head.json", b"other") is False
    stored = blobs.get("runs/a/head.json")
    assert stored is not None
    assert stored.data == ALL_BYTES


def test_longest_key(blobs: BlobStore) -> None:
    key = "/".join(["k" * 127] * 4) + "x"
    assert len(key) == 512
    assert blobs.put_if_absent(key, b"deep") is True
    assert list(blobs.list("k")) == [key]


def test_empty_object_exists(blobs: BlobStore) -> None:
    assert blobs.put_if_absent("a", b"") is True
    assert blobs.put_if_absent("a", b"x") is False
    assert blobs.size("a") == 0
    assert list(blobs.list("")) == ["a"]
    stored = blobs.get("a")
    assert stored is not None
    assert stored.data == b""


def test_swap_from_nothing_creates(blobs: BlobStore) -> None:
    version = blobs.compare_and_swap("head", None, b"one")
    stored = blobs.get("head")
    assert stored is not None
    assert (stored.data, stored.version) == (b"one", version)
    assert blobs.compare_and_swap("head", None, b"two") is None
    assert blobs.get("head") == stored


def test_swap_follows_the_version(blobs: BlobStore) -> None:
    first = blobs.compare_and_swap("runs/head", None, b"one")
    second = blobs.compare_and_swap("runs/head", first, b"two")
    assert second not in (None, first)
    stored = blobs.get("runs/head")
    assert stored is not None
    assert (stored.data, stored.version) == (b"two", second)


def test_lost_swap_changes_nothing(blobs: BlobStore) -> None:
    first = blobs.compare_and_swap("head", None, b"one")
    second = blobs.compare_and_swap("head", first, b"two")
    assert blobs.compare_and_swap("head", first, b"late") is None
    stored = blobs.get("head")
    assert stored is not None
    assert (stored.data, stored.version) == (b"two", second)


def test_swap_of_a_missing_object_creates_nothing(blobs: BlobStore) -> None:
    version = blobs.compare_and_swap("head", None, b"one")
    assert blobs.compare_and_swap("other/head", version, b"two") is None
    blobs.delete("head")
    assert blobs.compare_and_swap("head", version, b"two") is None
    assert list(blobs.list("")) == []


def test_what_was_created_can_be_swapped(blobs: BlobStore) -> None:
    blobs.put_if_absent("head", b"one")
    stored = blobs.get("head")
    assert stored is not None
    assert blobs.compare_and_swap("head", stored.version, b"two") is not None
    assert blobs.size("head") == 3


def test_racing_swaps_lose_no_update(blobs: BlobStore) -> None:
    turns = few(blobs, 25)

    def work(number: int) -> None:
        for _ in range(turns):
            increment(blobs, "runs/counter")

    race(8, work)
    stored = blobs.get("runs/counter")
    assert stored is not None
    assert int(stored.data) == 8 * turns


def test_racing_creates_have_one_winner(blobs: BlobStore) -> None:
    for turn in range(few(blobs, 10)):
        key = f"new-{turn}/object"

        def create(number: int, key: str = key) -> bool:
            return blobs.put_if_absent(key, f"from {number}".encode())

        won = race(8, create)
        assert won.count(True) == 1
        stored = blobs.get(key)
        assert stored is not None
        assert stored.data == f"from {won.index(True)}".encode()


def test_swap_never_brings_back_what_a_racing_delete_removed(blobs: BlobStore) -> None:
    for turn in range(few(blobs, 20)):
        key = f"object-{turn}"
        version = blobs.compare_and_swap(key, None, b"one")

        def work(number: int, key: str = key, version: str | None = version) -> object:
            return blobs.delete(key) if number else blobs.compare_and_swap(key, version, b"two")

        _, deleted = race(2, work)
        assert deleted is True
        assert blobs.get(key) is None


def test_readers_see_whole_values_during_swaps(blobs: BlobStore) -> None:
    version = blobs.compare_and_swap("head", None, b"\0" * 50_000)
    done = threading.Event()

    def work(number: int) -> object:
        nonlocal version
        if number:
            seen = set()
            while not done.is_set():
                stored = blobs.get("head")
                assert stored is not None
                seen.add((len(stored.data), len(set(stored.data))))
            return seen
        try:
            for value in range(1, 40):
                version = blobs.compare_and_swap("head", version, bytes([value]) * 50_000)
        finally:
            done.set()
        return version

    final, seen = race(2, work)
    stored = blobs.get("head")
    assert stored is not None
    assert (stored.version, stored.data[0]) == (final, 39)
    assert seen in (set(), {(50_000, 1)})


def test_large_file_round_trip(blobs: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(random.Random(0).randbytes(5 * 1024 * 1024))
    digest = digest_file(source)
    assert blobs.put_file(f"blobs/sha256/{digest}", source) is True
    assert blobs.size(f"blobs/sha256/{digest}") == 5 * 1024 * 1024
    blobs.get_file(f"blobs/sha256/{digest}", tmp_path / "copy")
    assert digest_file(tmp_path / "copy") == digest
    source.unlink()
    blobs.get_file(f"blobs/sha256/{digest}", tmp_path / "copy 2")
    assert digest_file(tmp_path / "copy 2") == digest


def test_put_file_of_an_existing_key_changes_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    blobs.put_if_absent("a/b", b"first")
    (tmp_path / "file").write_bytes(b"second")
    assert blobs.put_file("a/b", tmp_path / "file") is False
    stored = blobs.get("a/b")
    assert stored is not None
    assert stored.data == b"first"


def test_put_file_from_scratch(blobs: BlobStore) -> None:
    attempt = blobs.scratch() / "attempt"
    attempt.mkdir()
    (attempt / "file").write_bytes(b"work")
    assert blobs.put_file("done", attempt / "file") is True
    assert list(blobs.list("")) == ["done"]
    (attempt / "file").unlink()
    stored = blobs.get("done")
    assert stored is not None
    assert stored.data == b"work"


@pytest.mark.parametrize("path", ["missing", "."])
def test_put_file_of_no_file_is_refused(blobs: BlobStore, tmp_path: Path, path: str) -> None:
    with pytest.raises(BlobError):
        blobs.put_file("a", tmp_path / path)
    assert list(blobs.list("")) == []


def test_get_file_of_a_missing_object(blobs: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(BlobError, match="no/such/key"):
        blobs.get_file("no/such/key", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_get_file_overwrites_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    blobs.put_if_absent("a", b"stored")
    (tmp_path / "mine").write_bytes(b"mine")
    with pytest.raises(BlobError, match="mine"):
        blobs.get_file("a", tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_list_by_prefix(blobs: BlobStore) -> None:
    keys = ["a/b", "a/bc", "a/bd/e", "a/c", "a-b", "a.b", "a0", "b/a/b"]
    for key in reversed(keys):
        blobs.put_if_absent(key, b"")
    assert sorted(blobs.list("")) == ["a-b", "a.b", "a/b", "a/bc", "a/bd/e", "a/c", "a0", "b/a/b"]
    assert sorted(blobs.list("a/b")) == ["a/b", "a/bc", "a/bd/e"]
    assert sorted(blobs.list("a/")) == ["a/b", "a/bc", "a/bd/e", "a/c"]
    assert list(blobs.list("a/bd/")) == ["a/bd/e"]
    assert list(blobs.list("a/bd/e")) == ["a/bd/e"]
    assert list(blobs.list("a/b/")) == []
    assert list(blobs.list("c")) == []


@pytest.mark.parametrize("prefix", [".", "..", "../", "/", "/a", "a//", "a/../", "a/.", "./", ".temp/"])
def test_a_prefix_of_no_key_lists_nothing(blobs: BlobStore, prefix: str) -> None:
    blobs.put_if_absent("a/b", b"")
    assert list(blobs.list(prefix)) == []


def test_delete(blobs: BlobStore) -> None:
    blobs.put_if_absent("a/b", b"one")
    blobs.put_if_absent("a/c", b"two")
    assert blobs.delete("a/b") is True
    assert blobs.delete("a/b") is False
    assert blobs.delete("none/such") is False
    assert blobs.get("a/b") is None
    assert list(blobs.list("")) == ["a/c"]
    assert blobs.put_if_absent("a/b", b"again") is True


def test_size(blobs: BlobStore) -> None:
    blobs.put_if_absent("a/b", b"12345")
    assert blobs.size("a/b") == 5
    assert blobs.size("a/c") is None
    assert blobs.size("a/b/c") is None


def test_a_folder_of_objects_is_no_object(blobs: BlobStore, tmp_path: Path) -> None:
    blobs.put_if_absent("a/b", b"x")
    assert blobs.get("a") is None
    assert blobs.size("a") is None
    assert blobs.delete("a") is False
    with pytest.raises(BlobError):
        blobs.get_file("a", tmp_path / "copy")
    assert list(blobs.list("")) == ["a/b"]


@pytest.mark.parametrize("key", INVALID_KEYS.values(), ids=INVALID_KEYS.keys())
def test_invalid_keys_are_refused_by_every_verb(blobs: BlobStore, tmp_path: Path, key: str) -> None:
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
        with pytest.raises(BlobError, match="is not a valid key"):
            verb()
    assert list(blobs.list("")) == []


def test_scratch_is_a_folder_and_stays(blobs: BlobStore) -> None:
    assert blobs.scratch().is_dir()
    assert blobs.scratch() == blobs.scratch()


def test_free_bytes(blobs: BlobStore) -> None:
    free = blobs.free_bytes()
    assert free is None or free > 0
