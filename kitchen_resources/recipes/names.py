"""Names of recipes: what they may be, and which are taken."""

import keyword
import re

from kitchen_resources.errors import ConfigError

RESOURCE_KEYS = ("trainer", "blobs", "datasets", "evaluator", "registry", "telemetry")
"""Resource keys of the ports; each recipe takes one more under its own name."""

RESERVED = frozenset({*RESOURCE_KEYS, "io_manager", "epoch_references"})

CLEANUP_JOB = "storage_cleanup"
"""The job that every location has besides those of its recipes, and so no name of a recipe."""

PUSH_JOB = "hub_push"
"""Another such job: it publishes a model on a hub."""

ROLLBACK_JOB = "production_rollback"
"""Another: it points production back to the version before."""

JOB_SUFFIXES = {
    "_promote": "a promotion job",
    "_evaluate_checkpoint": "an evaluation job",
    "_retain_checkpoints": "a retention job",
}
"""What the names of a recipe's other jobs end in, and so the name of no recipe may."""

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def check_name(name: str, *, where: str) -> str:
    """The name itself, when a recipe may have it.

    Raises:
        ConfigError: It isn't a plain lower-case name, it is the key of a port or a word of Python's, or the name of
            another job: one of another recipe's, or the one that clears the store.
    """
    if not _NAME.match(name):
        raise ConfigError(
            f"{name!r} can't be a recipe's name: lower-case letters, digits and _, starting with a letter",
            where=where,
            fix=f"name: {_suggested(name)}",
        )
    taken = _taken(name)
    if taken:
        raise ConfigError(f"{name!r} {taken}", where=where, fix=f"name: {_suggested(name)}")
    return name


def _taken(name: str) -> str:
    if name in RESERVED:
        return "is the key of a resource"
    if name == CLEANUP_JOB:
        return "is the name of the job that clears the store"
    if name == PUSH_JOB:
        return "is the name of the job that publishes a model"
    if name == ROLLBACK_JOB:
        return "is the name of the job that takes a model back"
    if keyword.iskeyword(name):
        # Dagster hands resources over as a named tuple, whose fields can't be keywords.
        return "is a keyword of Python"
    for suffix, job in JOB_SUFFIXES.items():
        if name.endswith(suffix):
            return f"is the name of {job}, which ends in {suffix}"
    return ""


def _suggested(name: str) -> str:
    """A name that is free for sure, close to the one that was wanted."""
    plain = re.sub("[^a-z0-9_]+", "_", name.lower()).lstrip("_0123456789")
    for suffix in JOB_SUFFIXES:
        plain = plain.removesuffix(suffix)
    return f"{plain or 'my'}_recipe" if not plain or _taken(plain) else plain
