"""The registry in the blob store.

registry/<name>/versions/<number>.json    created once, never changed
registry/<name>/aliases.json              alias -> version; moved by compare-and-swap
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kitchen_resources.blobs.content import StoredFile
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import RegistryError
from kitchen_resources.registry.port import PREVIOUS, PRODUCTION, ModelFiles, ModelVersion, Registration

FORMAT = 1


class StoreRegistry:
    """A `ModelRegistry` in a blob store."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        # A version never changes, and retention asks for all of them at every checkpoint.
        self._read: dict[str, ModelVersion] = {}

    def register(self, registration: Registration) -> ModelVersion:
        """See `ModelRegistry.register`. Two processes may register at once: numbers are taken by creating them."""
        while True:
            known = self.versions(registration.name)
            for version in known:
                if _same(version, registration):
                    return version
            number = known[-1].version + 1 if known else 1
            version = ModelVersion(**vars(registration), version=number, created=time.time())
            key = _version_key(registration.name, number)
            if self._blobs.put_if_absent(key, canonical_json({"format": FORMAT, **asdict(version)})):
                return version

    def get(self, name: str, version: int) -> ModelVersion:
        """See `ModelRegistry.get`."""
        key = _version_key(name, version)
        stored = self._blobs.get(key)
        if stored is None:
            known = ", ".join(str(item.version) for item in self.versions(name)) or "none"
            raise RegistryError(
                f"has no version {version}", where=f"model {name}", fix=f"registered versions: {known}"
            )
        return _decode(stored.data, key)

    def versions(self, name: str) -> Sequence[ModelVersion]:
        """See `ModelRegistry.versions`."""
        found = []
        for key in self._blobs.list(f"registry/{name}/versions/"):
            if key not in self._read and (stored := self._blobs.get(key)) is not None:
                self._read[key] = _decode(stored.data, key)
            if key in self._read:
                found.append(self._read[key])
        return sorted(found, key=lambda version: version.version)

    def alias(self, name: str, alias: str) -> int | None:
        """See `ModelRegistry.alias`."""
        return self._aliases(name)[0].get(alias)

    def move_alias(self, name: str, alias: str, version: int, *, expected: int | None) -> None:
        """See `ModelRegistry.move_alias`."""
        self.get(name, version)
        while True:
            aliases, at = self._aliases(name)
            if aliases.get(alias) == version:
                return
            if aliases.get(alias) != expected:
                raise RegistryError(
                    f"alias {alias!r} points to version {aliases.get(alias)}, and {expected} was expected",
                    where=f"model {name}",
                    fix="somebody else moved it; look at both versions and run again",
                )
            before = {PREVIOUS: expected} if alias == PRODUCTION and expected is not None else {}
            data = canonical_json({**aliases, **before, alias: version})
            if self._blobs.compare_and_swap(_aliases_key(name), at, data) is not None:
                return

    def protected_manifests(self) -> set[str]:
        """See `ModelRegistry.protected_manifests`."""
        names = {key.split("/")[1] for key in self._blobs.list("registry/")}
        return {version.manifest for name in names for version in self.versions(name)}

    def _aliases(self, name: str) -> tuple[dict[str, int], str | None]:
        key = _aliases_key(name)
        stored = self._blobs.get(key)
        if stored is None:
            return {}, None
        try:
            return {str(alias): int(version) for alias, version in json.loads(stored.data).items()}, stored.version
        except (ValueError, TypeError, AttributeError) as error:
            raise RegistryError(
                f"is not a table of aliases: {error!r}", where=key, fix="restore it from a backup"
            ) from error


class NoopRegistry(StoreRegistry):
    """A `ModelRegistry` that keeps versions in this process only: the same registry over a store in memory."""

    def __init__(self) -> None:
        super().__init__(MemoryBlobs())


def _same(version: ModelVersion, registration: Registration) -> bool:
    """Whether a registration is the version that is already there."""
    ours = (registration.fingerprint, registration.step, registration.model.digest)
    return (version.fingerprint, version.step, version.model.digest) == ours


def _decode(data: bytes, key: str) -> ModelVersion:
    try:
        value: dict[str, Any] = json.loads(data)
        if value.pop("format") != FORMAT:
            raise RegistryError("is of another format", where=key, fix="upgrade crucible-kitchen")
        model: Mapping[str, Any] = value.pop("model")
        files = {name: StoredFile(**file) for name, file in model["files"].items()}
        return ModelVersion(model=ModelFiles(files, model["kind"], model["digest"]), **value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RegistryError(
            f"is not a model version: {error!r}", where=key, fix="restore it from a backup"
        ) from error


def _version_key(name: str, version: int) -> str:
    return f"registry/{name}/versions/{version:06d}.json"


def _aliases_key(name: str) -> str:
    return f"registry/{name}/aliases.json"
