"""A bucket whose service, network or credentials fail: what is repeated, what is said, and that nothing half is there."""

import base64
import copy
import errno
import gc
import os
import random
import re
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import pytest

from kitchen_resources.blobs import s3 as s3_module
from kitchen_resources.blobs import s3_client
from kitchen_resources.blobs.port import BlobStore, Stored
from kitchen_resources.blobs.s3 import S3Blobs
from kitchen_resources.blobs.s3_store import open_bucket
from kitchen_resources.digests import digest_file
from kitchen_resources.errors import BlobError, DiskFull, KitchenError
from tests import s3_proxy as faults
from tests.faults.forked import Say, forked
from tests.object_store import BUCKET, ObjectStore
from tests.s3_proxy import Act, S3Proxy, refused, s3_proxy

# The transfer manager leaves it to the garbage collector to close a connection that broke off.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

MIB = 2**20
PART = 5 * MIB
"""The smallest part that S3 takes."""

KEY = "folder/key"
DATA = bytes(range(256)) * 16
PASSING: dict[str, Act] = {
    "500": refused(500, "InternalError"),
    "503": refused(503, "SlowDown"),
    "429": refused(429, "TooManyRequests"),
    "closed before it was done": faults.cut_off,
    "answer lost": faults.answer_lost,
}


@pytest.fixture(scope="module", autouse=True)
def without_pauses() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_client, "_FIRST_PAUSE_S", 0.0)
        patch.setattr(s3_module, "_FIRST_PAUSE_S", 0.0)
        yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def proxy_of_all(s3_server: ObjectStore) -> Iterator[S3Proxy]:
    with s3_proxy(s3_server.ports["s3"]) as proxy:
        yield proxy


@pytest.fixture
def proxy(proxy_of_all: S3Proxy) -> S3Proxy:
    """The proxy, which passes everything on until the test says otherwise."""
    proxy_of_all.rules.clear()
    proxy_of_all.forget()
    return proxy_of_all


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def blobs(proxy: S3Proxy, prefix: str) -> S3Blobs:
    """A store of its own behind the proxy, which sends files of 5 MiB in parts."""
    return opened(proxy.endpoint, prefix)


@pytest.fixture
def sound(s3_server: ObjectStore, prefix: str) -> BlobStore:
    """The same store without the proxy."""
    return opened(s3_server.endpoint, prefix)


@pytest.fixture(scope="module")
def client(s3_server: ObjectStore) -> Any:
    return boto3.client("s3", endpoint_url=s3_server.endpoint)


_opened: dict[str, S3Blobs] = {}


def opened(endpoint: str, prefix: str = "", *, part_bytes: int = PART, bucket: str = BUCKET, **how: Any) -> S3Blobs:
    """A store, as `open_bucket` opens it; those of one endpoint share a client, which takes 0.2 s to make."""
    is_usual = not how and bucket == BUCKET
    how = {"endpoint_url": endpoint, "max_attempts": 4, "timeout_s": 20.0, **how}
    key = repr((bucket, sorted(how.items())))
    if key not in _opened:
        store = open_bucket(bucket, "", **how)
        assert isinstance(store, S3Blobs)
        if is_usual:
            # What is tried before the first write is tried once.
            store.put_if_absent("first", b"")
        _opened[key] = store
    store = copy.copy(_opened[key])
    store._settings = replace(store._settings, prefix=prefix, part_bytes=part_bytes)
    return store


def file(folder: Path, size: int = len(DATA)) -> Path:
    path = folder / f"file-{size}"
    path.write_bytes(DATA if size == len(DATA) else random.Random(size).randbytes(size))
    return path


def uploads(client: Any, blobs: S3Blobs) -> list[str]:
    """Multipart uploads that were begun in a store and neither completed nor aborted."""
    found = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return [upload["Key"] for upload in found if upload["Key"].startswith(blobs._settings.prefix)]


# What passes


def _get(blobs: BlobStore, folder: Path) -> object:
    stored = blobs.get(KEY)
    return stored and stored.data


