"""A bucket under conditions, in parts, damaged on the way, encrypted and listed: nothing half is ever there."""

import base64
import errno
import os
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.port import BlobStore, Stored
from kitchen_resources.blobs.s3 import S3Blobs
from kitchen_resources.digests import digest_file
from kitchen_resources.errors import BlobError, DiskFull, KitchenError
from tests import s3_proxy as faults
from tests.contract.s3_stores import DATA, KEY, PART, file, opened, uploads
from tests.faults.forked import Say, forked
from tests.object_store import BUCKET, ObjectStore
from tests.s3_proxy import Act, S3Proxy, refused

# The transfer manager leaves it to the garbage collector to close a connection that broke off.
pytestmark = [
    pytest.mark.usefixtures("without_pauses"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


# Conditions


def test_a_write_whose_answer_was_lost_is_known_as_this_calls_own(
    proxy: S3Proxy, blobs: S3Blobs, sound: BlobStore
) -> None:
    blobs.put_if_absent("first", b"")
    fault = proxy.fault("PUT .*/key", faults.answer_lost, times=2)
    assert blobs.put_if_absent("key", b"one") is True
    assert fault.done == 2
    stored = sound.get("key")
    assert stored is not None
    proxy.fault("PUT .*/key", faults.answer_lost, times=1)
    version = blobs.compare_and_swap("key", stored.version, b"two")
    assert sound.get("key") == Stored(b"two", version or "")


def test_a_write_whose_answer_was_lost_after_another_swapped_it_is_lost(
    proxy: S3Proxy, blobs: S3Blobs, sound: BlobStore
) -> None:
    """What matters to a lease: never to think that one holds what another has taken."""
    sound.put_if_absent("head", b"one")
    first = blobs.get("head")
    assert first is not None

    def theirs() -> None:
        stored = sound.get("head")
        assert stored is not None
        assert sound.compare_and_swap("head", stored.version, b"theirs") is not None

    proxy.fault("PUT .*/head", faults.answer_lost, times=1)
    proxy.fault("PUT .*/head", faults.after(theirs), times=1)
    assert blobs.compare_and_swap("head", first.version, b"mine") is None
    stored = sound.get("head")
    assert stored is not None
    assert stored.data == b"theirs"


def test_writes_that_the_service_refuses_for_the_moment_are_repeated(proxy: S3Proxy, blobs: S3Blobs) -> None:
    fault = proxy.fault("PUT .*/key", refused(409, "ConditionalRequestConflict"), times=3)
    assert blobs.put_if_absent("key", b"one") is True
    assert fault.done == 3


IGNORES = (
    "the service ignores conditional writes (If-None-Match, If-Match), without which two runs would overwrite each "
    "other's checkpoints"
)


def test_an_upload_in_parts_that_the_service_refuses_for_the_moment_is_sent_again(
    proxy: S3Proxy, blobs: S3Blobs, client: Any, tmp_path: Path
) -> None:
    fault = proxy.fault("POST .*uploadId", refused(409, "ConditionalRequestConflict"), times=1)
    assert blobs.put_file("large", file(tmp_path, 2 * PART)) is True
    assert fault.done == 1
    assert blobs.size("large") == 2 * PART
    assert uploads(client, blobs) == []


@pytest.mark.parametrize("names", [("If-None-Match", "If-Match"), ("If-None-Match",), ("If-Match",)])
@pytest.mark.parametrize("size", [1, 2 * PART])
def test_a_service_that_ignores_conditions_is_refused_before_anything_is_written(
    proxy: S3Proxy, s3_server: ObjectStore, tmp_path: Path, names: tuple[str, ...], size: int
) -> None:
    prefix = uuid.uuid4().hex
    blobs = opened(proxy.endpoint, prefix)
    blobs._may_write = False
    proxy.fault("PUT", faults.unconditional(*names))
    writes: list[Callable[[], object]] = [
        lambda: blobs.put_if_absent("key", b"one"),
        lambda: blobs.compare_and_swap("key", None, b"one"),
        lambda: blobs.compare_and_swap("key", '"1"', b"one"),
        lambda: blobs.put_file("key", file(tmp_path, size)),
    ]
    for write in writes:
        with pytest.raises(BlobError) as caught:
            write()
        assert caught.value.what == IGNORES
        assert caught.value.where == f"s3://{BUCKET}/{prefix}"
    assert list(opened(s3_server.endpoint, prefix).list("")) == []


def test_conditions_are_tried_once_and_leave_nothing_in_a_listing(proxy: S3Proxy, prefix: str) -> None:
    blobs = opened(proxy.endpoint, prefix)
    blobs._may_write = blobs._is_there = False
    for number in range(3):
        blobs.put_if_absent(f"key-{number}", b"")
    assert proxy.kinds == {"GET ?list-type": 1, "PUT": 3 + 3}
    assert sorted(blobs.list("")) == ["key-0", "key-1", "key-2"]


# Parts


def test_a_large_file_goes_up_and_down_in_parts_with_checksums_and_on_condition(
    proxy: S3Proxy, blobs: S3Blobs, tmp_path: Path
) -> None:
    size = 2 * PART + 1
    large = file(tmp_path, size)
    blobs.put_if_absent("first", b"")
    proxy.forget()
    assert blobs.put_file("large", large) is True
    assert proxy.kinds == {"HEAD": 1, "POST ?uploads": 1, "PUT ?uploadId": 3, "POST ?uploadId": 1}
    assert proxy.bytes_up["PUT ?uploadId"] == size
    (complete,) = [request for request in proxy.requests if request.kind == "POST ?uploadId"]
    assert complete.header("If-None-Match") == "*"
    parts = [request for request in proxy.requests if request.kind == "PUT ?uploadId"]
    for part in parts:
        assert part.header("x-amz-checksum-sha256") == base64.b64encode(sha256(part.body).digest()).decode()
    assert complete.body.count(b"<ChecksumSHA256>") == 3
    proxy.forget()
    blobs.get_file("large", tmp_path / "copy")
    assert proxy.bytes_down["GET"] == size
    assert digest_file(tmp_path / "copy") == digest_file(large)
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1])
def test_files_of_any_size_come_back(blobs: S3Blobs, tmp_path: Path, size: int) -> None:
    assert blobs.put_file("key", file(tmp_path, size)) is True
    assert blobs.put_file("key", file(tmp_path, size)) is False
    assert blobs.size("key") == size
    blobs.get_file("key", tmp_path / "copy")
    assert digest_file(tmp_path / "copy") == digest_file(file(tmp_path, size))


