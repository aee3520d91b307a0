"""Content by digest: written once, verified whenever it is read, and made whole again by writing it again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kitchen_resources.blobs.content import ContentStore, StoredFile, content_key, put_sound_file
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.digests import digest_bytes
from kitchen_resources.errors import CheckpointError
from tests.faulty_blobs import FaultyBlobs

HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
"""sha256 of `hello`."""


@pytest.fixture
def content(blobs: BlobStore) -> ContentStore:
    return ContentStore(blobs)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "given"
    path.write_bytes(b"hello")
    return path


def overwrite(blobs: BlobStore, sha256: str, data: bytes) -> None:
    blobs.delete(content_key(sha256))
    blobs.put_if_absent(content_key(sha256), data)


def test_bytes_have_their_digest_as_name(blobs: BlobStore, content: ContentStore) -> None:
    assert content.put(b"hello") == HELLO
    assert content.put(b"hello") == HELLO
    assert list(blobs.list("")) == [f"blobs/sha256/{HELLO}"]
    assert content.get(HELLO) == b"hello"


def test_a_value_is_stored_as_canonical_json(content: ContentStore) -> None:
    assert content.get(content.put_json({"b": [1, 2.0], "a": None})) == b'{"a":null,"b":[1,2.0]}'
    assert content.put_json({"b": 1, "a": 2}) == content.put_json({"a": 2, "b": 1})


def test_a_file_and_its_bytes_are_one_object(
    blobs: BlobStore, content: ContentStore, file: Path, tmp_path: Path
) -> None:
    assert content.put_file(file) == StoredFile(HELLO, 5)
    assert content.put(b"hello") == HELLO
    assert list(blobs.list("")) == [f"blobs/sha256/{HELLO}"]
    content.get_file(HELLO, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"hello"


def test_what_is_missing_is_named(content: ContentStore, tmp_path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: content.get(HELLO),
        lambda: content.get_file(HELLO, tmp_path / "out"),
    ]
    for call in calls:
        with pytest.raises(CheckpointError) as refused:
            call()
        assert str(refused.value) == (
            f"blobs/sha256/{HELLO}: is missing from the store\n  fix: restore it from a backup of the store"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [b"hellO", b"hell", b"hello ", b""])
def test_what_is_damaged_is_found_when_it_is_read(
    blobs: BlobStore, content: ContentStore, tmp_path: Path, data: bytes
) -> None:
    content.put(b"hello")
    overwrite(blobs, HELLO, data)
    with pytest.raises(CheckpointError, match=f"^blobs/sha256/{HELLO}: its bytes don't match its name\n"):
        content.get(HELLO)
    with pytest.raises(CheckpointError, match=f"^blobs/sha256/{HELLO}: its bytes don't match its name\n"):
        content.get_file(HELLO, tmp_path / "out")


@pytest.mark.parametrize("data", [b"hellO", b"hell", b""])
@pytest.mark.parametrize("by", ["bytes", "file"])
def test_writing_again_what_is_damaged_makes_it_whole(
    blobs: BlobStore, content: ContentStore, file: Path, data: bytes, by: str
) -> None:
    content.put(b"hello")
    overwrite(blobs, HELLO, data)
    assert (content.put(b"hello") if by == "bytes" else content.put_file(file).sha256) == HELLO
    assert content.get(HELLO) == b"hello"


@pytest.mark.parametrize("by", ["bytes", "file"])
def test_writing_again_what_is_sound_writes_nothing(
    blobs: BlobStore, content: ContentStore, file: Path, tmp_path: Path, by: str
) -> None:
    content.put(b"hello")
    verbs: list[str] = []
    watched = ContentStore(FaultyBlobs(blobs, before=lambda verb, key: verbs.append(verb)))
    if by == "bytes":
        watched.put(b"hello")
    else:
        watched.put_file(file)
    assert "delete" not in verbs
    assert [path.name for path in blobs.scratch().iterdir()] == []


def test_what_is_damaged_on_its_way_is_not_taken_for_damaged_in_the_store(tmp_path: Path, file: Path) -> None:
    verbs: list[str] = []

    class Damaging(MemoryBlobs):
        def get_file(self, key: str, path: Path) -> None:
            super().get_file(key, path)
            verbs.append("get_file")
            if len(verbs) == 1:
                path.chmod(0o644)
                path.write_bytes(b"HELLO")

        def delete(self, key: str) -> bool:
            verbs.append("delete")
            return super().delete(key)

    content = ContentStore(Damaging())
    content.put(b"hello")
    content.put_file(file)
    assert verbs == ["get_file", "get_file"]


def test_a_file_is_put_under_any_key_that_its_digest_is_part_of(blobs: BlobStore, file: Path) -> None:
    key = f"runs/a/payload/1/{HELLO}"
    put_sound_file(blobs, key, file, HELLO)
    blobs.delete(key)
    blobs.put_if_absent(key, b"HELLO")
    put_sound_file(blobs, key, file, HELLO)
    stored = blobs.get(key)
    assert stored is not None
    assert digest_bytes(stored.data) == HELLO
