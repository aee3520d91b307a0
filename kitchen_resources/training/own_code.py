"""Code of one's own in training, by import path: a loss, and the stages of an optimiser step."""

import re
from collections.abc import Callable
from typing import Any

from kitchen_resources.environments.references import resolve, source_digest
from kitchen_resources.errors import ConfigError

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\Z")


def check_reference(reference: str, key: str, *, where: str) -> str:
    """The reference, when it has the form of one; nothing is imported.

    Args:
        reference: `module:function`, or "".
        key: Key of the recipe that names it.
        where: Its place.

    Raises:
        ConfigError: It isn't `module:function`.
    """
    if reference and not _REFERENCE.match(reference):
        raise ConfigError(f"{reference!r} names no function", where=where, fix=f"{key}: package.module:function")
    return reference


def find(reference: str, key: str) -> Callable[..., Any]:
    """The function that a recipe names.

    Args:
        reference: `module:function`.
        key: Key of the recipe that names it.

    Raises:
        ConfigError: It can't be imported, or isn't callable.
    """
    try:
        found = resolve(reference)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"can't be imported: {error}",
            where=f"{key} {reference}",
            fix="put the module where Dagster's Python finds it (PYTHONPATH, or an installed package)",
        ) from error
    if not callable(found):
        raise ConfigError("is not a function", where=f"{key} {reference}", fix=f"{key}: package.module:function")
    return found


def code_identity(reference: str, key: str) -> dict[str, Any]:
    """What makes a function another one: its name, and the sha256 of the file that defines it."""
    return {"name": reference, "source": source_digest(find(reference, key), name=f"{key} {reference}")}
