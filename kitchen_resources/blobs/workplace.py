"""Folders for work in progress: locked while their worker lives, so that what a killed one left can be removed.

What is linked there from the store keeps its room on the disk, also after retention has deleted it. So a folder must
not outlive its worker for long: whoever next starts to work in the store removes it.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kitchen_resources.blobs.flocks import locked

_LOCK = ".lock"


class Workplace:
    """A folder for one worker.

    Args:
        path: The folder to make; its parents are made too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = ExitStack()

    def open(self) -> None:
        """Take the lock and make the folder."""
        while True:
            # Without its lock yet, the file may be taken for a leftover, and its empty folder be removed: once more.
            with suppress(FileNotFoundError):
                if self._lock():
                    break
        self.path.mkdir()

    def _lock(self) -> bool:
        """Make the lock's file and hold it; false when it was removed in between."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        held = ExitStack()
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
            fd = held.enter_context(locked(self.path.name + _LOCK, flags, folder=folder))
        finally:
            os.close(folder)
        if os.fstat(fd).st_nlink:
            self._held = held
            return True
        held.close()
        return False

    def close(self) -> None:
        """Remove the folder; may be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.with_name(self.path.name + _LOCK).unlink(missing_ok=True)
        self._held.close()
        with suppress(OSError):
            self.path.parent.rmdir()


@contextmanager
def workplace(scratch: Path, purpose: str) -> Iterator[Path]:
    """A folder for a piece of work, removed at its end.

    Args:
        scratch: The store's scratch folder.
        purpose: First part of the folder's name.
    """
    remove_abandoned(scratch)
    place = Workplace(scratch / "work" / f"{purpose}-{uuid.uuid4().hex}")
    place.open()
    try:
        yield place.path
    finally:
        place.close()


def remove_abandoned(scratch: Path) -> None:
    """Remove the folders whose workers are gone; those of living workers stay.

    Args:
        scratch: The store's scratch folder.
    """
    for pattern in (f"work/*{_LOCK}", f"runs/*/*{_LOCK}"):
        for lock in scratch.glob(pattern):
            # Its worker lives, has just finished, or is another user.
            with suppress(BlockingIOError, FileNotFoundError, PermissionError):
                _remove_if_abandoned(lock)


def _remove_if_abandoned(lock: Path) -> None:
    folder = os.open(lock.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with locked(lock.name, os.O_RDWR, folder=folder, wait=False):
            shutil.rmtree(lock.with_name(lock.name.removesuffix(_LOCK)), ignore_errors=True)
            os.unlink(lock.name, dir_fd=folder)
    finally:
        os.close(folder)
    with suppress(OSError):
        lock.parent.rmdir()
