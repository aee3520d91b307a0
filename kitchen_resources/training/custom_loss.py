"""A loss of one's own, by import path: a function of data and their target log-probabilities."""

import re
from typing import Any

from kitchen_resources.environments.references import resolve, source_digest
from kitchen_resources.errors import ConfigError
from kitchen_resources.training.port import CustomLoss

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\Z")


def check_reference(reference: str, *, where: str) -> str:
    """The reference, when it has the form of one; nothing is imported.

    Raises:
        ConfigError: It isn't `module:function`.
    """
    if reference and not _REFERENCE.match(reference):
        raise ConfigError(f"{reference!r} names no function", where=where, fix="loss: package.module:function")
    return reference


def find_loss(reference: str) -> CustomLoss:
    """The loss that a recipe names.

    Raises:
        ConfigError: It can't be imported, or isn't callable.
    """
    try:
        found = resolve(reference)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"can't be imported: {error}",
            where=f"loss {reference}",
            fix="put the module where Dagster's Python finds it (PYTHONPATH, or an installed package)",
        ) from error
    if not callable(found):
        raise ConfigError("is not a function", where=f"loss {reference}", fix="loss: package.module:function")
    return found


def loss_identity(reference: str) -> dict[str, Any]:
    """What makes a loss another one: its name, and the sha256 of the file that defines it."""
    return {"name": reference, "source": source_digest(find_loss(reference), name=f"loss {reference}")}
