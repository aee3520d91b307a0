"""Canonical JSON and content digests: the arithmetic of identity."""

import hashlib
import json
import math
import os
import time
import uuid
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20

# A file that changes twice within one tick of the file system's clock (4 ms on Linux, up to 2 s elsewhere) shows the
# same times: what was touched that lately is not remembered.
_SETTLED_NS = 2_000_000_000


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, floats by shortest round-trip.

    Raises:
        ValueError: A float is not finite, or a value is not JSON.
    """
    _refuse_ambiguous(value)
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except TypeError as error:
        raise ValueError(f"not a JSON value: {error}") from error


def _refuse_ambiguous(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} has no JSON form")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"JSON object key {key!r} is not a string")
            _refuse_ambiguous(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_ambiguous(item)


def digest_bytes(data: bytes) -> str:
    """sha256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces of 1 MiB."""
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


class FileDigests:
    """Digests of local files, remembered by path, size, times of modification and change, and inode.

    A 7B model is 15 GB: hashing it at every launch would cost tens of seconds, so a file that was not touched is not
    read again. Only files outside the store are remembered; what the store holds is hashed when it is read.

    Args:
        memory: File to remember them in between processes; None for this process only.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known = _remembered(memory)

    def __call__(self, path: Path) -> str:
        """Digest of the file at `path`."""
        status = os.stat(path)
        # The time of change can't be set back, as copies and archives do it with the time of modification.
        times = f"{status.st_mtime_ns}|{status.st_ctime_ns}"
        key = f"{os.fspath(path.resolve())}|{status.st_size}|{times}|{status.st_ino}"
        if key in self._known:
            return self._known[key]
        digest = digest_file(path)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
            self._known[key] = digest
            self._remember()
        return digest

    def _remember(self) -> None:
        if self._memory is None:
            return
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        draft = self._memory.with_name(f"{self._memory.name}.{uuid.uuid4().hex}")
        draft.write_text(json.dumps(self._known))
        draft.replace(self._memory)


def _remembered(memory: Path | None) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text()) if memory is not None else {}
    except (OSError, ValueError):
        # Only a cache: what can't be read is computed again.
        return {}
    return {str(key): str(value) for key, value in known.items()} if isinstance(known, dict) else {}
