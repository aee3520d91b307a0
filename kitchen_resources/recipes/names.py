"""Names of recipes: what they may be, and which are taken."""

import re

from kitchen_resources.errors import ConfigError

RESOURCE_KEYS = ("trainer", "blobs", "datasets", "evaluator", "registry", "telemetry")
"""Resource keys of the ports; each recipe takes one more under its own name."""

RESERVED = frozenset({*RESOURCE_KEYS, "io_manager", "epoch_references"})

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def check_name(name: str, *, where: str) -> str:
    """The name itself, when a recipe may have it.

    Raises:
        ConfigError: It isn't a plain lower-case name, or it is the key of a port.
    """
    if not _NAME.match(name):
        raise ConfigError(
            f"{name!r} can't be a recipe's name: lower-case letters, digits and _, starting with a letter",
            where=where,
            fix=f"name: {re.sub('[^a-z0-9_]+', '_', name.lower()).lstrip('_0123456789') or 'my_recipe'}",
        )
    if name in RESERVED:
        raise ConfigError(f"{name!r} is the key of a resource", where=where, fix="give the recipe another name")
    return name
