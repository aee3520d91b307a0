"""The `blobs` resource: where everything durable is kept."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Optional, Union

import dagster as dg
from pydantic import Field, PrivateAttr

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.errors import ConfigError

_memories: dict[str, BlobStore] = {}


class DefaultStore(dg.Config):
    """The store that `KITCHEN_STORE` names, or the default folder."""

    kind: Literal["default"] = "default"

    def open(self) -> BlobStore:
        """The store."""
        return open_store(default_store())


class LocalStore(dg.Config):
    """A folder on a local disk (Linux or macOS; not a network share)."""

    kind: Literal["local"] = "local"
    path: str = Field(description="The folder; made when it isn't there.")

    def open(self) -> BlobStore:
        """The store."""
        return open_store(self.path)


class S3Store(dg.Config):
    """A bucket of AWS S3, or of a service that speaks its protocol. Credentials are those that boto3 finds."""

    kind: Literal["s3"] = "s3"
    bucket: str = Field(description="Name of the bucket, which is there already.")
    prefix: str = Field(default="", description="What the keys of the store start with.")
    endpoint_url: str = Field(
        default="",
        description="Service other than AWS; one that isn't on this machine must be listed in KITCHEN_ALLOWED_ENDPOINTS.",
    )
    region_name: str = Field(default="", description="Region of the bucket; empty for that of boto3's settings.")
    kms_key_id: str = Field(
        default="", description="Key of AWS KMS that objects are encrypted with; empty for the bucket's default."
    )
    max_attempts: int = Field(default=6, ge=1, description="Requests made for one call at most.")
    timeout_s: float = Field(
        default=10.0,
        gt=0,
        description="How long the service may keep silent, in seconds; well under the 30 s that a lease lasts.",
    )

    def open(self) -> BlobStore:
        """The store."""
        from kitchen_resources.blobs.s3_store import open_bucket

        return open_bucket(**self.model_dump(exclude={"kind"}))


class MemoryStore(dg.Config):
    """This process's memory; gone when it ends. For tests."""

    kind: Literal["memory"] = "memory"
    name: str = Field(default="default", description="Stores of one name in one process are one store.")

    def open(self) -> BlobStore:
        """The store."""
        return open_store(f"memory://{self.name}")


class BlobsResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The store of checkpoints, data, models and the registry."""

    store: Union[DefaultStore, LocalStore, S3Store, MemoryStore] = Field(
        default_factory=DefaultStore, discriminator="kind", description="Where the store is."
    )

    _open: Optional[BlobStore] = PrivateAttr(default=None)

    def adapter(self) -> BlobStore:
        """The store, opened when it is first used."""
        if self._open is None:
            self._open = self.store.open()
        return self._open


def configured_store(config: Mapping[str, Any]) -> BlobStore:
    """A store by its part of run config, such as `{"local": {"path": "/data/store"}}`.

    Raises:
        ConfigError: It names no kind of store.
    """
    kinds: dict[str, type[DefaultStore | LocalStore | S3Store | MemoryStore]] = {
        "default": DefaultStore,
        "local": LocalStore,
        "s3": S3Store,
        "memory": MemoryStore,
    }
    kind, values = next(iter(config.items()), ("", {}))
    if kind not in kinds:
        raise ConfigError(f"there is no store {kind!r}", where="blobs.store", fix=f"one of {', '.join(kinds)}")
    return kinds[kind](**(values or {})).open()


def default_store() -> str:
    """Where the store is when no config says otherwise: never a temporary folder.

    `KITCHEN_STORE`; else `$DAGSTER_HOME/kitchen_store`; else `./dagster_home/kitchen_store` where
    `./dagster_home/dagster.yaml` exists; else `./kitchen_store`.
    """
    named = os.environ.get("KITCHEN_STORE")
    if named:
        return named
    home = os.environ.get("DAGSTER_HOME")
    if home:
        return str(Path(home) / "kitchen_store")
    if Path("dagster_home/dagster.yaml").is_file():
        return str(Path("dagster_home/kitchen_store").resolve())
    return str(Path("kitchen_store").resolve())


def store_is_chosen() -> bool:
    """Whether somebody chose where the store is, by `KITCHEN_STORE` or `DAGSTER_HOME`; else it is said aloud."""
    return bool(os.environ.get("KITCHEN_STORE") or os.environ.get("DAGSTER_HOME"))


def open_store(place: str) -> BlobStore:
    """Open a store by its place: a folder, `s3://bucket/prefix`, or `memory://name`.

    Raises:
        ConfigError: It is of a kind that isn't known.
        BlobError: The folder can't be used.
    """
    if place.startswith("memory://"):
        from kitchen_resources.blobs.memory import MemoryBlobs

        return _memories.setdefault(place, MemoryBlobs())
    if place.startswith("s3://"):
        from kitchen_resources.blobs.s3_store import open_uri

        return open_uri(place)
    if "://" in place and not place.startswith("file://"):
        raise ConfigError(
            f"stores of the kind {place.split('://')[0]}:// aren't known",
            where="KITCHEN_STORE",
            fix="name a folder on a local disk, or s3://bucket/prefix",
        )
    from kitchen_resources.blobs.local import LocalBlobs

    return LocalBlobs(Path(place.removeprefix("file://")).expanduser())
