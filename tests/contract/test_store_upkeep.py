"""Looking after a store, over every adapter: sizes in listings, unfinished uploads, and a whole collection."""

import uuid
from pathlib import Path
from typing import Any

import pytest

from kitchen_assets.shelf import prune, storage, verify
from kitchen_resources.blobs.content import ContentStore, content_key
from kitchen_resources.blobs.listing import SizedListing, Uploads, list_sizes
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.blobs.s3 import S3Blobs
from kitchen_resources.digests import digest_bytes
from kitchen_resources.storage.room import Room
from tests.engine import Engine, register
from tests.object_store import BUCKET, ObjectStore

ORPHAN = b"nobody names this"


def open_store(kind: str, folder: Path, request: pytest.FixtureRequest) -> BlobStore:
    if kind == "memory":
        return MemoryBlobs()
    if kind == "local":
        return LocalBlobs(folder / "store")
    server: ObjectStore = request.getfixturevalue("s3_server")
    return server.blobs(f"{uuid.uuid4().hex}/store")


@pytest.fixture(params=["memory", "local", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return open_store(request.param, tmp_path, request)


@pytest.fixture
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> S3Blobs:
    found = open_store("s3", tmp_path, request)
    assert isinstance(found, S3Blobs)
    return found


def test_keys_are_listed_with_their_sizes(blobs: BlobStore) -> None:
    for key, size in (("a/one", 1), ("a/three", 3), ("b", 2), ("c/none", 0)):
        blobs.put_if_absent(key, b"x" * size)
    assert list(list_sizes(blobs, "a/")) == [("a/one", 1), ("a/three", 3)]
    assert list(list_sizes(blobs, "")) == [("a/one", 1), ("a/three", 3), ("b", 2), ("c/none", 0)]
    assert list(list_sizes(blobs, "d")) == []
    assert list(list_sizes(blobs, "/")) == []


def test_a_bucket_lists_sizes_without_asking_for_each(bucket: S3Blobs) -> None:
    assert isinstance(bucket, SizedListing)
    assert isinstance(bucket, Uploads)
    bucket.put_if_absent("a", b"xyz")
    asked: list[str] = []
    bucket._s3.meta.events.register("before-call.s3", lambda model, **about: asked.append(model.name))
    assert list(list_sizes(bucket, "")) == [("a", 3)]
    assert asked == ["ListObjectsV2"]


def test_what_nothing_names_is_deleted_and_all_else_stays_sound(blobs: BlobStore) -> None:
    engine = Engine(blobs=blobs)
    register(engine, engine.finish(keep_last=3).head, 9)
    before = set(blobs.list(""))
    ContentStore(blobs).put(ORPHAN)
    assert storage(blobs).garbage == Room(1, len(ORPHAN))
    assert prune(keep_last=None, grace_hours=0, blobs=blobs).marked == 1
    assert list(blobs.list("garbage/")) == [f"garbage/{digest_bytes(ORPHAN)}"]
    pruned = prune(keep_last=None, grace_hours=0, blobs=blobs)
    assert (pruned.blobs, pruned.bytes, pruned.held_back, pruned.uploads_left) == (1, len(ORPHAN), "", "")
    assert set(blobs.list("")) == before
    assert verify(blobs=blobs) == []
    assert engine.finish(keep_last=3).steps_done == 0


def test_the_room_in_a_bucket_is_told_without_its_payload(bucket: S3Blobs) -> None:
    engine = Engine(blobs=bucket)
    engine.finish(keep_last=3)
    read: list[str] = []

    def note(params: dict[str, Any], **about: Any) -> None:
        read.append(params["Key"])

    for call in ("GetObject", "HeadObject"):
        bucket._s3.meta.events.register(f"provide-client-params.s3.{call}", note)
    found = storage(bucket)
    assert found.payload == Room(3, 3 * engine.head().entries()[0].bytes)
    assert read
    assert not [key for key in read if "/payload/" in key]


def test_what_was_deleted_is_stored_anew(blobs: BlobStore) -> None:
    content = ContentStore(blobs)
    sha256 = content.put(ORPHAN)
    prune(grace_hours=0, blobs=blobs)
    assert content.put(ORPHAN) == sha256
    # Spared by the writer, and so marked anew and not deleted.
    assert prune(grace_hours=0, blobs=blobs).blobs == 0
    assert prune(grace_hours=0, blobs=blobs).blobs == 1
    assert content.put(ORPHAN) == sha256
    assert list(blobs.list("")) == [content_key(sha256)]
    assert content.get(sha256) == ORPHAN


def begin_upload(bucket: S3Blobs, key: str) -> str:
    """Send a part, and go away."""
    name = bucket._name(key)
    begun: dict[str, Any] = bucket._s3.create_multipart_upload(Bucket=BUCKET, Key=name)
    bucket._s3.upload_part(Bucket=BUCKET, Key=name, UploadId=begun["UploadId"], PartNumber=1, Body=b"x" * 100)
    return str(begun["UploadId"])


def uploads(bucket: S3Blobs, ids: set[str]) -> set[str]:
    """Those of the uploads that are unfinished."""
    answer = bucket._s3.list_multipart_uploads(Bucket=BUCKET)
    return ids & {upload["UploadId"] for upload in answer.get("Uploads", ())}


def test_uploads_that_broke_off_are_given_up_once_they_are_old(
    bucket: S3Blobs, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    other = open_store("s3", tmp_path, request)
    assert isinstance(other, S3Blobs)
    ids = {begin_upload(bucket, "a/large"), begin_upload(bucket, "b")}
    theirs = begin_upload(other, "a/large")
    assert bucket.abort_uploads(24 * 3600) == 0
    assert uploads(bucket, {*ids, theirs}) == {*ids, theirs}
    # Begun before now, by the clock of this machine, which is also the server's.
    assert bucket.abort_uploads(-60) == 2
    assert uploads(bucket, {*ids, theirs}) == {theirs}
    assert bucket.abort_uploads(-60) == 0
    assert other.abort_uploads(-60) == 1
