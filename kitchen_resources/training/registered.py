"""Registered models as bases, references and teachers: `registry:NAME`, `registry:NAME@3`, `registry:NAME@production`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.errors import ConfigError
from kitchen_resources.registry.port import CANDIDATE, ModelRegistry, ModelVersion
from kitchen_resources.training.base_models import resolve_base
from kitchen_resources.training.model_files import write_model_folder
from kitchen_resources.training.port import BaseModel

REGISTERED = "registry:"


def registered_base(
    reference: str,
    registry: ModelRegistry,
    content: ContentStore,
    cache: Path,
    *,
    own: Callable[[str], int | None] = lambda name: None,
) -> BaseModel:
    """A registered model as a base.

    Args:
        reference: `registry:NAME`, with @VERSION or @ALIAS; without, it is the version that `own` gives for the name, else
            the candidate.
        registry: Where it is registered.
        content: Where its files are.
        cache: Local folder for what is fetched.
        own: The version of a name that the same run has registered, or None.

    Raises:
        ConfigError: There is no such version, it is simulated, or it is an adapter without its base.
        CheckpointError: A file of it is missing or damaged.
    """
    version = find_version(reference, registry, own=own)
    if version is None:
        name = reference.removeprefix(REGISTERED)
        raise ConfigError(
            "has no registered model yet", where=f"recipe {name}", fix=f"run the job {name.partition('@')[0]} first"
        )
    where = f"{REGISTERED}{version.name}@{version.version}"
    if version.simulated:
        raise ConfigError("is simulated and has no weights", where=where, fix="train it with a real backend")
    if version.model.kind == "adapter":
        raise ConfigError(
            "is a LoRA adapter without its base", where=where, fix="export: merged in that recipe, and run it again"
        )
    folder = write_model_folder(content, version.model, cache / "models" / f"registered-{version.model.digest[:24]}")
    return replace(resolve_base(str(folder), cache), reference=where)


def find_version(
    reference: str, registry: ModelRegistry, *, own: Callable[[str], int | None] = lambda name: None
) -> ModelVersion | None:
    """The version that a reference names; None when there is none.

    Args:
        reference: As in `registered_base`.
        registry: Where to look.
        own: As in `registered_base`.
    """
    name, _, which = reference.removeprefix(REGISTERED).partition("@")
    if not name:
        raise ConfigError("names no model", where=repr(reference), fix=f"{REGISTERED}NAME, or {REGISTERED}NAME@3")
    if which.isdigit():
        numbers = {version.version for version in registry.versions(name)}
        return registry.get(name, int(which)) if int(which) in numbers else None
    number = registry.alias(name, which) if which else own(name) or registry.alias(name, CANDIDATE)
    return None if number is None else registry.get(name, number)
