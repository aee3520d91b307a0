"""Folders below a root: entered segment by segment, never through a symbolic link, and durable once made."""

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kitchen_resources.errors import BlobError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def find_folder(root: Path, segments: Sequence[str]) -> Iterator[int | None]:
    """Descriptor of the folder at `root/segments`; None when there is none.

    Raises:
        BlobError: The root is gone, or a segment is a symbolic link.
    """
    fd = None
    with suppress(FileNotFoundError, NotADirectoryError):
        fd = _walk(root, segments, make=False)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


@contextmanager
def make_folder(root: Path, segments: Sequence[str]) -> Iterator[int]:
    """Descriptor of the folder at `root/segments`, made where it is missing.

    Raises:
        BlobError: The root is gone, or a segment is a symbolic link.
        NotADirectoryError: A segment is a file.
    """
    fd = _walk(root, segments, make=True)
    try:
        yield fd
    finally:
        os.close(fd)


def _walk(root: Path, segments: Sequence[str], *, make: bool) -> int:
    try:
        fd = os.open(root, _FOLDER)
    except OSError as error:
        raise BlobError(
            f"the store's folder can't be opened: {error.strerror}",
            where=str(root),
            fix="bring the folder back (is its disk mounted?), or set KITCHEN_STORE to another one",
        ) from error
    for depth, segment in enumerate(segments):
        try:
            inner = _enter(fd, segment, root.joinpath(*segments[: depth + 1]), make=make)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _enter(folder: int, name: str, path: Path, *, make: bool) -> int:
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder)
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except OSError as error:
        # Linux answers ENOTDIR for a link, macOS ELOOP.
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            regular_file(folder, name, path)
        raise


def regular_file(folder: int, name: str, path: Path) -> os.stat_result | None:
    """Status of the file `name` in a folder; None when there is none, or a folder has that name.

    Args:
        folder: File descriptor of the folder.
        name: The file's name.
        path: Its path, for the message.

    Raises:
        BlobError: It is a symbolic link or another thing that no store makes.
    """
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISREG(status.st_mode):
        return status
    if stat.S_ISDIR(status.st_mode):
        return None
    kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "a device, pipe or socket"
    raise BlobError(f"is {kind}, which the store never makes or follows", where=str(path), fix=f"rm {path}")


def sync(fd: int) -> None:
    """Put a file or folder on stable storage."""
    os.fsync(fd)
    if sys.platform == "darwin":
        # There fsync stops at the drive's cache, and not every file system has this call.
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise


def sync_folders(root: Path, segments: Sequence[str]) -> None:
    """Put the names of all folders from `root` down to `root/segments` on stable storage."""
    for depth in range(len(segments) + 1):
        with make_folder(root, segments[:depth]) as fd:
            sync(fd)


def make_root(root: Path) -> None:
    """Make a folder and its parents where they are missing, and put their names on stable storage.

    Raises:
        OSError: It can't be made, or a file has its name.
    """
    missing = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for path in missing:
        with make_folder(path.parent, ()) as fd:
            sync(fd)
