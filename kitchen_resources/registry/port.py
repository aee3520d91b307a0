"""The registry port: immutable model versions with their lineage, and aliases that point to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from kitchen_resources.blobs.content import StoredFile

CANDIDATE = "candidate"
PRODUCTION = "production"
PREVIOUS = "previous"
"""What was in production before; moved with it."""


@dataclass(frozen=True)
class ModelFiles:
    """An exported model: its files in the content store, and what they are.

    Attributes:
        files: By name, `adapter/…` for the adapter when both are exported.
        kind: What the top folder holds: merged, adapter, or both.
        digest: Digest over names and contents.
    """

    files: Mapping[str, StoredFile]
    kind: str
    digest: str


@dataclass(frozen=True)
class Registration:
    """What a version is made of.

    Attributes:
        name: Name of the model, the recipe's.
        fingerprint: The run it came from.
        step: The checkpoint's step.
        epoch: The checkpoint's epoch.
        state_digest: The checkpoint's state.
        manifest: The checkpoint's manifest, a blob.
        model: The exported model.
        base: Reference, digest, revision of the base model.
        dataset: Digests of the prepared data, and of the raw data they came from.
        metrics: What was measured of it, with intervals; empty when nothing was.
        base_metrics: The same of its base.
        cost: Optimiser steps, tokens, seconds of training; US dollars where a service says what it charges.
        identity: What the fingerprint is the digest of.
        environment: Library versions and device of the training.
        launch: Run that registered it.
        simulated: Nothing was learned; such a version is never a candidate.
    """

    name: str
    fingerprint: str
    step: int
    epoch: int
    state_digest: str
    manifest: str
    model: ModelFiles
    base: Mapping[str, Any]
    dataset: Mapping[str, Any]
    metrics: Mapping[str, Any]
    base_metrics: Mapping[str, Any]
    cost: Mapping[str, float]
    identity: Mapping[str, Any]
    environment: Mapping[str, Any]
    launch: str
    simulated: bool


@dataclass(frozen=True)
class ModelVersion(Registration):
    """A registered version; never changed.

    Attributes:
        version: From 1.
        created: Seconds since 1970, UTC.
    """

    version: int
    created: float


@runtime_checkable
class ModelRegistry(Protocol):
    """Versions and aliases of models."""

    def register(self, registration: Registration) -> ModelVersion:
        """Register a version, or find it: one run, step and model is one version, however often it is registered."""
        ...

    def get(self, name: str, version: int) -> ModelVersion:
        """A version. Raises `RegistryError` when there is none."""
        ...

    def versions(self, name: str) -> Sequence[ModelVersion]:
        """All versions of a model, by number."""
        ...

    def alias(self, name: str, alias: str) -> int | None:
        """The version that an alias points to; None when it points to none."""
        ...

    def move_alias(self, name: str, alias: str, version: int, *, expected: int | None) -> None:
        """Point an alias to a version, if it still points to `expected`.

        With `production`, `previous` is pointed to what was there before, at once.

        Raises:
            RegistryError: There is no such version, or somebody else moved the alias meanwhile.
        """
        ...

    def protected_manifests(self) -> set[str]:
        """Manifests of all checkpoints that a version was made of; retention keeps their payload."""
        ...