def _get_file(blobs: BlobStore, folder: Path) -> object:
    blobs.get_file(KEY, folder / "copy")
    return (folder / "copy").read_bytes()


def _swap(blobs: BlobStore, folder: Path) -> object:
    stored = blobs.get(KEY)
    assert stored is not None
    version = blobs.compare_and_swap(KEY, stored.version, b"swapped")
    return blobs.get(KEY) == Stored(b"swapped", version or "")


VERBS: dict[str, tuple[str, Callable[[BlobStore, Path], object], object]] = {
    "get": (f"GET .*{KEY}", _get, DATA),
    "get_file": (f"GET .*{KEY}", _get_file, DATA),
    "put_if_absent": ("PUT .*/new", lambda blobs, folder: blobs.put_if_absent("new", DATA), True),
    "put_file": ("PUT .*/new", lambda blobs, folder: blobs.put_file("new", file(folder)), True),
    "create by swap": (
        "PUT .*/new",
        lambda blobs, folder: bool(blobs.compare_and_swap("new", None, DATA)),
        True,
    ),
    "swap": (f"PUT .*{KEY}", _swap, True),
    "list": ("GET .*list-type=2", lambda blobs, folder: list(blobs.list("folder")), [KEY]),
    "size": (f"HEAD .*{KEY}", lambda blobs, folder: blobs.size(KEY), len(DATA)),
    "delete": (f"DELETE .*{KEY}", lambda blobs, folder: blobs.delete(KEY), True),
}


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("verb", VERBS)
def test_a_passing_failure_is_repeated(
    proxy: S3Proxy, blobs: S3Blobs, sound: BlobStore, tmp_path: Path, verb: str, kind: str
) -> None:
    sound.put_if_absent(KEY, DATA)
    pattern, work, expected = VERBS[verb]
    fault = proxy.fault(pattern, PASSING[kind], times=2)
    assert work(blobs, tmp_path) == expected
    assert fault.done == 2


def test_no_random_number_of_the_process_is_drawn(
    proxy: S3Proxy, blobs: S3Blobs, sound: BlobStore, tmp_path: Path
) -> None:
    """The state of the `random` module is part of a training state, and requests are made in the middle of it."""
    large = file(tmp_path, 2 * PART)
    before = random.getstate()
    for verb, (pattern, work, expected) in VERBS.items():
        sound.delete("new")
        sound.delete(KEY)
        sound.put_if_absent(KEY, DATA)
        fault = proxy.fault(pattern, refused(503, "SlowDown"), times=2)
        assert work(blobs, tmp_path) == expected, verb
        assert fault.done == 2
    proxy.fault("PUT|POST", refused(409, "ConditionalRequestConflict"), times=1)
    assert blobs.put_if_absent("more", DATA) is True
    assert blobs.put_file("large", large) is True
    proxy.fault("GET", faults.cut_down, times=2)
    blobs.get_file("large", tmp_path / "another")
    assert random.getstate() == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_service_that_keeps_silent_is_asked_again(
    proxy: S3Proxy, sound: BlobStore, prefix: str, tmp_path: Path, verb: str
) -> None:
    sound.put_if_absent(KEY, DATA)
    impatient = opened(proxy.endpoint, prefix, timeout_s=1.0, max_attempts=6)
    pattern, work, expected = VERBS[verb]
    fault = proxy.fault(pattern, faults.silent, times=1)
    assert work(impatient, tmp_path) == expected
    assert fault.done == 1


@pytest.mark.parametrize("verb", ["get", "get_file"])
@pytest.mark.parametrize("act", [faults.cut_down, faults.damaged_down])
def test_an_answer_that_broke_off_or_arrived_damaged_is_asked_for_again(
    proxy: S3Proxy, blobs: S3Blobs, sound: BlobStore, tmp_path: Path, verb: str, act: Act
) -> None:
    sound.put_if_absent(KEY, DATA)
    pattern, work, expected = VERBS[verb]
    fault = proxy.fault(pattern, act, times=3)
    assert work(blobs, tmp_path) == expected
    assert fault.done == 3


