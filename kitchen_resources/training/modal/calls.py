"""Calls of a deployed Modal function; no other module imports Modal's SDK.

The function returns nothing, and what it trains comes through the store. So an id is all that a call is followed by.
The token is the SDK's own: MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or the profile of this machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kitchen_resources.errors import BackendError, CapabilityError
from kitchen_resources.training.orders.port import Ended

WHERE = "trainer.backend.modal"


class ModalCalls:
    """See `Calls`.

    Args:
        app: Name of the deployed app.
        function: Name of its function.
        environment: Modal environment; None for the profile's own.
    """

    def __init__(self, app: str, function: str, environment: str | None) -> None:
        self._app = app
        self._name = function
        self._environment = environment

    @property
    def where(self) -> str:
        """See `Calls.where`."""
        return WHERE

    def require_function(self) -> None:
        """Refuse to go on without the function.

        Raises:
            CapabilityError: It isn't deployed, or the SDK is missing.
            BackendError: Modal can't be asked.
        """
        with self._errors():
            self._function().hydrate()

    def spawn(self, order: str) -> str:
        """See `Calls.spawn`."""
        with self._errors():
            call: str = self._function().spawn(order).object_id
            return call

    def ended(self, call: str) -> Ended | None:
        """See `Calls.ended`."""
        modal = _sdk()
        with self._errors():
            try:
                modal.FunctionCall.from_id(call).get(timeout=0)
            except TimeoutError:
                return None
            except modal.exception.FunctionTimeoutError:
                return Ended(
                    "Modal ended it at its timeout",
                    "raise timeout in the app and deploy it again, or save inside the epoch: checkpoint_minutes: 60",
                    retriable=False,
                )
            except modal.exception.NotFoundError:
                return Ended("Modal doesn't know it")
            except modal.exception.OutputExpiredError:
                return Ended("Modal knows its end no more")
            except modal.exception.InternalFailure as error:
                return Ended(f"Modal lost it: {error}")
            except modal.exception.RemoteError as error:
                # Canceled, or its container didn't come up.
                return Ended(f"{error}", "see its log at modal.com")
            return Ended()

    def cancel(self, call: str) -> None:
        """See `Calls.cancel`."""
        modal = _sdk()
        with self._errors():
            try:
                modal.FunctionCall.from_id(call).cancel()
            except modal.exception.NotFoundError:
                return

    def _function(self) -> Any:
        return _sdk().Function.from_name(self._app, self._name, environment_name=self._environment)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What the SDK raises, as errors that say what to do."""
        modal = _sdk()
        raised = modal.exception
        try:
            yield
        except raised.NotFoundError as error:
            raise CapabilityError(
                f"there is no function {self._name} in an app {self._app}: {error}",
                where=WHERE,
                fix="modal deploy examples/modal/app.py, or name your own app and function",
            ) from error
        except (raised.AuthError, raised.PermissionDeniedError) as error:
            raise BackendError(
                f"Modal refuses the token: {error}",
                where=WHERE,
                fix="set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET to a token of the workspace, or run modal token new",
            ) from error
        except raised.ResourceExhaustedError as error:
            raise BackendError(
                f"Modal takes no more at the moment: {error}",
                where=WHERE,
                fix="wait, or raise the workspace's limit at modal.com",
                retriable=True,
            ) from error
        except (raised.ConnectionError, raised.ServiceError, raised.InternalError, OSError) as error:
            raise BackendError(
                f"Modal can't be reached: {error}",
                where=WHERE,
                fix="run it again; https://status.modal.com says more",
                retriable=True,
            ) from error
        except raised.Error as error:
            raise BackendError(f"{type(error).__name__}: {error}", where=WHERE) from error


def _sdk() -> Any:
    """Modal's SDK.

    Raises:
        CapabilityError: It isn't installed.
    """
    try:
        import modal
        import modal.exception
    except ImportError as error:
        raise CapabilityError(
            f"needs the package {error.name}, which isn't installed",
            where=WHERE,
            fix="pip install 'crucible-kitchen[modal]'",
        ) from error
    return modal
