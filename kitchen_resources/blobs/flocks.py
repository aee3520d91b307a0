"""Exclusive `flock` locks that die with their process, even where it had forked.

A flock belongs to the open file description, not to the process. So two threads that each open the file
contend like two processes, and a child made by fork shares its parent's lock and would go on holding it after
the parent was killed: the child closes its copies first of all, and nothing forks between opening and noting.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_guard = threading.RLock()
_held: set[int] = set()


@contextmanager
def locked(name: str, flags: int, *, folder: int, wait: bool = True) -> Iterator[int]:
    """Open a file and hold its exclusive lock.

    Args:
        name: The file's name in the folder; a symbolic link is refused.
        flags: Flags of `os.open`.
        folder: File descriptor of the folder.
        wait: Wait for the lock.

    Yields:
        The file's descriptor.

    Raises:
        BlockingIOError: Another holds the lock, and `wait` is false.
        OSError: The file can't be opened, or its file system has no locks.
    """
    fd = _open(name, flags, folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    finally:
        _close(fd)


def _open(name: str, flags: int, folder: int) -> int:
    with _guard:
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
        _held.add(fd)
    return fd


def _close(fd: int) -> None:
    try:
        # Closing unlocks too, but not while a child that C code forked, without the hook below, has a copy.
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        with _guard:
            _held.discard(fd)
            os.close(fd)


def _before_fork() -> None:
    _guard.acquire()


def _after_fork_in_parent() -> None:
    _guard.release()


def _after_fork_in_child() -> None:
    global _guard
    for fd in _held:
        os.close(fd)
    _held.clear()
    _guard = threading.RLock()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