def test_a_part_whose_answer_broke_off_is_asked_for_again(
    proxy: S3Proxy, blobs: S3Blobs, sound: BlobStore, tmp_path: Path
) -> None:
    large = file(tmp_path, 3 * PART)
    sound.put_file("large", large)
    fault = proxy.fault("GET .*/large", faults.cut_down, times=4)
    blobs.get_file("large", tmp_path / "copy")
    assert fault.done == 4
    assert digest_file(tmp_path / "copy") == digest_file(large)


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("request_of", ["POST .*uploads", "PUT .*partNumber=2", "POST .*uploadId"])
def test_a_passing_failure_of_an_upload_in_parts_is_repeated(
    proxy: S3Proxy, blobs: S3Blobs, sound: BlobStore, tmp_path: Path, request_of: str, kind: str
) -> None:
    large = file(tmp_path, 2 * PART + 1)
    fault = proxy.fault(request_of, PASSING[kind], times=2)
    assert blobs.put_file("large", large) is True
    assert fault.done == 2
    sound.get_file("large", tmp_path / "copy")
    assert digest_file(tmp_path / "copy") == digest_file(large)


# What lasts


def message(error: BlobError) -> str:
    """Its text, without what differs from run to run."""
    return re.sub(r"[0-9a-f]{32}", "<prefix>", str(error))


LASTING: dict[str, tuple[Act, str]] = {
    "503": (refused(503, "SlowDown"), r"503 SlowDown: An error occurred \(SlowDown\)"),
    "500": (refused(500, "InternalError"), r"500 InternalError: An error occurred \(InternalError\)"),
    "closed": (faults.cut_off, "ConnectionClosedError: Connection was closed before we received a valid response"),
}


@pytest.mark.parametrize("kind", LASTING)
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("size", "get_file")])
def test_a_lasting_failure_says_so_and_can_be_mended(
    proxy: S3Proxy, blobs: S3Blobs, sound: BlobStore, tmp_path: Path, verb: str, kind: str
) -> None:
    sound.put_if_absent(KEY, DATA)
    pattern, work, _ = VERBS[verb]
    act, said = LASTING[kind]
    fault = proxy.fault(pattern, act)
    with pytest.raises(BlobError, match=said) as caught:
        work(blobs, tmp_path)
    assert fault.done == 4
    assert caught.value.mendable
    key = {"list": "folder", "get": KEY, "swap": KEY, "delete": KEY}.get(verb, "new")
    assert message(caught.value).startswith(
        f"s3://{BUCKET}/<prefix>/{key}: the store failed, also when asked again ("
    )
    assert str(caught.value).endswith("\n  fix: nothing is lost: run again when the store answers")


def test_a_lasting_failure_without_a_body_says_its_status(proxy: S3Proxy, blobs: S3Blobs, tmp_path: Path) -> None:
    proxy.fault("HEAD", refused(503))
    for work in (lambda: blobs.size(KEY), lambda: blobs.get_file(KEY, tmp_path / "copy")):
        with pytest.raises(BlobError, match=r"asked again \(503: An error occurred \(503\)") as caught:
            work()
        assert caught.value.mendable


@pytest.mark.parametrize("size", [len(DATA), 2 * PART], ids=["small", "in parts"])
def test_an_answer_that_always_breaks_off_is_a_mendable_failure_and_leaves_nothing(
    proxy: S3Proxy, blobs: S3Blobs, sound: BlobStore, tmp_path: Path, size: int
) -> None:
    sound.put_file(KEY, file(tmp_path, size))
    proxy.fault("GET", faults.cut_down)
    (tmp_path / "to").mkdir()
    with pytest.raises(BlobError, match="the store failed, also when asked again") as caught:
        blobs.get_file(KEY, tmp_path / "to" / "copy")
    assert caught.value.mendable
    assert list((tmp_path / "to").iterdir()) == []
    if size == len(DATA):
        with pytest.raises(BlobError, match=r"asked again \(.*(IncompleteRead|ResponseStreaming)") as caught:
            blobs.get(KEY)
        assert caught.value.mendable


