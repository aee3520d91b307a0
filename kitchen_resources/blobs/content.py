"""Immutable content by digest, on any blob store: `blobs/sha256/<sha256>`, verified whenever it is read.

What nothing refers to is deleted by a collection (`storage/collection.py`). So whoever stores content first takes it
back from one (`blobs/garbage.py`), also where it is there already, and names it in an object of its own within the
grace period.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.garbage import spare
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.digests import canonical_json, digest_bytes, digest_file
from kitchen_resources.errors import CheckpointError

CONTENT = "blobs/sha256/"
"""What the keys of immutable content start with."""


@dataclass(frozen=True)
class StoredFile:
    """A stored file: its digest, its size in bytes, and whether it is part of a training state."""

    sha256: str
    size: int
    state: bool = False


class ContentStore:
    """Content-addressed objects of a blob store."""

    def __init__(self, blobs: BlobStore) -> None:
        self.blobs = blobs

    def put(self, data: bytes) -> str:
        """Store bytes; returns their sha256. A damaged object of that name is replaced.

        Raises:
            BlobError: A collection was deleting that object, and doesn't come to an end.
        """
        sha256 = digest_bytes(data)
        key = content_key(sha256)
        spare(self.blobs, sha256)
        while not self.blobs.put_if_absent(key, data):
            stored = self.blobs.get(key)
            # Swapped and not deleted first: who dies in between would lose what others were told is stored.
            if stored is not None and (
                stored.data == data or self.blobs.compare_and_swap(key, stored.version, data) is not None
            ):
                break
        return sha256

    def put_json(self, value: Any) -> str:
        """Store a value as canonical JSON; returns its sha256."""
        return self.put(canonical_json(value))

    def put_file(self, path: Path) -> StoredFile:
        """Store a file that won't be written again. A damaged object of its name is replaced.

        Raises:
            BlobError: A collection was deleting that object, and doesn't come to an end.
        """
        sha256 = digest_file(path)
        spare(self.blobs, sha256)
        put_sound_file(self.blobs, content_key(sha256), path, sha256)
        return StoredFile(sha256, path.stat().st_size)

    def get(self, sha256: str) -> bytes:
        """The bytes of a digest.

        Raises:
            CheckpointError: They are missing or damaged.
        """
        key = content_key(sha256)
        stored = self.blobs.get(key)
        if stored is None:
            raise CheckpointError("is missing from the store", where=key, fix="restore it from a backup of the store")
        if digest_bytes(stored.data) != sha256:
            raise CheckpointError(
                "its bytes don't match its name", where=key, fix="restore it from a backup of the store"
            )
        return stored.data

    def get_file(self, sha256: str, path: Path) -> None:
        """Write the bytes of a digest to a new local file.

        Raises:
            CheckpointError: They are missing or damaged.
        """
        key = content_key(sha256)
        if self.blobs.size(key) is None:
            raise CheckpointError("is missing from the store", where=key, fix="restore it from a backup of the store")
        self.blobs.get_file(key, path)
        if digest_file(path) != sha256:
            raise CheckpointError(
                "its bytes don't match its name", where=key, fix="restore it from a backup of the store"
            )


def content_key(sha256: str) -> str:
    """Key of immutable content."""
    return f"{CONTENT}{sha256}"


def put_sound_file(blobs: BlobStore, key: str, path: Path, sha256: str) -> None:
    """Store a file under a key that its digest is part of. A damaged object that is there already is replaced.

    Without that, what was damaged once could never be made again: its name is taken.

    Args:
        blobs: The store.
        key: The key.
        path: The file, which won't be written again.
        sha256: Its digest.
    """
    if blobs.put_file(key, path):
        return
    # Twice: what a long download was damaged in is not what is stored.
    if _is_stored(blobs, key, path, sha256) or _is_stored(blobs, key, path, sha256):
        return
    blobs.delete(key)
    blobs.put_file(key, path)


def _is_stored(blobs: BlobStore, key: str, path: Path, sha256: str) -> bool:
    """Whether the object under a key has the bytes of a file."""
    if blobs.size(key) != path.stat().st_size:
        return False
    copy = blobs.scratch() / f"compare-{uuid.uuid4().hex}"
    try:
        blobs.get_file(key, copy)
        return digest_file(copy) == sha256
    finally:
        copy.unlink(missing_ok=True)
