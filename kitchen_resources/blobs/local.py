"""Blobs on a local disk: one file an object, whole or absent whoever dies when, for many processes at once.

    <root>/<key>       objects, mode 0444; who may read them is set by the mode of the folders
    <root>/.temp/      files being written, locked by their writers
    <root>/.locks/     sidecars of swap and delete; at most 256, never removed
    <root>/.scratch/   work in progress of others, which the store never looks into

Supported: local disks on Linux and macOS, with hard links and `flock`. Not NFS or SMB: neither locks nor
exclusive creation can be relied on there. On a file system that ignores case, keys ignore it too.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kitchen_resources.blobs.flocks import locked
from kitchen_resources.blobs.folders import (
    find_folder,
    make_folder,
    make_root,
    regular_file,
    sync,
    sync_folders,
)
from kitchen_resources.blobs.port import Stored, check_key, is_key
from kitchen_resources.blobs.temporary import READ_ONLY, TEMPORARY, copy_all, remove_leftovers, temporary_file
from kitchen_resources.digests import digest_bytes
from kitchen_resources.errors import BlobError, DiskFull

_LOCKS = ".locks"
_SCRATCH = ".scratch"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Another file system, another user's file, too many links, no links at all.
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True)
class _Place:
    """Where an object is: folders below the root, its name in the last one, and its path for messages."""

    folders: tuple[str, ...]
    name: str
    path: Path


class LocalBlobs:
    """A blob store in a local folder, which instances in any number of threads and processes may share.

    An object is written in `.temp` and put on stable storage; then it is linked (create) or renamed (swap) to
    its key, and the folder is put on stable storage. A version is the sha256 of the content.

    Args:
        root: The store's folder; made, with its parents, where it is missing.

    Raises:
        BlobError: The root is a file, can't be written, or its file system has no hard links or locks.
    """

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.realpath(root))
        self._synced: set[tuple[str, ...]] = set()
        with self._failures(self._root):
            if self._root.exists() and not self._root.is_dir():
                raise BlobError("is not a folder", where=str(root), fix="set KITCHEN_STORE to a folder")
            make_root(self._root)
            for name in (TEMPORARY, _LOCKS, _SCRATCH):
                with make_folder(self._root, (name,)):
                    pass
            remove_leftovers(self._root)
            self._try_to_write()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """As `BlobStore.put_if_absent`."""
        place = self._place(key)
        with self._failures(place.path, len(data)), make_folder(self._root, place.folders) as folder:
            if self._exists(place, folder):
                return False
            with temporary_file(self._root) as new:
                new.write(data)
                new.seal()
                return self._link(place, folder, new.name, new.folder)

    def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> str | None:
        """As `BlobStore.compare_and_swap`; a version is the sha256 of the content."""
        version = digest_bytes(data)
        if expected is None:
            return version if self.put_if_absent(key, data) else None
        place = self._place(key)
        with self._failures(place.path, len(data)), find_folder(self._root, place.folders) as folder:
            if folder is None:
                return None
            with self._lock(key):
                current = self._read(place, folder)
                if current is None or digest_bytes(current) != expected:
                    return None
                with temporary_file(self._root) as new:
                    new.write(data)
                    new.seal()
                    os.replace(new.name, place.name, src_dir_fd=new.folder, dst_dir_fd=folder)
                self._settle(place, folder)
        return version

    def get(self, key: str) -> Stored | None:
        """As `BlobStore.get`."""
        place = self._place(key)
        with self._failures(place.path), find_folder(self._root, place.folders) as folder:
            data = None if folder is None else self._read(place, folder)
        return None if data is None else Stored(data, digest_bytes(data))

    def put_file(self, key: str, path: Path) -> bool:
        """As `BlobStore.put_file`.

        A file of this user on the store's file system is taken as a hard link: it turns read-only (0444), and
        whoever changes its bytes in place damages the object. A symbolic link, or a file of another user or
        file system, is copied.
        """
        place = self._place(key)
        with (
            _opened(path) as source,
            self._failures(place.path, os.fstat(source).st_size),
            make_folder(self._root, place.folders) as folder,
        ):
            if self._exists(place, folder):
                return False
            if _may_link(path, source, folder):
                os.fchmod(source, READ_ONLY)
                sync(source)
                try:
                    return self._link(place, folder, path, None)
                except OSError as error:
                    if error.errno not in _NO_LINK:
                        raise
            with temporary_file(self._root) as new:
                new.copy(source)
                new.seal()
                return self._link(place, folder, new.name, new.folder)

    def get_file(self, key: str, path: Path) -> None:
        """As `BlobStore.get_file`: a hard link on the store's file system, else a copy, both of mode 0444.

        Whoever changes the bytes of a hard link in place, which root can, damages the object.
        """
        place = self._place(key)
        if os.path.lexists(path):
            raise BlobError("exists already", where=str(path), fix="give a path where there is no file yet")
        with self._failures(place.path), find_folder(self._root, place.folders) as folder:
            source = None if folder is None else self._open(place, folder)
            if source is None:
                raise BlobError("no such object", where=str(place.path), fix=f"look under {self._root}")
            try:
                os.link(place.name, path, src_dir_fd=folder, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                with self._failures(path, os.fstat(source).st_size, path.parent):
                    _copy_out(source, path)
            finally:
                os.close(source)

    def list(self, prefix: str) -> Iterator[str]:
        """As `BlobStore.list`."""
        *folders, start = prefix.split("/")
        if not folders or is_key("/".join(folders)):
            yield from self._keys(tuple(folders), start)

    def delete(self, key: str) -> bool:
        """As `BlobStore.delete`. Folders stay, also empty ones."""
        place = self._place(key)
        with self._failures(place.path), find_folder(self._root, place.folders) as folder:
            if folder is None:
                return False
            with self._lock(key):
                if regular_file(folder, place.name, place.path) is None:
                    return False
                os.unlink(place.name, dir_fd=folder)
                self._settle(place, folder)
        return True

    def size(self, key: str) -> int | None:
        """As `BlobStore.size`."""
        place = self._place(key)
        with self._failures(place.path), find_folder(self._root, place.folders) as folder:
            status = None if folder is None else regular_file(folder, place.name, place.path)
        return None if status is None else status.st_size

    def free_bytes(self) -> int:
        """As `BlobStore.free_bytes`: what the file system gives to this user; quotas are not counted."""
        with self._failures(self._root):
            return shutil.disk_usage(self._root).free

    def scratch(self) -> Path:
        """As `BlobStore.scratch`: on the store's file system, so that `put_file` from it is a hard link."""
        with self._failures(self._root), make_folder(self._root, (_SCRATCH,)):
            return self._root / _SCRATCH

    def link(self, key: str, seconds: int) -> str:
        """As `BlobStore.link`: a `file:///…`, readable for whoever may read the folder."""
        return self._place(key).path.as_uri()

    @property
    def uri(self) -> str:
        """As `BlobStore.uri`: `file:///…`, percent-encoded."""
        return self._root.as_uri()

    def _place(self, key: str) -> _Place:
        *folders, name = check_key(key).split("/")
        return _Place(tuple(folders), name, self._root / key)

    def _exists(self, place: _Place, folder: int) -> bool:
        """Whether the object exists, and is durable even if its creator died before it made it so."""
        if regular_file(folder, place.name, place.path) is None:
            if stat.S_ISDIR(_mode(place.name, folder)):
                raise BlobError("is a folder of objects", where=str(place.path), fix="choose another key")
            return False
        self._settle(place, folder)
        return True

    def _link(self, place: _Place, folder: int, source: str | Path, source_folder: int | None) -> bool:
        try:
            os.link(source, place.name, src_dir_fd=source_folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            self._exists(place, folder)
            return False
        self._settle(place, folder)
        return True

    def _settle(self, place: _Place, folder: int) -> None:
        """Put the names in a folder on stable storage; at the first write there, also the way down to it."""
        if place.folders in self._synced:
            sync(folder)
        else:
            sync_folders(self._root, place.folders)
            self._synced.add(place.folders)

    def _open(self, place: _Place, folder: int) -> int | None:
        if regular_file(folder, place.name, place.path) is None:
            return None
        try:
            return os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            return None

    def _read(self, place: _Place, folder: int) -> bytes | None:
        fd = self._open(place, folder)
        if fd is None:
            return None
        with os.fdopen(fd, "rb") as stream:
            return stream.read()

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        """Hold the sidecar of a key; keys share 256, so that deleting a million objects leaves 256 files."""
        sidecar = digest_bytes(key.encode())[:2]
        flags = os.O_RDONLY | os.O_CREAT
        with make_folder(self._root, (_LOCKS,)) as folder, locked(sidecar, flags, folder=folder):
            yield

    def _keys(self, folders: tuple[str, ...], start: str = "") -> Iterator[str]:
        for name in self._entries(folders, start):
            if name.endswith("/"):
                yield from self._keys((*folders, name[:-1]))
            else:
                yield "/".join((*folders, name))

    def _entries(self, folders: tuple[str, ...], start: str) -> tuple[str, ...]:
        """Names in a folder; those of folders end with `/`, by which they sort as the keys below them do."""
        with self._failures(self._root.joinpath(*folders)), find_folder(self._root, folders) as folder:
            if folder is None:
                return ()
            with os.scandir(folder) as entries:
                names = [
                    entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "")
                    for entry in entries
                    if entry.name.startswith(start)
                    and (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False))
                    and is_key("/".join((*folders, entry.name)))
                ]
        return tuple(sorted(names))

    def _try_to_write(self) -> None:
        """Refuse at once what the first write would be refused for."""
        try:
            with temporary_file(self._root) as new:
                link = f"link-{new.name}"
                os.link(new.name, link, src_dir_fd=new.folder, dst_dir_fd=new.folder, follow_symlinks=False)
                os.unlink(link, dir_fd=new.folder)
        except OSError as error:
            # A full store must open, or nothing could be deleted from it.
            if error.errno not in _FULL:
                raise

    @contextmanager
    def _failures(self, path: Path, needed: int = 0, disk: Path | None = None) -> Iterator[None]:
        """Turn failures of the operating system into the errors of the port.

        Args:
            path: What is read or written.
            needed: Bytes to be written.
            disk: A folder of the disk that they are written to; default the store's.
        """
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                free = shutil.disk_usage(disk or self._root).free
                raise DiskFull(
                    f"can't be written: {error.strerror}; {needed} bytes are needed, {free} are free",
                    where=str(path),
                    fix=f"free space at {disk or self._root}, or set KITCHEN_STORE to a larger disk",
                ) from error
            raise BlobError(
                f"the storage failed: {error}",
                where=str(path),
                fix=f"check disk and permissions of {self._root}, or set KITCHEN_STORE to a writable folder "
                "on a local disk that has hard links",
            ) from error


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BlobError(
            f"can't be read: {error.strerror}", where=str(path), fix="give a file that this user may read"
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BlobError("is not a regular file", where=str(path), fix="give the path of a file")
        yield fd
    finally:
        os.close(fd)


def _may_link(path: Path, source: int, folder: int) -> bool:
    status = os.fstat(source)
    same_disk = status.st_dev == os.fstat(folder).st_dev
    return same_disk and status.st_uid == os.geteuid() and not path.is_symlink()


def _copy_out(source: int, path: Path) -> None:
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        copy_all(source, target)
        os.fchmod(target, READ_ONLY)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(target)


def _mode(name: str, folder: int) -> int:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return 0
