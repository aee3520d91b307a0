"""Files being written: locked while their writer lives, so that what a dead one left can be told and removed.

The lock tells it better than a process id would: containers that share the folder each have their own process
ids, but one set of locks. A file whose lock is held is left alone.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kitchen_resources.blobs.flocks import locked
from kitchen_resources.blobs.folders import find_folder, sync
from kitchen_resources.errors import BlobError

TEMPORARY = ".temp"
READ_ONLY = 0o444
_PIECE = 1 << 20
_SUFFIX = ".tmp"


@dataclass(frozen=True)
class TemporaryFile:
    """A new file, open for writing.

    Attributes:
        folder: File descriptor of the folder it is in.
        name: Its name there.
        fd: Its own file descriptor.
    """

    folder: int
    name: str
    fd: int

    def write(self, data: bytes) -> None:
        """Append all bytes of `data`."""
        write_all(self.fd, data)

    def copy(self, source: int) -> None:
        """Append what is left to read of the file descriptor `source`."""
        copy_all(source, self.fd)

    def seal(self) -> None:
        """Make it read-only and put its bytes on stable storage."""
        os.fchmod(self.fd, READ_ONLY)
        sync(self.fd)


@contextmanager
def temporary_file(root: Path) -> Iterator[TemporaryFile]:
    """A new file in the store's folder for them. Its name is removed at the end; links to it stay.

    Args:
        root: The store's root.
    """
    with find_folder(root, (TEMPORARY,)) as folder:
        if folder is None:
            raise BlobError("is gone", where=str(root / TEMPORARY), fix="open the store again")
        while True:
            name = f"{os.getpid()}-{uuid.uuid4().hex}{_SUFFIX}"
            with locked(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, folder=folder) as fd:
                if os.fstat(fd).st_nlink == 0:
                    # Seen without its lock, just after it was made, and taken for a leftover: make another.
                    continue
                try:
                    yield TemporaryFile(folder, name, fd)
                finally:
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=folder)
                return


def remove_leftovers(root: Path) -> None:
    """Remove the temporary files whose writers are gone; those of live writers stay.

    Args:
        root: The store's root.
    """
    with find_folder(root, (TEMPORARY,)) as folder:
        if folder is None:
            return
        for name in os.listdir(folder):
            if not name.endswith(_SUFFIX):
                continue
            # Its writer lives, has just finished, or is another user.
            leave = suppress(BlockingIOError, FileNotFoundError, PermissionError)
            with leave, locked(name, os.O_RDONLY, folder=folder, wait=False):
                os.unlink(name, dir_fd=folder)


def write_all(fd: int, data: bytes) -> None:
    """Write all bytes of `data`, in as many calls as it takes."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def copy_all(source: int, target: int) -> None:
    """Copy what is left to read of one file descriptor to another, 1 MiB at a time."""
    while piece := os.read(source, _PIECE):
        write_all(target, piece)