def test_an_upload_in_parts_overwrites_nothing_and_is_aborted(
    proxy: S3Proxy, blobs: S3Blobs, sound: BlobStore, client: Any, tmp_path: Path
) -> None:
    """The object is made by another when all parts are there, and only the completion is missing."""
    fault = proxy.fault("POST .*uploadId", faults.after(lambda: sound.put_if_absent("large", b"theirs")), times=1)
    assert blobs.put_file("large", file(tmp_path, 2 * PART)) is False
    assert fault.done == 1
    stored = sound.get("large")
    assert stored is not None
    assert stored.data == b"theirs"
    assert uploads(client, blobs) == []


@pytest.mark.parametrize("act", [refused(403, "AccessDenied"), refused(500, "InternalError")], ids=["403", "500"])
@pytest.mark.parametrize("request_of", ["PUT .*partNumber=2", "POST .*uploadId"])
def test_the_parts_of_an_upload_that_failed_are_aborted(
    proxy: S3Proxy, blobs: S3Blobs, client: Any, tmp_path: Path, request_of: str, act: Act
) -> None:
    proxy.fault(request_of, act)
    with pytest.raises(BlobError):
        blobs.put_file("large", file(tmp_path, 2 * PART))
    assert proxy.kinds["DELETE ?uploadId"] == 1
    assert uploads(client, blobs) == []
    assert blobs.size("large") is None


# Integrity


