"""What a service that carries out orders is to the kitchen: functions that are called by name, and looked at by id."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Ended:
    """How a call ended, as the service tells it.

    Attributes:
        how: In words; "" when the function returned.
        fix: What to do about it.
        retriable: Whether another call may well fare better.
    """

    how: str = ""
    fix: str = ""
    retriable: bool = True


class Calls(Protocol):
    """Calls of the function that carries out orders.

    Each method raises `BackendError`, retriable when the service may well answer the same question later.
    """

    @property
    def where(self) -> str:
        """The setting that names the service, for errors: `trainer.backend.modal`."""
        ...

    def spawn(self, order: str) -> str:
        """Call the function with the key of an order; returns the call's id at once."""
        ...

    def ended(self, call: str) -> Ended | None:
        """How a call ended; None while it waits or works."""
        ...

    def cancel(self, call: str) -> None:
        """End a call, whatever it is doing. One that is over is left as it is."""
        ...
