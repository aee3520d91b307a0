"""Verifying the store: every object that a head, manifest, version or alias names is read and compared. Changes nothing."""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from kitchen_resources.blobs.content import content_key
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.blobs.workplace import workplace
from kitchen_resources.checkpoints.head import CheckpointEntry, head_key
from kitchen_resources.checkpoints.store import CheckpointStore, payload_key
from kitchen_resources.datasets.prepare import prepared_from_json
from kitchen_resources.digests import digest_file
from kitchen_resources.errors import BlobError, CheckpointError, RegistryError
from kitchen_resources.registry.port import ModelVersion
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.storage.marking import is_payload
from kitchen_resources.training.model_files import files_from_json

T = TypeVar("T")

_MISSING = "is missing"
_File = tuple[str, int | None]
"""Digest of a file, and its size where it is known."""


@dataclass(frozen=True)
class Finding:
    """An object of the store that is damaged or missing.

    Attributes:
        key: Its key.
        problem: Whether it is there.
        what: What is wrong with it.
        referred_by: Who needs it.
    """

    key: str
    problem: Literal["missing", "damaged"]
    what: str
    referred_by: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.key}: {self.what}; needed by {', '.join(self.referred_by)}"


@dataclass
class _Named:
    """An object that others name.

    Attributes:
        sha256: Digest of its bytes.
        size: Their number, where it is known.
        by: Who names it.
    """

    sha256: str
    size: int | None
    by: list[str] = field(default_factory=list)


def verify_store(blobs: BlobStore, run: str = "") -> list[Finding]:
    """Read every object that others name, and compare it with its digest.

    Args:
        blobs: The store.
        run: First digits of a fingerprint: only what such runs, and versions made of them, need; all when empty.

    Returns:
        What is damaged or missing, by key.
    """
    verification = _Verification(blobs)
    verification.runs(run)
    verification.versions(run)
    if not run:
        verification.records()
    return verification.findings()


