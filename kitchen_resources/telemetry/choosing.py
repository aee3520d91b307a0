"""Which events a handler gets."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from kitchen_resources.errors import ConfigError
from kitchen_resources.telemetry.port import EVENTS, Event


class Choice:
    """Events by name, and of the steps only some.

    Args:
        events: Patterns such as `training.*`; all events when empty.
        step_every: Take every so many-th `training.step` (and the steps of methods), and a run's first and last.

    Raises:
        ConfigError: A pattern is of no event, or `step_every` is below 1.
    """

    def __init__(self, events: Sequence[str] = (), step_every: int = 1) -> None:
        for pattern in events:
            if not any(fnmatchcase(name, pattern) for name in EVENTS):
                raise ConfigError(
                    f"{pattern!r} is of no event", where="telemetry.events", fix=f"patterns of {', '.join(EVENTS)}"
                )
        if step_every < 1:
            raise ConfigError(
                f"must be at least 1, got {step_every}", where="telemetry.step_every", fix="step_every: 1"
            )
        self._names = {name for name in EVENTS if not events or any(fnmatchcase(name, one) for one in events)}
        self._step_every = step_every

    def takes(self, event: Event) -> bool:
        """Whether an event is among them."""
        if event.name not in self._names:
            return False
        if not event.name.endswith(".step"):
            return True
        step, last = int(event.metadata["step"]), event.metadata.get("total_steps")
        return step == 1 or step % self._step_every == 0 or step == last