@pytest.mark.parametrize("act", [faults.damaged_up, faults.damaged_up_where_only_a_checksum_tells])
@pytest.mark.parametrize("size", [len(DATA), 2 * PART], ids=["small", "in parts"])
def test_a_body_that_is_damaged_on_its_way_up_is_refused_and_sent_again(
    proxy: S3Proxy, blobs: S3Blobs, sound: BlobStore, tmp_path: Path, size: int, act: Act
) -> None:
    request_of = "PUT .*/key" if size == len(DATA) else "PUT .*partNumber=2"
    source = file(tmp_path, size)
    lasting = proxy.fault(request_of, act)
    with pytest.raises(BlobError, match=r"BadDigest|XAmzContentSHA256Mismatch|ChecksumMismatch") as caught:
        blobs.put_file("key", source)
    assert caught.value.mendable
    assert sound.size("key") is None
    lasting.times = lasting.done + 1
    assert blobs.put_file("key", source) is True
    sound.get_file("key", tmp_path / "copy")
    assert digest_file(tmp_path / "copy") == digest_file(source)


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (
            errno.ENOSPC,
            DiskFull,
            r"copy: can't be written: No space left on device; 4096 bytes are needed, \d+ are free",
        ),
        (errno.EACCES, BlobError, r"copy: can't be written: Permission denied$"),
    ],
)
def test_a_local_file_that_can_not_be_written_is_told(
    sound: S3Blobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[KitchenError],
    said: str,
) -> None:
    sound.put_if_absent(KEY, DATA)

    def fail(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(kind) as caught:
        sound.get_file(KEY, tmp_path / "copy")
    assert type(caught.value) is kind
    assert re.search(said, str(caught.value).splitlines()[0])
    assert list(tmp_path.iterdir()) == []


# Links, keys, encryption


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        body: bytes = answer.read()
    return body


def test_a_link_is_read_by_anybody_and_a_changed_one_by_nobody(sound: S3Blobs) -> None:
    sound.put_if_absent(KEY, DATA)
    sound.put_if_absent("folder/other", b"secret")
    link = sound.link(KEY, 60)
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in link
    assert "X-Amz-Expires=60" in link
    assert fetched(link) == DATA
    for changed in (
        link.replace("/folder/key", "/folder/other"),
        link.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"),
        link[:-1] + ("0" if link[-1] != "0" else "1"),
        link.partition("?")[0],
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            fetched(changed)
        assert caught.value.code == 403
        caught.value.close()
    with pytest.raises(BlobError, match="is not a valid key"):
        sound.link("../key", 60)


def test_the_key_of_a_key_service_is_sent_with_every_write(proxy: S3Proxy, blobs: S3Blobs, tmp_path: Path) -> None:
    """The headers only: the server of these tests has no key service, so they are taken off on the way."""
    blobs._settings = replace(blobs._settings, kms_key_id="arn:aws:kms:eu-central-1:1:key/k")
    names = ("x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id")
    proxy.fault("PUT|POST", faults.unconditional(*names))
    blobs.put_if_absent("small", b"")
    stored = blobs.get("small")
    assert stored is not None
    assert blobs.compare_and_swap("small", stored.version, b"more") is not None
    assert blobs.put_file("large", file(tmp_path, 2 * PART)) is True
    sent = [
        r.kind
        for r in proxy.requests
        if [r.header(n) for n in names] == ["aws:kms", "arn:aws:kms:eu-central-1:1:key/k"]
    ]
    assert sent == ["PUT", "PUT", "POST ?uploads"]
    assert not [r for r in proxy.requests if r.kind == "GET" and r.header(names[0])]


def test_two_prefixes_of_a_bucket_are_two_stores(s3_server: ObjectStore, prefix: str) -> None:
    one, two, around = (opened(s3_server.endpoint, place) for place in (f"{prefix}/a", f"{prefix}/ab", prefix))
    assert one.put_if_absent("key", b"one") is True
    assert two.put_if_absent("key", b"two") is True
    assert [store.get("key").data for store in (one, two)] == [b"one", b"two"]  # type: ignore[union-attr]
    assert [list(store.list("")) for store in (one, two)] == [["key"], ["key"]]
    assert sorted(around.list("")) == ["a/key", "ab/key"]
    assert one.delete("key") is True
    assert two.size("key") == 3


def test_a_listing_of_more_than_a_page_is_whole(proxy: S3Proxy, blobs: S3Blobs, client: Any) -> None:
    keys = [f"many/{number:04}" for number in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        name = blobs._name
        list(pool.map(lambda key: client.put_object(Bucket=BUCKET, Key=name(key), Body=b""), keys))
    assert sorted(blobs.list("many/")) == keys
    # How many it puts on a page is the service's own affair.
    assert proxy.kinds["GET ?list-type"] >= 2


def test_a_listing_whose_second_page_fails_is_no_short_listing(
    proxy: S3Proxy, blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        blobs.put_if_absent(f"few/{number}", b"")
    blobs._s3.meta.events.register("provide-client-params.s3.ListObjectsV2", _two_a_page, unique_id="two")
    try:
        assert sorted(blobs.list("few/")) == ["few/0", "few/1", "few/2"]
        proxy.fault("GET .*continuation-token", refused(500, "InternalError"))
        listing = blobs.list("few/")
        assert [next(listing), next(listing)] == ["few/0", "few/1"]
        with pytest.raises(BlobError, match="500 InternalError"):
            next(listing)
    finally:
        blobs._s3.meta.events.unregister("provide-client-params.s3.ListObjectsV2", unique_id="two")


def _two_a_page(params: dict[str, Any], **about: Any) -> None:
    params["MaxKeys"] = 2


# Processes


def test_a_forked_child_has_connections_of_its_own(sound: S3Blobs) -> None:
    assert sound.put_if_absent("parents", b"") is True
    parents = sound._s3

    def work(say: Say) -> None:
        say(f"{sound._s3 is parents}")
        for number in range(20):
            sound.put_if_absent(f"childs-{number}", str(number).encode())
        say("done")

    with forked(work) as child:
        assert child.line() == "False"
        for number in range(20):
            sound.put_if_absent(f"parents-{number}", str(number).encode())
            assert sound.get(f"parents-{number}").data == str(number).encode()  # type: ignore[union-attr]
        assert child.rest() == ["done"]
    assert sound._s3 is parents
    assert len(list(sound.list(""))) == 41
