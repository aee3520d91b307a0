"""A bucket whose service, network or credentials fail: what is repeated, and what is said of what lasts."""

import random
import re
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.blobs.s3 import S3Blobs
from kitchen_resources.digests import digest_file
from kitchen_resources.errors import BlobError
from tests import s3_proxy as faults
from tests.contract.s3_stores import DATA, KEY, PART, PASSING, VERBS, file, opened
from tests.object_store import BUCKET, ObjectStore
from tests.s3_proxy import Act, S3Proxy, refused, s3_proxy

# The transfer manager leaves it to the garbage collector to close a connection that broke off.
pytestmark = [
    pytest.mark.usefixtures("without_pauses"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


# What passes


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
