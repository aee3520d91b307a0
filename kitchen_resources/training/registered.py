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
        raise no_version(reference, registry)
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


def no_version(reference: str, registry: ModelRegistry, *, role: str = "", jobs: str = "") -> ConfigError:
    """The error for a reference that names no version: what there is instead.

    Args:
        reference: As in `registered_base`.
        registry: Where to look.
        role: Recipe field that names it, where one does.
        jobs: Further jobs that would make a first version, as part of a sentence.
    """
    named = reference.removeprefix(REGISTERED)
    name, _, which = named.partition("@")
    there = [version.version for version in registry.versions(name)]
    if not there or not which:
        what, fix = f"recipe {name} has no registered model yet", f"run the job {name} first" + jobs
        if there:
            what += ", only simulated ones"
    elif which.isdigit():
        what, fix = f"recipe {name} has no version {which}", f"name one that it has: {_listed(there)}"
    else:
        what = f"no version of recipe {name} is called {which}"
        fix = f"move the alias {which} to one, or name one by its number: {_listed(there)}"
    return ConfigError(what, where=f"{role}: {named}" if role else f"{REGISTERED}{named}", fix=fix)


def _listed(numbers: list[int]) -> str:
    """The newest few of them."""
    newest = sorted(numbers)[-5:]
    return ", ".join(f"@{number}" for number in newest) + (
        f" (of {len(numbers)})" if len(numbers) > len(newest) else ""
    )
