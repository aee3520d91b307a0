"""The blob port: the few verbs on which every durable thing in the kitchen is built.

There is no rename and no append. An object is either immutable, created once under its own key, or one of the
few mutable ones, which change only by compare-and-swap. That is what a local disk and an S3 bucket both do.

Keys are relative, `/`-separated paths of `[A-Za-z0-9._=@+-]` segments, none of them `.` or `..`, none
starting with a dot, at most 512 characters in all. No key may be a folder of another (`a` beside `a/b`): a
store on a file system refuses the second one, and a segment that is longer than its names may be (255 bytes).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from kitchen_resources.errors import BlobError

_SEGMENT = re.compile(r"[A-Za-z0-9_=@+-][A-Za-z0-9._=@+-]*\Z")
_MAX_KEY = 512


@dataclass(frozen=True)
class Stored:
    """The bytes of a small object and their version, an opaque token for compare-and-swap."""

    data: bytes
    version: str


@runtime_checkable
class BlobStore(Protocol):
    """Durable objects under keys. Every write is on stable storage when the call returns.

    Every method raises `BlobError` for an invalid key and for storage that fails (naming key and cause), and
    `DiskFull` when there is no room. None of them ever leaves a partly written object under a key; a write
    that raised has been done whole or not at all.
    """

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object. True: created by this call; False: the key existed, and nothing was changed."""
        ...

    def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> str | None:
        """Replace a mutable object only if it still has version `expected` (None: only if it doesn't exist).

        A version may be a digest of the bytes, so that writing earlier bytes again brings back their version.
        Where the two must be told apart, put a counter or a nonce into the bytes.

        Returns:
            The new version; None when the object was at another version and nothing was changed.
        """
        ...

    def get(self, key: str) -> Stored | None:
        """The bytes and version of an object; None when there is none."""
        ...

    def put_file(self, key: str, path: Path) -> bool:
        """Create an object from a file that this process owns and won't write again.

        The adapter may take the file itself, as a hard link, where it can. As `put_if_absent` otherwise.
        """
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Write an object's bytes to `path`, which must not exist; the reader must treat it as read-only.

        The adapter may give a hard link to its own immutable copy. Not for mutable objects.

        Raises:
            BlobError: There is no such object.
        """
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that start with `prefix`, each once, in the order of the store; none where no key can start so.

        Keys that are created or deleted meanwhile may be there or not.
        """
        ...

    def delete(self, key: str) -> bool:
        """Delete an object. False: there was none."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of an object, without reading it; None when there is none."""
        ...

    def free_bytes(self) -> int | None:
        """Free space, in bytes, where objects are kept; None where the store has no such limit."""
        ...

    def scratch(self) -> Path:
        """A local folder for work in progress, on the store's file system where it has one. It exists."""
        ...

    def link(self, key: str, seconds: int) -> str:
        """A URL by which whoever has it can read an object for a while: presigned, or `file:///…` on a local disk.

        Args:
            key: The object, which needn't be there.
            seconds: How long it can be read, where the link itself grants that.

        Raises:
            BlobError: The store has no links.
        """
        ...

    @property
    def uri(self) -> str:
        """Where the store is, for people: `file:///…`, `s3://bucket/prefix`, `memory://…`."""
        ...


def check_key(key: str) -> str:
    """The key itself, when it is valid.

    Raises:
        BlobError: It is not; the message names the key and the rule.
    """
    if not key or len(key) > _MAX_KEY or not all(_SEGMENT.match(segment) for segment in key.split("/")):
        raise BlobError(
            f"{key[:80]!r} is not a valid key: relative, at most {_MAX_KEY} characters, segments of "
            "letters, digits and ._=@+- that don't start with a dot",
            fix="name the object by its digest or another plain name",
        )
    return key


def is_key(key: str) -> bool:
    """Whether a key is valid."""
    try:
        check_key(key)
    except BlobError:
        return False
    return True


def may_start_key(prefix: str) -> bool:
    """Whether a valid key can start with a prefix, which may be empty."""
    return not prefix or is_key(f"{prefix}x" if prefix.endswith("/") else prefix)
