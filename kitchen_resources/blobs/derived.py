"""Files that follow from what is in the store already: worked out once, and kept by what they were worked out from."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.digests import canonical_json, digest_json


class DerivedStore:
    """Keeps derived files in a content store, under `derived/<digest of the key>.json`.

    Args:
        content: The store.
    """

    def __init__(self, content: ContentStore) -> None:
        self._content = content

    def __call__(self, key: Mapping[str, Any], make: Callable[[Path], None], target: Path) -> Path:
        """The file for a key.

        Args:
            key: Everything that the file follows from, as JSON.
            make: Writes the file, when the store has none for this key.
            target: Where to put it; its folder is made.

        Raises:
            CheckpointError: The stored file is missing or damaged.
        """
        name = _name(key)
        stored = self._content.blobs.get(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if stored is not None:
            self._content.get_file(json.loads(stored.data)["sha256"], target)
            return target
        make(target)
        file = self._content.put_file(target)
        record = {"key": dict(key), "sha256": file.sha256, "size": file.size}
        if not self._content.blobs.put_if_absent(name, canonical_json(record)):
            # Somebody else was first; whoever reads it later reads theirs, and so does this process.
            return self(key, make, target)
        return target

    def known(self, key: Mapping[str, Any]) -> bool:
        """Whether the file for a key is in the store."""
        return self._content.blobs.get(_name(key)) is not None


def _name(key: Mapping[str, Any]) -> str:
    return f"derived/{digest_json(dict(key))}.json"
