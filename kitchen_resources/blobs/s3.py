"""Blobs in an S3 bucket, or in a store that speaks its protocol: MinIO, Cloudflare R2, SeaweedFS, Ceph.

    s3://<bucket>/<prefix>/<key>      one object a key, never overwritten but by compare-and-swap
    <scratch>/                        a local folder for work in progress; nothing there is of value

Creating is `If-None-Match: *` and swapping is `If-Match` on the ETag, so the service must honour conditional writes,
which is tried before the first write. Every upload carries SHA-256 checksums, which the service compares with what it
received.
"""

import base64
import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kitchen_resources.blobs.port import Stored, check_key, is_key, may_start_key
from kitchen_resources.blobs.s3_failures import (
    CHANCE,
    CONFLICT,
    MISSING,
    PRECONDITION,
    as_blob_error,
    attempts_of,
    code_of,
    is_broken,
    is_of_client,
)
from kitchen_resources.errors import BlobError, DiskFull, KitchenError

T = TypeVar("T")

_WRITER = "kitchen-writer"
"""User metadata of an object: which call wrote it."""

_TRIED = ".conditional-writes"
"""An object that is no key of the store, on which conditional writes are tried."""

_MOST_UNWRITTEN = 64
"""Pieces of 256 KiB that a download may be ahead of the disk."""

_TRIES = 6
_FIRST_PAUSE_S = 0.1


@dataclass(frozen=True)
class S3Settings:
    """How a bucket is used.

    Attributes:
        bucket: Its name.
        prefix: What the keys of the store start with, without slashes at its ends; or empty.
        kms_key_id: Key of AWS KMS that objects are encrypted with; empty for the bucket's default.
        part_bytes: Size of the parts of a multipart upload or download; files from this size on are sent so.
        threads: Parts under way at once.
    """

    bucket: str
    prefix: str = ""
    kms_key_id: str = ""
    part_bytes: int = 16 * 2**20
    threads: int = 8


