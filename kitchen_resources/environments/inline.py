"""Environments and rewards in this process, for code that is trusted to end and not to crash."""

import json

from kitchen_resources.environments.serving import Containment, Host, Wire, refusal, refused


class Inline:
    """The same as a `WorkerProcess`, in this process: no time limit, and a crash is a crash of the whole.

    Args:
        setup: What `Host` takes.

    Raises:
        KitchenError: User code can't be imported, or refuses its options.
    """

    alive = True

    def __init__(self, setup: Wire) -> None:
        with Containment() as containment:
            self._host = Host(_round_trip(setup))
        if containment.error is not None:
            raise refused(refusal(containment.error), where=f"environment {setup['name']}") from containment.error

    def ask(self, request: Wire, parts: int | None) -> list[Wire]:
        """See `WorkerProcess.ask`."""
        return [_round_trip(answer) for answer in self._host.answers(_round_trip(request))]

    def interrupt(self) -> None:
        """Nothing: there is no process."""

    def leave(self) -> None:
        """Nothing: there is no process."""

    def close(self) -> None:
        """Nothing: there is no process."""


def _round_trip(value: Wire) -> Wire:
    return json.loads(json.dumps(value, allow_nan=False))  # type: ignore[no-any-return]