class _Verification:
    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._registry = StoreRegistry(blobs)
        self._checkpoints = CheckpointStore(blobs)
        self._named: dict[str, _Named] = {}
        self._found: dict[str, Finding] = {}

    def runs(self, prefix: str) -> None:
        """What heads name, and their manifests."""
        for fingerprint in self._checkpoints.find(prefix):
            who = f"run {fingerprint[:12]}"
            head = self._try(head_key(fingerprint), who, partial(self._checkpoints.head, fingerprint))
            for entry in head.entries() if head is not None else ():
                self._checkpoint(fingerprint, entry, f"{who}, step {entry.step}")

    def versions(self, prefix: str) -> None:
        """What versions name, and that aliases point to versions."""
        names = sorted({key.split("/")[1] for key in self._blobs.list("registry/")})
        for name in names:
            self._model(name, prefix)

    def records(self) -> None:
        """What the records of prepared data, models and derived files name."""
        for prefix, read in (("prepared/", _prepared), ("models/", _model), ("derived/", _derived)):
            for key in self._blobs.list(prefix):
                files = self._try(key, "whoever asks for the same again", partial(self._files, key, read))
                for sha256, size in files or ():
                    self._name(content_key(sha256), sha256, size, key)

    def findings(self) -> list[Finding]:
        """Read what was named; what is wrong, by key."""
        with workplace(self._blobs.scratch(), "verify") as place:
            for key, named in self._named.items():
                said = self._compare(key, named, place)
                if said is not None and self._is_needed(key):
                    problem: Literal["missing", "damaged"] = "missing" if said == _MISSING else "damaged"
                    self._found[key] = Finding(key, problem, said, tuple(named.by))
        return [self._found[key] for key in sorted(self._found)]

    def _checkpoint(self, fingerprint: str, entry: CheckpointEntry, who: str) -> None:
        self._name(content_key(entry.manifest), entry.manifest, None, who)
        for evaluation in entry.evaluations.values():
            self._name(content_key(evaluation.blob), evaluation.blob, None, f"an evaluation of {who}")
        try:
            manifest = self._checkpoints.manifest(entry)
        except CheckpointError as error:
            key = content_key(entry.manifest)
            if self._blobs.size(key) is not None:
                self._found[key] = Finding(key, "damaged", error.what, (who,))
            return
        for record in manifest.records.values():
            self._name(content_key(record.sha256), record.sha256, record.size, who)
        if entry.payload == "present":
            for file in manifest.files.values():
                key = payload_key(fingerprint, manifest.token, file.sha256)
                self._name(key, file.sha256, file.size, who)

    def _model(self, name: str, prefix: str) -> None:
        known: dict[int, ModelVersion] = {}
        for key in self._blobs.list(f"registry/{name}/versions/"):
            version = self._try(key, f"model {name}", partial(self._version, name, key))
            if version is None:
                continue
            known[version.version] = version
            if version.fingerprint.startswith(prefix):
                who = f"{name}@{version.version}"
                for file in version.model.files.values():
                    self._name(content_key(file.sha256), file.sha256, file.size, who)
                self._name(content_key(version.manifest), version.manifest, None, who)
        key = f"registry/{name}/aliases.json"
        aliases = self._try(key, f"model {name}", partial(self._aliases, key))
        for alias, number in (aliases or {}).items():
            version_key = f"registry/{name}/versions/{number:06d}.json"
            if number not in known and version_key not in self._found:
                self._found[version_key] = Finding(version_key, "missing", _MISSING, (f"{name}@{alias}",))

    def _version(self, name: str, key: str) -> ModelVersion:
        return self._registry.get(name, int(Path(key).stem))

    def _aliases(self, key: str) -> dict[str, int]:
        return {str(alias): int(number) for alias, number in self._json(key).items()}

    def _name(self, key: str, sha256: str, size: int | None, who: str) -> None:
        named = self._named.setdefault(key, _Named(sha256, size))
        if who not in named.by:
            named.by.append(who)

    def _compare(self, key: str, named: _Named, place: Path) -> str | None:
        size = self._blobs.size(key)
        if size is None:
            return _MISSING
        if named.size is not None and size != named.size:
            return f"has {size} bytes, and {named.size} were stored"
        copy = place / uuid.uuid4().hex
        try:
            self._blobs.get_file(key, copy)
            return None if digest_file(copy) == named.sha256 else "its bytes don't match its name"
        except BlobError:
            if self._blobs.size(key) is not None:
                raise
            return _MISSING
        finally:
            copy.unlink(missing_ok=True)

    def _is_needed(self, key: str) -> bool:
        """Whether an object is still needed: a run that is going on prunes what it needed when its head was read."""
        if not is_payload(key):
            return True
        fingerprint = key.split("/")[1]
        try:
            entries = self._checkpoints.head(fingerprint).entries()
        except CheckpointError:
            return True
        present = [entry for entry in entries if entry.payload == "present"]
        return any(key in self._payload(fingerprint, entry) for entry in present)

    def _payload(self, fingerprint: str, entry: CheckpointEntry) -> set[str]:
        try:
            manifest = self._checkpoints.manifest(entry)
        except CheckpointError:
            # Told already; which files it needs can't be known.
            return set()
        return {payload_key(fingerprint, manifest.token, file.sha256) for file in manifest.files.values()}

    def _files(self, key: str, read: Callable[[dict[str, Any]], Iterator[_File]]) -> list[_File]:
        return list(read(self._json(key)))

    def _json(self, key: str) -> dict[str, Any]:
        stored = self._blobs.get(key)
        return json.loads(stored.data) if stored is not None else {}

    def _try(self, key: str, who: str, read: Callable[[], T]) -> T | None:
        """What is read; None, and a finding, when it can't be."""
        try:
            return read()
        except (CheckpointError, RegistryError) as error:
            what = error.what
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            what = f"can't be read: {error!r}"
        self._found[key] = Finding(key, "damaged", what, (who,))
        return None


def _prepared(value: dict[str, Any]) -> Iterator[_File]:
    prepared = prepared_from_json(value)
    yield prepared.report, None
    yield from ((split.blob, None) for split in (prepared.train, prepared.held_out, prepared.packs) if split)


def _model(value: dict[str, Any]) -> Iterator[_File]:
    return ((file.sha256, file.size) for file in files_from_json(value).files.values())


def _derived(value: dict[str, Any]) -> Iterator[_File]:
    yield str(value["sha256"]), int(value["size"])