class S3Blobs:
    """A blob store in a bucket, which any number of processes on any number of machines may share.

    A version is the ETag. Calls that fail for a passing reason (429, 500, 502, 503, 504, a lost connection, a timeout)
    are repeated by the client with exponential back-off; what still fails is a `BlobError` that may be repeated later.

    Args:
        connect: Makes the boto3 client, when it is first needed; also after a fork, which no connection survives.
        settings: How the bucket is used.
        scratch: Local folder for work in progress; made where it is missing.

    """

    def __init__(self, connect: Callable[[], Any], settings: S3Settings, scratch: Path) -> None:
        self._connect = connect
        self._settings = settings
        self._scratch = scratch
        self._connected: tuple[int, Any] | None = None
        self._is_there = False
        self._may_write = False

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """As `BlobStore.put_if_absent`."""
        return self._put(key, data, IfNoneMatch="*") is not None

    def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> str | None:
        """As `BlobStore.compare_and_swap`; a version is the object's ETag."""
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        return self._put(key, data, **condition)

    def get(self, key: str) -> Stored | None:
        """As `BlobStore.get`."""
        place = self._place(key)

        def read() -> Stored | None:
            try:
                answer = self._s3.get_object(**place, ChecksumMode="ENABLED")
                with closing(answer["Body"]) as body:
                    return Stored(body.read(), answer["ETag"])
            except Exception as error:
                if code_of(error) in MISSING:
                    return None
                raise

        with self._failures(key):
            return _repeated(read, is_broken)

    def put_file(self, key: str, path: Path) -> bool:
        """As `BlobStore.put_file`; a large file is sent in parts, some at once."""
        place = self._place(key)
        size = _size(path)
        if self.size(key) is not None:
            return False
        if size < self._settings.part_bytes:
            return self.put_if_absent(key, path.read_bytes())
        self._require_conditional_writes()
        writer = uuid.uuid4().hex
        extra = {"ChecksumAlgorithm": "SHA256", "Metadata": {_WRITER: writer}, **self._encryption()}
        try:
            with self._failures(key), self._transfers() as transfers:
                _repeated(
                    lambda: transfers.upload(str(path), place["Bucket"], place["Key"], extra_args=extra).result(),
                    # Its last request, on condition, may be refused for the moment: then all of it is sent again.
                    lambda error: code_of(error) in CONFLICT,
                )
        except BlobError as error:
            # Somebody else was first; or the last request was done, its answer lost, and it was repeated.
            head = self._head(key) if code_of(error.__cause__) in PRECONDITION | MISSING else None
            if head is None:
                raise
            return _is_by(head, writer)
        return True

    def get_file(self, key: str, path: Path) -> None:
        """As `BlobStore.get_file`: a copy of mode 0444, which has its name when it is whole."""
        place = self._place(key)
        if os.path.lexists(path):
            raise BlobError("exists already", where=str(path), fix="give a path where there is no file yet")
        part = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            with self._failures(key), self._transfers() as transfers:

                def fetch() -> None:
                    # Into a file that is open: for a name of its own s3transfer draws from the `random` module.
                    with part.open("wb") as new:
                        transfers.download(place["Bucket"], place["Key"], new).result()

                _repeated(fetch, is_broken)
            part.chmod(0o444)
            os.link(part, path)
        except BlobError as error:
            if code_of(error.__cause__) in MISSING and self.size(key) is None:
                raise BlobError("no such object", where=self._where(key), fix="list the store's keys") from None
            raise
        except OSError as error:
            raise _not_written(error, path, self.size(key)) from error
        finally:
            part.unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[str]:
        """As `BlobStore.list`, a page of a thousand keys at a time."""
        yield from (key for key, _ in self.list_sizes(prefix))

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """As `SizedListing.list_sizes`: a page says both."""
        if not may_start_key(prefix):
            return
        with self._failures(prefix):
            # A marker of the last key, and not a page's number: keys may come and go meanwhile.
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._settings.bucket, Prefix=self._name("") + prefix
            )
            for page in pages:
                for found in page.get("Contents", ()):
                    key = found["Key"].removeprefix(self._name(""))
                    if is_key(key):
                        yield key, int(found["Size"])

    def abort_uploads(self, older_than_s: float) -> int:
        """As `Uploads.abort_uploads`: multipart uploads of the store's prefix, which nobody will finish."""
        now, count = time.time(), 0
        with self._failures(""):
            pages = self._s3.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._settings.bucket, Prefix=self._name("")
            )
            for upload in [found for page in pages for found in page.get("Uploads", ())]:
                # Where the service can't say when it was begun, it may be under way.
                begun = upload.get("Initiated")
                if begun is None or now - begun.timestamp() <= older_than_s:
                    continue
                self._abort(upload["Key"], upload["UploadId"])
                count += 1
        return count

    def _abort(self, name: str, upload: str) -> None:
        try:
            self._s3.abort_multipart_upload(Bucket=self._settings.bucket, Key=name, UploadId=upload)
        except Exception as error:
            # Finished or given up by somebody else meanwhile.
            if code_of(error) not in MISSING:
                raise

    def delete(self, key: str) -> bool:
        """As `BlobStore.delete`; of two that delete one object at once, both may be told that there was one."""
        place = self._place(key)
        if self.size(key) is None:
            return False
        with self._failures(key):
            self._s3.delete_object(**place)
        return True

    def size(self, key: str) -> int | None:
        """As `BlobStore.size`."""
        head = self._head(key)
        return None if head is None else int(head["ContentLength"])

    def free_bytes(self) -> None:
        """As `BlobStore.free_bytes`: a bucket has no such limit."""
        return

    def scratch(self) -> Path:
        """As `BlobStore.scratch`: a local folder, which the machine's processes share."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    @property
    def uri(self) -> str:
        """As `BlobStore.uri`."""
        return f"s3://{self._settings.bucket}/{self._settings.prefix}".rstrip("/")

    def link(self, key: str, seconds: int) -> str:
        """As `BlobStore.link`: a presigned URL; it ends earlier when the credentials that signed it do."""
        place = self._place(key)
        with self._failures(key):
            return str(self._s3.generate_presigned_url("get_object", Params=place, ExpiresIn=seconds))

    # The client.

    @property
    def _s3(self) -> Any:
        """The client; a new one after a fork, which no connection survives."""
        connected = self._connected
        if connected is None or connected[0] != os.getpid():
            # Without a lock, which a fork could leave held for ever: at worst two threads connect, and one is used.
            client = self._connect()
            client.meta.events.register("provide-client-params.s3.PutObject", _only_create)
            client.meta.events.register("provide-client-params.s3.CompleteMultipartUpload", _only_create)
            connected = self._connected = (os.getpid(), client)
        return connected[1]

    @contextmanager
    def _transfers(self) -> Iterator[Any]:
        """Uploads and downloads in parts: a few at once, so that memory stays flat however large a file is."""
        from s3transfer.manager import TransferConfig, TransferManager

        size = self._settings.part_bytes
        config = TransferConfig(
            multipart_threshold=size,
            multipart_chunksize=size,
            max_request_concurrency=self._settings.threads,
            max_submission_concurrency=2,
            max_request_queue_size=2 * self._settings.threads,
            max_io_queue_size=_MOST_UNWRITTEN,
            num_download_attempts=_TRIES,
        )
        with TransferManager(self._s3, config) as manager:
            yield manager

    def _put(self, key: str, data: bytes, **condition: str) -> str | None:
        """Write an object if the condition holds; its ETag, or None."""
        place = self._place(key)
        self._require_conditional_writes()
        with self._failures(key):
            return self._put_at(place, data, condition)

    def _put_at(self, place: dict[str, str], data: bytes, condition: dict[str, str]) -> str | None:
        writer = uuid.uuid4().hex

        def write() -> str | None:
            try:
                answer = self._s3.put_object(
                    **place,
                    **condition,
                    **self._encryption(),
                    Body=data,
                    ChecksumSHA256=base64.b64encode(hashlib.sha256(data).digest()).decode(),
                    Metadata={_WRITER: writer},
                )
                return str(answer["ETag"])
            except Exception as error:
                if code_of(error) not in PRECONDITION | MISSING:
                    raise
                # The request may have been done, its answer lost, and been repeated by the client.
                head = self._head_at(place) if attempts_of(error) else None
                return str(head["ETag"]) if head is not None and _is_by(head, writer) else None

        # Of two writes of one object at once the service may refuse both for the moment.
        return _repeated(write, lambda error: code_of(error) in CONFLICT)

    def _head(self, key: str) -> dict[str, Any] | None:
        place = self._place(key)
        with self._failures(key):
            return self._head_at(place)

    def _head_at(self, place: dict[str, str]) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._s3.head_object(**place)
            return found
        except Exception as error:
            if code_of(error) not in MISSING:
                raise
            self._require_bucket()
            return None

    def _require_bucket(self) -> None:
        """Refuse a bucket that isn't there, of which a HEAD says no more than of an object that isn't."""
        if not self._is_there:
            self._s3.list_objects_v2(Bucket=self._settings.bucket, Prefix=self._name(""), MaxKeys=1)
            self._is_there = True

    def _require_conditional_writes(self) -> None:
        """Refuse a service that would overwrite what is there: two runs would publish over each other.

        Raises:
            BlobError: It ignores `If-None-Match` or `If-Match`; or the bucket isn't there or can't be written.
        """
        if self._may_write:
            return
        place = {"Bucket": self._settings.bucket, "Key": self._name(_TRIED)}
        with self._failures(_TRIED):
            # Some services make a bucket by writing to it, also by a name with a slip.
            self._require_bucket()
            # The first one makes it where it isn't there yet.
            self._put_at(place, b"", {"IfNoneMatch": "*"})
            overwritten = self._put_at(place, b"", {"IfNoneMatch": "*"}) is not None
            overwritten = overwritten or self._put_at(place, b"", {"IfMatch": '"0123"'}) is not None
        if overwritten:
            raise BlobError(
                "the service ignores conditional writes (If-None-Match, If-Match), without which two runs would "
                "overwrite each other's checkpoints",
                where=self.uri,
                fix="use AWS S3, MinIO, Cloudflare R2, Ceph or SeaweedFS of a version that has them",
            )
        self._may_write = True

    def _encryption(self) -> dict[str, str]:
        key = self._settings.kms_key_id
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._settings.bucket, "Key": self._name(check_key(key))}

    def _name(self, key: str) -> str:
        prefix = self._settings.prefix
        return f"{prefix}/{key}" if prefix else key

    def _where(self, key: str) -> str:
        return f"{self.uri}/{key}"

    @contextmanager
    def _failures(self, key: str) -> Iterator[None]:
        """Turn failures of the client into the errors of the port."""
        try:
            yield
        except Exception as error:
            if not is_of_client(error):
                raise
            raise as_blob_error(error, where=self._where(key)) from error


def _only_create(params: dict[str, Any], **about: Any) -> None:
    """Make every write that isn't a swap a creation, also those of the transfer manager, which has no such setting."""
    if "IfMatch" not in params:
        params["IfNoneMatch"] = "*"


