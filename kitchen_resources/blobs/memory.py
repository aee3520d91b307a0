"""Blobs in memory: the semantics of a durable store within one process, for tests and trials."""

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

from kitchen_resources.blobs.port import Stored, check_key
from kitchen_resources.digests import digest_bytes
from kitchen_resources.errors import BlobError


class MemoryBlobs:
    """A blob store that lives and dies with the object; threads may share it.

    As on a local disk, a version is the sha256 of the content, and no key is the folder of another.
    """

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._scratch: Path | None = None

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """As `BlobStore.put_if_absent`."""
        return self._create(check_key(key), data)

    def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> str | None:
        """As `BlobStore.compare_and_swap`; a version is the sha256 of the content."""
        check_key(key)
        if expected is None:
            return digest_bytes(data) if self._create(key, data) else None
        with self._lock:
            current = self._objects.get(key)
            if current is None or digest_bytes(current) != expected:
                return None
            self._objects[key] = bytes(data)
        return digest_bytes(data)

    def get(self, key: str) -> Stored | None:
        """As `BlobStore.get`."""
        data = self._objects.get(check_key(key))
        return None if data is None else Stored(data, digest_bytes(data))

    def put_file(self, key: str, path: Path) -> bool:
        """As `BlobStore.put_file`; the file is read whole."""
        check_key(key)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BlobError(
                f"can't be read: {error.strerror}", where=str(path), fix="give a file that this user may read"
            ) from error
        return self._create(key, data)

    def get_file(self, key: str, path: Path) -> None:
        """As `BlobStore.get_file`: a copy, read-only (0444)."""
        stored = self.get(key)
        if stored is None:
            raise BlobError("there is no such object", where=f"{self.uri}/{key}", fix="list the store's keys")
        try:
            with path.open("xb") as stream:
                stream.write(stored.data)
            path.chmod(0o444)
        except OSError as error:
            raise BlobError(
                f"can't be written: {error.strerror}",
                where=str(path),
                fix="give a path with no file yet",
            ) from error

    def list(self, prefix: str) -> Iterator[str]:
        """As `BlobStore.list`, of the keys there are at the first step."""
        with self._lock:
            keys = sorted(key for key in self._objects if key.startswith(prefix))
        yield from keys

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """As `SizedListing.list_sizes`, of the objects there are at the first step."""
        with self._lock:
            found = sorted((key, len(data)) for key, data in self._objects.items() if key.startswith(prefix))
        yield from found

    def delete(self, key: str) -> bool:
        """As `BlobStore.delete`."""
        check_key(key)
        with self._lock:
            return self._objects.pop(key, None) is not None

    def size(self, key: str) -> int | None:
        """As `BlobStore.size`."""
        data = self._objects.get(check_key(key))
        return None if data is None else len(data)

    def free_bytes(self) -> None:
        """As `BlobStore.free_bytes`: there is no such limit."""
        return

    def scratch(self) -> Path:
        """As `BlobStore.scratch`: a temporary folder, removed with the store or at exit."""
        with self._lock:
            if self._scratch is None:
                self._scratch = Path(tempfile.mkdtemp(prefix="kitchen-scratch-"))
                weakref.finalize(self, _remove, self._scratch, os.getpid())
            return self._scratch

    def link(self, key: str, seconds: int) -> str:
        """As `BlobStore.link`: there are none into a process's memory."""
        raise BlobError("has no links", where=f"{self.uri}/{check_key(key)}", fix="use a local or an S3 store")

    @property
    def uri(self) -> str:
        """As `BlobStore.uri`; the number tells apart the stores of one process."""
        return f"memory://{id(self):x}"

    def _create(self, key: str, data: bytes) -> bool:
        with self._lock:
            if key in self._objects:
                return False
            segments = key.split("/")
            above = any("/".join(segments[:end]) in self._objects for end in range(1, len(segments)))
            if above or any(other.startswith(f"{key}/") for other in self._objects):
                raise BlobError(
                    "is below an object or a folder of other objects",
                    where=f"{self.uri}/{key}",
                    fix="choose another key",
                )
            self._objects[key] = bytes(data)
        return True


def _remove(folder: Path, owner: int) -> None:
    # A forked child runs this at its own exit; the folder is its parent's.
    if os.getpid() == owner:
        shutil.rmtree(folder)
