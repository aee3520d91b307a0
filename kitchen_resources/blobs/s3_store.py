"""Opening a bucket as a store: from a URI, or from run config."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from kitchen_resources.blobs.port import BlobStore, check_key
from kitchen_resources.endpoints import check_endpoint
from kitchen_resources.errors import BlobError, ConfigError

SCRATCH = "KITCHEN_SCRATCH"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_AWS = "https://s3.amazonaws.com"
_SETTINGS = ("endpoint_url", "region_name", "kms_key_id")


def open_bucket(
    bucket: str,
    prefix: str = "",
    *,
    endpoint_url: str = "",
    region_name: str = "",
    kms_key_id: str = "",
    max_attempts: int = 6,
    timeout_s: float = 10.0,
) -> BlobStore:
    """A store in a bucket. Credentials are boto3's: environment variables, profile, or the machine's role.

    Args:
        bucket: Its name.
        prefix: What the store's keys start with.
        endpoint_url: Of a service other than AWS; empty for that of boto3's own settings, then AWS.
        region_name: Of the bucket; empty for that of boto3's own settings.
        kms_key_id: Key of AWS KMS that objects are encrypted with; empty for the bucket's default.
        max_attempts: Requests made for one call at most, with exponential back-off between them.
        timeout_s: How long the service may take to accept a connection or to go on answering, in seconds.

    Raises:
        ConfigError: A name is malformed, or credentials may not be sent to the endpoint.
    """
    from kitchen_resources.blobs.s3 import S3Blobs, S3Settings

    prefix = prefix.strip("/")
    if not _BUCKET.match(bucket):
        raise ConfigError(
            f"{bucket!r} is no name of a bucket", where="bucket", fix="KITCHEN_STORE=s3://bucket/prefix"
        )
    try:
        if prefix:
            check_key(prefix)
    except BlobError as error:
        raise ConfigError(error.what, where="prefix", fix="KITCHEN_STORE=s3://bucket/prefix") from None
    if endpoint_url:
        endpoint_url = check_endpoint(endpoint_url, _AWS, where="endpoint_url")

    def connect() -> Any:
        from kitchen_resources.blobs.s3_client import KitchenS3

        resource = KitchenS3(
            endpoint_url=endpoint_url or None,
            region_name=region_name or None,
            max_attempts=max_attempts,
            timeout_s=timeout_s,
        )
        return resource.get_client()

    named = (
        f"{endpoint_url or os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL', '')} {prefix}"
    )
    scratch = scratch_root() / f"{bucket}-{hashlib.sha256(named.encode()).hexdigest()[:12]}"
    return S3Blobs(connect, S3Settings(bucket=bucket, prefix=prefix, kms_key_id=kms_key_id), scratch)


def open_uri(uri: str) -> BlobStore:
    """A store by its URI: `s3://bucket/prefix`, with `?endpoint_url=…&region_name=…&kms_key_id=…` where needed.

    Raises:
        ConfigError: It is malformed, or names a setting that there isn't.
    """
    parts = urlsplit(uri)
    settings = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(settings) - set(_SETTINGS))
    if unknown or parts.fragment or "@" in parts.netloc:
        what = f"has no setting {unknown[0]!r}" if unknown else "has a part that isn't known"
        raise ConfigError(what, where="s3://…", fix=f"s3://bucket/prefix?… with {', '.join(_SETTINGS)}")
    return open_bucket(
        parts.netloc,
        parts.path,
        endpoint_url=settings.get("endpoint_url", ""),
        region_name=settings.get("region_name", ""),
        kms_key_id=settings.get("kms_key_id", ""),
    )


def scratch_root() -> Path:
    """Where stores without a disk of their own keep work in progress: `KITCHEN_SCRATCH`, else the user's cache."""
    named = os.environ.get(SCRATCH)
    if named:
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "crucible-kitchen"
