"""An account at Fireworks: its key, its REST client, what it refuses with, and the models that it hands out."""

import contextlib
import os
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

from kitchen_resources.errors import BackendError, CapabilityError, ConfigError, KitchenError
from kitchen_resources.training.remote.adapters import ADAPTER_FILES, fetch, write_adapter

KEY_VARIABLE = "FIREWORKS_API_KEY"
T = TypeVar("T")


def import_sdk(backend: str) -> Any:
    """The package `fireworks`.

    Raises:
        CapabilityError: It isn't installed.
    """
    try:
        import fireworks
    except ImportError as error:
        raise CapabilityError(
            "needs the package fireworks-ai, which isn't installed",
            where=f"trainer.backend.{backend}",
            fix="pip install 'crucible-kitchen[fireworks]'",
        ) from error
    return fireworks


def require_key(backend: str) -> str:
    """The key, from the environment alone.

    Raises:
        ConfigError: There is none.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise ConfigError(
            f"{KEY_VARIABLE} isn't set",
            where=f"trainer.backend.{backend}",
            fix=f"export {KEY_VARIABLE}=fw_… where Dagster runs; it is never written into config",
        )
    return key


class Refused(BackendError):
    """A request that the service didn't grant.

    Args:
        what: As in KitchenError.
        where: As in KitchenError.
        fix: As in KitchenError.
        retriable: As in BackendError.
        status: The HTTP status; None where there was no answer.
        retry_after_s: How long the service asks to wait, in seconds.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        fix: str = "",
        retriable: bool = False,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(what, where=where, fix=fix, retriable=retriable)
        self.status = status
        self.retry_after_s = retry_after_s


class Account:
    """An account, asked by the SDK's REST client.

    Args:
        backend: Which one asks, for messages.
        api_url: Where the account is.
        name: Its id; None for the one that the key belongs to.
        timeout_s: How long to wait for one answer, in seconds.
    """

    def __init__(self, backend: str, api_url: str, name: str | None = None, timeout_s: float = 60.0) -> None:
        self._sdk = import_sdk(backend)
        self._key = require_key(backend)
        self._backend = backend
        self._where = f"backend {backend} at {api_url}"
        # Named here, whatever the environment says: the key is sent there. It repeats nothing by itself: how long to
        # go on asking depends on what is asked.
        self.rest = self._sdk.Fireworks(
            api_key=self._key, account_id=name or "", base_url=api_url, timeout=timeout_s, max_retries=0
        )
        self._name = name

    @property
    def name(self) -> str:
        """The account's id."""
        if self._name is None:
            found = self.ask(lambda: list(self.rest.accounts.list()), "the key's account")
            names = [str(account.name).removeprefix("accounts/") for account in found]
            if len(names) != 1:
                raise ConfigError(
                    f"the key belongs to {len(names)} accounts" + (f": {', '.join(names)}" if names else ""),
                    where=self._where,
                    fix="name one: account: …",
                )
            self._name = names[0]
            self.rest.account_id = self._name
        return self._name

    def ask(self, question: Callable[[], T], what: str) -> T:
        """What the service answers.

        Raises:
            BackendError: It refuses, or can't be reached; retriable where it may well answer the same question later.
        """
        try:
            return question()
        except KitchenError:
            raise
        except Exception as error:  # noqa: BLE001  (the cause could have the key in it)
            raise self._told(error, what) from None

    def require_model(self, model: str) -> None:
        """Refuse a base model that the service doesn't have.

        Args:
            model: `accounts/<account>/models/<id>`.

        Raises:
            CapabilityError: It has no such model.
        """
        owner, _, name = model.removeprefix("accounts/").partition("/models/")
        try:
            if not (owner and name):
                raise Refused("is no model's name", status=404)
            self.ask(lambda: self.rest.models.get(name, account_id=owner), f"the model {model}")
        except Refused as error:
            if error.status != 404:
                raise
            raise CapabilityError(
                f"the service has no base model {model!r}",
                where=f"trainer.backend.{self._backend}.base_model",
                fix="the model's whole name there, such as accounts/fireworks/models/qwen3-8b",
            ) from None

    def download_adapter(self, model: str, target: Path) -> None:
        """Bring the adapter of one of the account's models into a folder.

        Args:
            model: `accounts/<account>/models/<id>`, or the id alone.
            target: The folder.
        """
        name = model.rpartition("/")[2]
        answer = self.ask(
            lambda: self.rest.models.get_download_endpoint(name, account_id=self.name), f"the files of {model}"
        )
        urls = answer.filename_to_signed_urls or {}
        # By the names that are known: what else it lists, and wherever that would lead, isn't looked at.
        named = {place.rpartition("/")[2]: url for place, url in urls.items()}
        found = {
            file: self.ask(lambda url=named[file]: fetch(url, 600.0), f"{file} of {model}")  # type: ignore[misc]
            for file in ADAPTER_FILES
            if file in named
        }
        write_adapter(found, target, where=self._where)

    def wait_until_ready(self, look: Callable[[], Any], what: str, deadline_s: float, pause_s: float = 3.0) -> Any:
        """Look again and again until something's state is READY.

        Raises:
            BackendError: It isn't within the deadline, or never will be.
        """
        end = time.monotonic() + deadline_s
        while True:
            found = self.ask(look, what)
            if found.state == "READY":
                return found
            status = getattr(found, "status", None)
            if status is not None and status.code not in (None, "OK"):
                raise BackendError(f"{what}: {status.code}: {status.message}", where=self._where)
            if time.monotonic() > end:
                raise BackendError(
                    f"{what} isn't ready after {deadline_s:g} s: {found.state}", where=self._where, retriable=True
                )
            time.sleep(pause_s)

    def _told(self, error: Exception, what: str) -> KitchenError:
        """An error of the SDK as one of the kitchen's; never with the key in it."""
        said = f"{type(error).__name__}: {error}".replace(self._key, "***")
        code = getattr(error, "status_code", None) or getattr(error, "code", None)
        status = code if isinstance(code, int) else None
        fix, retriable = _MEANING.get(status or 0, ("see the message of the service", False))
        if status is None:
            retriable = isinstance(error, (self._sdk.APIConnectionError, OSError, HTTPException))
        elif status >= 500:
            retriable = True
        return Refused(
            f"{what}: {said}",
            where=self._where,
            fix="run it again when the service is well" if retriable else fix,
            retriable=retriable,
            status=status,
            retry_after_s=_retry_after(error),
        )


_MEANING = {
    401: (f"set {KEY_VARIABLE} to a valid key", False),
    403: (f"set {KEY_VARIABLE} to a key that may do this", False),
    402: ("see the account's billing page", False),
    # How it refuses an account that is suspended, or has spent what it may.
    412: ("see the account's quotas and limits", False),
    **dict.fromkeys((408, 425, 429), ("", True)),
}


def _retry_after(error: Exception) -> float | None:
    """Seconds that the service asks to wait, or None."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after"]))
    return None