def test_a_service_that_never_answers_is_a_mendable_failure(proxy: S3Proxy, tmp_path: Path) -> None:
    blobs = opened(proxy.endpoint, timeout_s=0.2, max_attempts=2)
    fault = proxy.fault("", faults.silent)
    for verb, (_, work, _) in VERBS.items():
        with pytest.raises(BlobError, match="ReadTimeoutError: Read timeout on endpoint URL") as caught:
            work(blobs, tmp_path)
        assert caught.value.mendable, verb
    assert fault.done == 2 * len(VERBS)


def test_nobody_there_is_a_mendable_failure(s3_server: ObjectStore, tmp_path: Path) -> None:
    with s3_proxy(s3_server.ports["s3"]) as gone:
        blobs = opened(gone.endpoint, max_attempts=3)
    for verb, (_, work, _) in VERBS.items():
        with pytest.raises(BlobError, match="EndpointConnectionError: Could not connect") as caught:
            work(blobs, tmp_path)
        assert caught.value.mendable, verb


NEEDS = (
    "these credentials need s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload on the store's prefix "
    "and s3:ListBucket on the bucket"
)


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_secret_is_told_and_can_not_be_mended(
    s3_server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    blobs = opened(s3_server.endpoint, max_attempts=3)
    with pytest.raises(BlobError, match=r"access was denied \((403|403 SignatureDoesNotMatch)\)") as caught:
        VERBS[verb][1](blobs, tmp_path)
    assert not caught.value.mendable
    assert str(caught.value).endswith(f"\n  fix: {NEEDS}")


@pytest.mark.parametrize("verb", VERBS)
def test_a_denied_request_is_told_and_not_repeated(
    proxy: S3Proxy, blobs: S3Blobs, sound: BlobStore, tmp_path: Path, verb: str
) -> None:
    sound.put_if_absent(KEY, DATA)
    pattern, work, _ = VERBS[verb]
    fault = proxy.fault(pattern, refused(403, "AccessDenied"))
    with pytest.raises(BlobError, match=r"access was denied \(403( AccessDenied)?\)") as caught:
        work(blobs, tmp_path)
    assert fault.done == 1
    assert not caught.value.mendable


@pytest.mark.parametrize("verb", VERBS)
def test_a_bucket_that_is_not_there_is_told_by_every_verb_and_not_made(
    s3_server: ObjectStore, client: Any, tmp_path: Path, verb: str
) -> None:
    blobs = opened(s3_server.endpoint, bucket="no-such-bucket")
    with pytest.raises(BlobError) as caught:
        VERBS[verb][1](blobs, tmp_path)
    assert caught.value.what == "the bucket isn't there"
    assert caught.value.fix == "create it, or correct KITCHEN_STORE"
    assert not caught.value.mendable
    assert "no-such-bucket" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]


def test_no_credentials_are_told(s3_server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    blobs = opened(s3_server.endpoint, max_attempts=2)
    for _, work, _ in VERBS.values():
        with pytest.raises(BlobError) as caught:
            work(blobs, tmp_path)
        assert caught.value.what == "no credentials for the bucket were found"
        assert caught.value.fix == (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give the machine a role"
        )
        assert not caught.value.mendable


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken"])
def test_credentials_that_have_run_out_are_told(proxy: S3Proxy, blobs: S3Blobs, code: str) -> None:
    proxy.fault("GET", refused(400, code))
    with pytest.raises(BlobError) as caught:
        blobs.get(KEY)
    assert caught.value.what == f"the credentials have run out (400 {code})"
    assert caught.value.fix == "renew them, then run again"


def test_what_else_the_service_says_is_passed_on(proxy: S3Proxy, blobs: S3Blobs) -> None:
    proxy.fault("PUT .*/new", refused(400, "EntityTooLarge"))
    with pytest.raises(BlobError) as caught:
        blobs.put_if_absent("new", DATA)
    assert caught.value.what.startswith("the store refused (400 EntityTooLarge: ")
    assert "put in by the test" in caught.value.what
    assert not caught.value.mendable


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
    assert proxy.kinds["GET ?list-type"] == 2


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
