"""Blob stores that fail on purpose: at the n-th write, before or after it was done, or while the store is away."""

from collections.abc import Callable, Iterator
from pathlib import Path

from kitchen_resources.blobs.listing import list_sizes
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.port import BlobStore, Stored
from kitchen_resources.errors import BlobError

WRITES = frozenset({"put_if_absent", "compare_and_swap", "put_file", "delete"})
VERBS = WRITES | {"get", "get_file", "list", "size"}


class FaultyBlobs:
    """A blob store that asks before and after each verb what should happen.

    Args:
        inner: The real store.
        before: Called with verb and key before it is done; may raise.
        after: Called with verb and key when it is done; may raise.
    """

    def __init__(
        self,
        inner: BlobStore,
        before: Callable[[str, str], None] = lambda verb, key: None,
        after: Callable[[str, str], None] = lambda verb, key: None,
    ) -> None:
        self.inner = inner
        self.before = before
        self.after = after
        self.free: int | None = None

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.before("put_if_absent", key)
        done = self.inner.put_if_absent(key, data)
        self.after("put_if_absent", key)
        return done

    def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> str | None:
        self.before("compare_and_swap", key)
        version = self.inner.compare_and_swap(key, expected, data)
        self.after("compare_and_swap", key)
        return version

    def get(self, key: str) -> Stored | None:
        self.before("get", key)
        stored = self.inner.get(key)
        self.after("get", key)
        return stored

    def put_file(self, key: str, path: Path) -> bool:
        self.before("put_file", key)
        done = self.inner.put_file(key, path)
        self.after("put_file", key)
        return done

    def get_file(self, key: str, path: Path) -> None:
        self.before("get_file", key)
        self.inner.get_file(key, path)
        self.after("get_file", key)

    def list(self, prefix: str) -> Iterator[str]:
        self.before("list", prefix)
        yield from self.inner.list(prefix)

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        self.before("list", prefix)
        yield from list_sizes(self.inner, prefix)

    def delete(self, key: str) -> bool:
        self.before("delete", key)
        done = self.inner.delete(key)
        self.after("delete", key)
        return done

    def size(self, key: str) -> int | None:
        self.before("size", key)
        return self.inner.size(key)

    def free_bytes(self) -> int | None:
        return self.free if self.free is not None else self.inner.free_bytes()

    def scratch(self) -> Path:
        return self.inner.scratch()

    def link(self, key: str, seconds: int) -> str:
        return self.inner.link(key, seconds)

    @property
    def uri(self) -> str:
        return self.inner.uri


def is_away(verb: str, key: str) -> None:
    """As `before` or `after`: the store is away."""
    raise BlobError("the store is away", where=key)


class NthWrite:
    """Fails the n-th write, once; counts all of them.

    Args:
        number: Which write fails, from 1; 0 for none.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.count = 0
        self.hit = ""

    def __call__(self, verb: str, key: str) -> None:
        if verb not in WRITES:
            return
        self.count += 1
        if self.count == self.number:
            self.hit = f"{verb} {key}"
            is_away(verb, key)


class RetryingBlobs(MemoryBlobs):
    """A store whose client repeats a swap that was done: the answer is that the object has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.repeats = 0

    def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> str | None:
        version = super().compare_and_swap(key, expected, data)
        if self.repeats and version is not None:
            self.repeats -= 1
            return None
        return version
