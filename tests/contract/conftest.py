"""A bucket behind a proxy that fails as it is told to."""

import gc
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from kitchen_resources.blobs import s3 as s3_module
from kitchen_resources.blobs import s3_client
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.blobs.s3 import S3Blobs
from tests.contract.s3_stores import opened
from tests.object_store import ObjectStore
from tests.s3_proxy import S3Proxy, s3_proxy


@pytest.fixture(scope="module")
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
