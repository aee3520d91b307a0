"""References to user code: `module:qualname`, which is all of it that ever goes to a worker process."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kitchen_resources.digests import digest_file
from kitchen_resources.errors import ConfigError


def reference_of(target: Callable[..., Any], *, where: str) -> str:
    """How a worker process imports a class or function.

    Args:
        target: The class or function.
        where: Who asks, for messages.

    Returns:
        `module:qualname`.

    Raises:
        ConfigError: A worker couldn't import it: a lambda, something local, of `__main__`, or without a name.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        raise _refused(f"{target!r} has no name to import it by", where)
    if "<lambda>" in name:
        raise _refused("a lambda can't be imported", where)
    if "<locals>" in name:
        raise _refused(f"{name} is defined inside a function", where)
    if module == "__main__":
        raise _refused(f"{name} is defined in the program that was started", where)
    if _within(sys.modules.get(module), name) is not target:
        raise _refused(f"{module}:{name} is something else than {target!r}", where)
    return f"{module}:{name}"


def resolve(reference: str) -> Callable[..., Any]:
    """What a reference names, with its module imported.

    Raises:
        ImportError: There is no such module.
        AttributeError: The module has no such name.
    """
    module, _, name = reference.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def source_digest(target: Callable[..., Any], *, name: str) -> str:
    """sha256 of the file that defines a class or function; what that file imports isn't in it.

    Raises:
        ConfigError: There is no such file.
    """
    file = getattr(sys.modules.get(target.__module__), "__file__", None)
    if file is None or not Path(file).is_file():
        raise ConfigError(
            f"{target.__module__} has no source file, so that a change of it would go unnoticed",
            where=name,
            fix="define it in a .py file",
        )
    return digest_file(Path(file))


def _within(module: Any, name: str) -> Any:
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _refused(reason: str, where: str) -> ConfigError:
    return ConfigError(
        f"{reason}, and environments and rewards run in worker processes that import them by name",
        where=where,
        fix="define it with def or class at the top level of a module of its own, and import it from there",
    )
