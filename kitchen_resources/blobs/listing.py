"""Keys with their sizes: in one go where the store can, else a question a key."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from kitchen_resources.blobs.port import BlobStore


@runtime_checkable
class SizedListing(Protocol):
    """A store that lists sizes along with keys: a bucket says both at once, a thousand at a time."""

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """As `BlobStore.list`, each key with the object's size in bytes."""
        ...


@runtime_checkable
class Uploads(Protocol):
    """A store that keeps what was sent of uploads that broke off, and charges for it."""

    def abort_uploads(self, older_than_s: float) -> int:
        """Give up unfinished uploads that were begun longer ago than this; how many there were."""
        ...


def list_sizes(blobs: BlobStore, prefix: str) -> Iterator[tuple[str, int]]:
    """The keys that start with a prefix, each with its size in bytes; what is deleted meanwhile is left out."""
    if isinstance(blobs, SizedListing):
        yield from blobs.list_sizes(prefix)
        return
    for key in blobs.list(prefix):
        size = blobs.size(key)
        if size is not None:
            yield key, size
