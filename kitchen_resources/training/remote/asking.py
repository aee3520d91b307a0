"""What every service of primitives is asked through: deadlines, and its SDK's errors as the kitchen's.

SDKs repeat requests for minutes and poll without end, so every answer has a deadline; and no error may have the key in it.
"""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kitchen_resources.errors import BackendError, KitchenError, StateLost
from kitchen_resources.training.port import AdamParams

T = TypeVar("T")


@dataclass(frozen=True)
class ServiceSettings:
    """How to reach a service, and what to train there.

    Attributes:
        base_url: Where it is; None for the SDK's own default.
        base_model: The base, by the service's name of it.
        rank: Rank of the adapter.
        seed: Of its first weights.
        deadline_s: How long to wait for one answer, in seconds.
        keep_days: Days that the service keeps a state, or None for as long as it likes.
        label: What the service shows of a run, such as the start of its fingerprint.
    """

    base_url: str | None
    base_model: str
    rank: int
    seed: int
    deadline_s: float = 600.0
    keep_days: float | None = 30.0
    label: str = ""

    @property
    def service(self) -> str:
        """Where the service is, by name."""
        return self.base_url or "the default service"


class Service(Protocol):
    """A session at a service: every client of a run belongs to it, and ends with it."""

    name: str
    """Of the backend: what it is called in config and in messages."""

    probe_tolerance: float
    """How far the probe's loss after a restore may be from that at its save, in nats a token."""

    tells_loss_alone: bool
    """Whether a pass may be answered with the loss of its batch, and no log-probabilities."""

    settings: ServiceSettings
    sdk: Any
    """The SDK's types: Datum, ModelInput, TensorData, AdamParams, SamplingParams."""

    def train(self, state: str | None = None, *, optimizer: bool = True) -> Any:
        """A new training client of the SDK: of the base with a new adapter, or at a saved state."""
        ...

    def sampler(self, client: Any) -> Any:
        """A sampling client of the SDK for the weights of this moment."""
        ...

    def base_sampler(self, base_model: str) -> Any:
        """A sampling client of the SDK for a base as it is."""
        ...

    def unload(self, client: Any) -> None:
        """Give back the place of a training client; where that fails, it ends with the session."""
        ...

    def download(self, path: str, target: Path) -> None:
        """Bring the adapter that a sampler's path names into a folder."""
        ...

    def adam(self, params: AdamParams) -> Any:
        """A step's settings as the SDK's own."""
        ...

    def require_base_model(self) -> None:
        """Refuse a base that the service doesn't serve."""
        ...

    def close(self) -> None:
        """End the session; may be called twice."""
        ...

    def call(self, work: Callable[[], T], what: str, *, deadline_s: float | None = None) -> T:
        """What a blocking call of the SDK gives, within the deadline."""
        ...

    def wait(self, result: Callable[[float], T], what: str, *, deadline_s: float | None = None) -> T:
        """The result of a future of the SDK, within the deadline."""
        ...


class Asking:
    """Deadlines and errors, for a service's session.

    Args:
        name: Of the backend.
        settings: Where the service is.
        key: The credential, which no message may hold.
        key_variable: Where it came from.
    """

    def __init__(self, name: str, settings: ServiceSettings, key: str, key_variable: str) -> None:
        self.name = name
        self.settings = settings
        self._key = key
        self._key_variable = key_variable

    def call(self, work: Callable[[], T], what: str, *, deadline_s: float | None = None) -> T:
        """What a blocking call of the SDK gives, within the deadline.

        Raises:
            BackendError: It failed, or there was no answer in time.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001  (whatever went wrong is told to who waits)
                future.set_exception(error)

        threading.Thread(target=run, name=f"{self.name} call", daemon=True).start()
        return self.wait(future.result, what, deadline_s=deadline_s)

    def wait(self, result: Callable[[float], T], what: str, *, deadline_s: float | None = None) -> T:
        """The result of a future of the SDK, within the deadline; errors as the kitchen has them."""
        deadline = deadline_s or self.settings.deadline_s
        try:
            return result(deadline)
        except KitchenError:
            raise
        except (TimeoutError, CancelledError) as error:
            raise BackendError(
                f"no answer within {deadline:g} s: {what}",
                where=self._where,
                fix="look at the service; launched again, the run goes on from its last checkpoint",
                retriable=True,
            ) from error
        except Exception as error:  # noqa: BLE001  (the cause could have the key in it)
            raise self._told(error, what) from None

    @property
    def _where(self) -> str:
        return f"backend {self.name} at {self.settings.service}"

    def _told(self, error: Exception, what: str) -> KitchenError:
        """An error of the SDK as one of the kitchen's; never with the key in it."""
        said = f"{type(error).__name__}: {error}".replace(self._key, "***")
        status = getattr(error, "status_code", None) or _status_in(said)
        if status in (401, 403):
            return BackendError(
                f"the service refused the key: {said}",
                where=self._where,
                fix=f"set {self._key_variable} to a valid key",
            )
        if status == 402:
            return BackendError(f"payment is due: {said}", where=self._where, fix="see the account's billing page")
        category = str(getattr(error, "category", "")).lower()
        # A server that was started again knows neither the session nor what was loaded in it; a new one does.
        forgot = any(mark in said for mark in ("poisoned", "not loaded", "Model not found", "Session not found"))
        gone = (
            forgot
            or isinstance(error, OSError)
            or any(kind.__name__ in _NO_CONNECTION for kind in type(error).__mro__)
        )
        passing = status in (408, 409, 410, 429) or (status is not None and status >= 500)
        retriable = gone or passing or category.endswith(("server", "unknown"))
        fix = "run it again when the service is well" if retriable else "see the message of the service"
        kind = StateLost if status == 404 and what.startswith("the state ") else BackendError
        if kind is StateLost:
            return StateLost(f"the service has {what} no more: {said}", where=self._where)
        return BackendError(f"{what}: {said}", where=self._where, fix=fix, retriable=retriable)


_NO_CONNECTION = ("APIConnectionError", "TransportError")


def _status_in(said: str) -> int | None:
    """The HTTP status in a message of the SDK, where it raises no error that has one."""
    for mark in ("with status ", "(status ", "Error code: ", "(HTTP "):
        digits = said.partition(mark)[2][:3]
        if digits.isdecimal():
            return int(digits)
    return None
