"""Canonical JSON and content digests: the arithmetic of identity."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, floats by shortest round-trip.

    Raises:
        ValueError: A float is not finite, or a value is not JSON.
    """
    _refuse_non_finite(value)
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except TypeError as error:
        raise ValueError(f"not a JSON value: {error}") from error


def _refuse_non_finite(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} has no JSON form")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"JSON object key {key!r} is not a string")
            _refuse_non_finite(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_non_finite(item)


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
    """Digests of local files, remembered by (path, size, modification time, inode).

    A 7B model is 15 GB: hashing it at every launch would cost a minute, so a file that was not touched is not
    read again. Only files outside the store are remembered; what the store holds is hashed when it is read.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int], str] = {}

    def __call__(self, path: Path) -> str:
        """Digest of the file at `path`."""
        status = os.stat(path)
        key = (os.fspath(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)
        if key not in self._known:
            self._known[key] = digest_file(path)
        return self._known[key]


def digest_folder(
    folder: Path, names: list[str], digests: FileDigests | None = None
) -> tuple[str, dict[str, str]]:
    """Digest over the named files of a folder.

    Returns:
        The digest over {name: sha256}, and that mapping.
    """
    read = digests or FileDigests()
    files = {name: read(folder / name) for name in sorted(names)}
    return digest_json(files), files
