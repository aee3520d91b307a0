"""The `registry` resource: where model versions are kept."""

from typing import Literal, Optional, Union

import dagster as dg
from pydantic import Field, PrivateAttr

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.registry.port import ModelRegistry
from kitchen_resources.registry.store import NoopRegistry, StoreRegistry


class InStore(dg.Config):
    """In the blob store."""

    kind: Literal["store"] = "store"

    def open(self, blobs: BlobStore) -> ModelRegistry:
        """The registry."""
        return StoreRegistry(blobs)


class InProcess(dg.Config):
    """In this process only."""

    kind: Literal["noop"] = "noop"

    def open(self, blobs: BlobStore) -> ModelRegistry:
        """The registry."""
        return NoopRegistry()


class RegistryResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where model versions are kept."""

    registry: Union[InStore, InProcess] = Field(
        default_factory=InStore, discriminator="kind", description="Where model versions are kept."
    )

    _open: Optional[ModelRegistry] = PrivateAttr(default=None)

    def adapter(self, blobs: BlobStore) -> ModelRegistry:
        """The registry, opened when it is first used."""
        if self._open is None:
            self._open = self.registry.open(blobs)
        return self._open
