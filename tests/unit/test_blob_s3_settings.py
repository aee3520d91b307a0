"""A bucket named in a URI or in run config: what is taken, and what is refused before anything is sent."""

from pathlib import Path

import pytest

from kitchen_resources.blobs.resource import BlobsResource, S3Store, default_store, open_store
from kitchen_resources.blobs.s3_store import open_bucket, open_uri, scratch_root
from kitchen_resources.errors import ConfigError

FIX = "KITCHEN_STORE=s3://bucket/prefix"


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITCHEN_SCRATCH", str(tmp_path / "scratch"))


@pytest.mark.parametrize(
    ("uri", "known_as"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/prefix/", "s3://bucket/a/prefix"),
        ("s3://my.bucket-1?region_name=eu-central-1", "s3://my.bucket-1"),
        ("s3://bucket/p?endpoint_url=http://127.0.0.1:9&kms_key_id=arn:aws:kms:x:1:key/k", "s3://bucket/p"),
    ],
)
def test_a_bucket_is_opened_by_its_uri(uri: str, known_as: str) -> None:
    assert open_store(uri).uri == known_as


def test_opening_sends_nothing_and_needs_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert open_uri("s3://bucket?endpoint_url=http://127.0.0.1:1").scratch().is_dir()


def test_the_store_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITCHEN_STORE", "s3://bucket/kitchen")
    assert default_store() == "s3://bucket/kitchen"
    assert BlobsResource().adapter().uri == "s3://bucket/kitchen"


def test_the_store_of_run_config() -> None:
    store = S3Store(bucket="bucket", prefix="kitchen", endpoint_url="http://127.0.0.1:9", region_name="eu-central-1")
    assert BlobsResource(store=store).adapter().uri == "s3://bucket/kitchen"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://", f"bucket: '' is no name of a bucket\n  fix: {FIX}"),
        ("s3://Bucket", f"bucket: 'Bucket' is no name of a bucket\n  fix: {FIX}"),
        ("s3://a", f"bucket: 'a' is no name of a bucket\n  fix: {FIX}"),
        ("s3://bucket_/x", f"bucket: 'bucket_' is no name of a bucket\n  fix: {FIX}"),
        ("s3://bucket:9000/x", f"bucket: 'bucket:9000' is no name of a bucket\n  fix: {FIX}"),
        (
            "s3://bucket/a/../b",
            "prefix: 'a/../b' is not a valid key: relative, at most 512 characters, segments of letters, digits and "
            f"._=@+- that don't start with a dot\n  fix: {FIX}",
        ),
        (
            "s3://bucket?region=eu",
            "s3://…: has no setting 'region'\n  fix: s3://bucket/prefix?… with endpoint_url, region_name, kms_key_id",
        ),
        (
            "s3://bucket/x#y",
            "s3://…: has a part that isn't known\n  fix: s3://bucket/prefix?… with endpoint_url, region_name, kms_key_id",
        ),
        (
            "s3://key:secret@bucket/x",
            "s3://…: has a part that isn't known\n  fix: s3://bucket/prefix?… with endpoint_url, region_name, kms_key_id",
        ),
        (
            "gs://bucket",
            "KITCHEN_STORE: stores of the kind gs:// aren't known\n"
            "  fix: name a folder on a local disk, or s3://bucket/prefix",
        ),
    ],
)
def test_what_is_malformed_is_refused(uri: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(uri)
    assert str(caught.value) == message


def test_credentials_go_to_no_endpoint_that_nobody_has_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "s3://bucket?endpoint_url=https://minio.example:9000"
    monkeypatch.delenv("KITCHEN_ALLOWED_ENDPOINTS", raising=False)
    for opening in (
        lambda: open_uri(uri),
        lambda: S3Store(bucket="bucket", endpoint_url="https://minio.example:9000").open(),
    ):
        with pytest.raises(ConfigError) as caught:
            opening()
        assert str(caught.value) == (
            "endpoint_url: https://minio.example:9000 is not an endpoint that credentials may be sent to\n"
            "  fix: if you trust it: export KITCHEN_ALLOWED_ENDPOINTS=https://minio.example:9000 where the code location "
            "starts"
        )
    monkeypatch.setenv("KITCHEN_ALLOWED_ENDPOINTS", "https://minio.example:9000")
    assert open_uri(uri).uri == "s3://bucket"


def test_stores_of_two_services_share_no_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {
        open_bucket("bucket").scratch(),
        open_bucket("bucket", "prefix").scratch(),
        open_bucket("bucket", endpoint_url="http://127.0.0.1:9").scratch(),
    }
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:8")
    places.add(open_bucket("bucket").scratch())
    assert len(places) == 4
    assert open_bucket("bucket", "/prefix/").scratch() == open_bucket("bucket", "prefix").scratch()


def test_scratch_is_where_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scratch_root() == tmp_path / "scratch"
    monkeypatch.delenv("KITCHEN_SCRATCH")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert scratch_root() == tmp_path / "cache" / "crucible-kitchen"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert scratch_root() == tmp_path / ".cache" / "crucible-kitchen"
