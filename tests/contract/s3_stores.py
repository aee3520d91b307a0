"""Stores in a bucket, opened for the tests of what a service can do to them."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.port import BlobStore, Stored
from kitchen_resources.blobs.s3 import S3Blobs
from kitchen_resources.blobs.s3_store import open_bucket
from tests import s3_proxy as faults
from tests.object_store import BUCKET
from tests.s3_proxy import Act, refused

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
