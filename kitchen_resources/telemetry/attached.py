"""Handlers that a Python program attaches, beside those of the `telemetry` resource."""

from pathlib import Path
from typing import Any

from kitchen_resources.errors import ConfigError
from kitchen_resources.telemetry.console import ConsoleHandler
from kitchen_resources.telemetry.jsonl import JsonlHandler
from kitchen_resources.telemetry.port import Handler

_attached: list["Attached"] = []


class Attached:
    """A handler that gets the events of every run of this process, until it is detached.

    Attributes:
        kind: `console`, `jsonl`, or the class of the handler.
        handler: The handler.
    """

    def __init__(self, kind: str, handler: Handler) -> None:
        self.kind = kind
        self.handler = handler

    def detach(self) -> None:
        """Send it nothing more; may be called twice."""
        if self in _attached:
            _attached.remove(self)
            self.handler.close()

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, *_: Any) -> None:
        self.detach()


def attach_telemetry(handler: str | Handler, **options: Any) -> Attached:
    """Send the events of this process's runs somewhere.

    Args:
        handler: `console`, `jsonl`, or an object with `handle(event)` and `close()`.
        options: Of `jsonl`: `path`, and `max_mib` and `keep` to rotate it; of `console`: `every_s`.

    Returns:
        What detaches it again, also as a context manager.

    Raises:
        ConfigError: There is no such handler, or it takes no such option, or lacks one.
    """
    if isinstance(handler, str):
        attached = Attached(handler, _made(handler, options))
    elif isinstance(handler, Handler):
        if options:
            raise ConfigError(f"an object takes no {', '.join(options)}", where="attach_telemetry", fix="remove them")
        attached = Attached(type(handler).__name__, handler)
    else:
        raise ConfigError(
            f"{handler!r} is no handler",
            where="attach_telemetry",
            fix='"console", "jsonl", or an object with handle, close',
        )
    _attached.append(attached)
    return attached


def attached_handlers() -> list[Attached]:
    """What is attached now."""
    return list(_attached)


def _made(kind: str, options: dict[str, Any]) -> Handler:
    known = {"console": {"every_s"}, "jsonl": {"path", "max_mib", "keep"}}
    if kind not in known:
        raise ConfigError(f"there is no handler {kind!r}", where="attach_telemetry", fix="one of console, jsonl")
    unknown = sorted(set(options) - known[kind])
    if unknown:
        raise ConfigError(
            f"{kind} takes no {', '.join(unknown)}",
            where="attach_telemetry",
            fix=f"one of {', '.join(sorted(known[kind]))}",
        )
    if kind == "console":
        return ConsoleHandler(**options)
    if "path" not in options:
        raise ConfigError(
            "jsonl wants a path", where="attach_telemetry", fix='attach_telemetry("jsonl", path="events.jsonl")'
        )
    return JsonlHandler(Path(options.pop("path")).expanduser(), **options)
