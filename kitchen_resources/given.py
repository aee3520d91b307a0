"""Adapters that are given as objects, as the resources of their ports."""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.datasets.port import DatasetStore
from kitchen_resources.errors import ConfigError
from kitchen_resources.evaluation.port import Evaluator
from kitchen_resources.registry.port import ModelRegistry
from kitchen_resources.telemetry.port import Telemetry
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.port import Trainer

PORTS: Mapping[str, type] = {
    "trainer": Trainer,
    "blobs": BlobStore,
    "datasets": DatasetStore,
    "evaluator": Evaluator,
    "registry": ModelRegistry,
    "telemetry": Telemetry,
}
"""The contract of each port, by resource key."""


class _Given:
    """What stages ask of a resource, answered with an adapter that is there already."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def adapter(self, *_: Any) -> Any:
        """The adapter."""
        return self._adapter


class _GivenTrainer:
    def __init__(self, live: LiveTrainer) -> None:
        self._live = live

    def live(self) -> LiveTrainer:
        """The trainer with its session."""
        return self._live


def as_resource(key: str, value: Any) -> Any:
    """A resource for a key: the value itself where it is one, else the adapter that it is as one.

    Args:
        key: Resource key.
        value: A Dagster resource; or an object that fulfils the port's contract.

    Raises:
        ConfigError: It is neither; the message names what it lacks.
    """
    port = PORTS.get(key)
    ours = "live" if key == "trainer" else "adapter"
    if port is None or isinstance(value, dg.ResourceDefinition) or callable(getattr(value, ours, None)):
        return value
    lacking = [name for name in _members(port) if not hasattr(value, name)]
    if isinstance(value, type) or lacking:
        said = f"is a class, {value.__name__}" if isinstance(value, type) else f"lacks {', '.join(lacking)}"
        raise ConfigError(
            said,
            where=f"resources[{key!r}]",
            fix=f"pass an object with all of {port.__module__}.{port.__name__}, or a Dagster resource",
        )
    if key == "trainer":
        return dg.ResourceDefinition(resource_fn=lambda _: _trainer(value))
    if key == "telemetry":
        return dg.ResourceDefinition(resource_fn=lambda _: _telemetry(value))
    return _Given(value)


def _trainer(adapter: Trainer) -> Iterator[_GivenTrainer]:
    live = LiveTrainer(adapter, keeps_lease=True)
    try:
        yield _GivenTrainer(live)
    finally:
        live.end()


def _telemetry(adapter: Telemetry) -> Iterator[_Given]:
    try:
        yield _Given(adapter)
    finally:
        adapter.close()


def _members(port: type) -> list[str]:
    """What a contract's class asks for, by name."""
    named = {name for name in vars(port) if not name.startswith("_")}
    return sorted(named | set(vars(port).get("__annotations__", {})))
