"""Seconds and bytes that pass through chosen functions, by wrapping them where they are looked up."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

Sizes = Callable[[tuple[Any, ...], Any], Mapping[str, int]]
"""From a call's positional arguments and result to bytes by name."""


@dataclass(frozen=True)
class Watched:
    """A function to watch.

    Attributes:
        owner: Module or class that it is looked up in.
        name: Its name there.
        part: What its seconds count as.
        sizes: The bytes that a call moves; none by default.
    """

    owner: Any
    name: str
    part: str
    sizes: Sizes = field(default=lambda arguments, result: {})


class Stopwatch:
    """See the module.

    Attributes:
        seconds: By part, over all calls; time in a watched function that another one calls counts for both.
        bytes: By name, over all calls.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, int] = defaultdict(int)

    @contextmanager
    def around(self, *watched: Watched) -> Iterator[None]:
        """Watch functions while the context is open. A name that isn't there is an AttributeError."""
        with ExitStack() as patches:
            for one in watched:
                patches.enter_context(mock.patch.object(one.owner, one.name, self._wrapped(one)))
            yield

    def _wrapped(self, watched: Watched) -> Callable[..., Any]:
        original = getattr(watched.owner, watched.name)

        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = original(*arguments, **named)
            self.seconds[watched.part] += time.perf_counter() - started
            for name, size in watched.sizes(arguments, result).items():
                self.bytes[name] += size
            return result

        return call