def _is_by(head: dict[str, Any], writer: str) -> bool:
    """Whether an object was written by a call of this nonce."""
    return bool(head.get("Metadata", {}).get(_WRITER) == writer)


def _repeated(work: Callable[[], T], may_repeat: Callable[[BaseException], bool]) -> T:
    """Do something again, after a pause that doubles, as long as it fails for a passing reason."""
    for attempt in range(_TRIES - 1):
        try:
            return work()
        except Exception as error:
            if not may_repeat(error):
                raise
        time.sleep(CHANCE.uniform(0.5, 1.0) * _FIRST_PAUSE_S * 2**attempt)
    return work()


def _size(path: Path) -> int:
    """Bytes of a file that can be read.

    Raises:
        BlobError: It isn't there, is no file, or may not be read.
    """
    with suppress(OSError):
        if path.is_file() and os.access(path, os.R_OK):
            return path.stat().st_size
    raise BlobError("can't be read: it is no file", where=str(path), fix="give a file that this user may read")


def _not_written(error: OSError, path: Path, needed: int | None) -> KitchenError:
    """Why a local file can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        return DiskFull(
            f"can't be written: {error.strerror}; {needed} bytes are needed, {free} are free",
            where=str(path),
            fix=f"free space at {path.parent}, or set KITCHEN_SCRATCH to a larger disk",
        )
    return BlobError(f"can't be written: {error.strerror}", where=str(path), fix="give another path")
