"""Dagster's context of the stage that is being executed, for adapters that start processes in its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from kitchen_resources.errors import CapabilityError

_current: ContextVar[Any] = ContextVar("dagster_context", default=None)


@contextmanager
def stage_running(context: Any) -> Iterator[None]:
    """Make a context the current one."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def current_context(*, where: str) -> Any:
    """The context of the op or asset that is being executed.

    Raises:
        CapabilityError: There is none.
    """
    context = _current.get()
    if context is None:
        raise CapabilityError(
            "is only used by a stage of a Dagster run", where=where, fix="launch a job, or kitchen.run"
        )
    return context
