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


class Unfit(BackendError):
    """What was to be made ready never will be."""


class Account:
    """An account, asked by the SDK's REST client.

    Args:
        backend: Which one asks, for messages.
        api_url: Where the account is.
        name: Its id; None for the one that the key belongs to.
        timeout_s: How long to wait for one answer, in seconds.
        patience_s: How long what passes is asked again, in seconds; 0 where whoever asks does that.
    """

    def __init__(
        self,
        backend: str,
        api_url: str,
        name: str | None = None,
        *,
        timeout_s: float = 60.0,
        patience_s: float = 0.0,
    ) -> None:
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
        self._patience_s = patience_s
        self.url = api_url

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
        end, pause = time.monotonic() + self._patience_s, 1.0
        while True:
            try:
                return question()
            except KitchenError as error:
                told: KitchenError = error
            except Exception as error:  # noqa: BLE001  (the cause could have the key in it)
                told = self._told(error, what)
            if not told.mendable or time.monotonic() + pause > end:
                raise told from None
            time.sleep(pause)
            pause = min(2 * pause, 15.0)

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
        # By the names that are known: what else it lists, and wherever that would lead, isn't looked at.
        urls = self.ask(
            lambda: {
                place.rpartition("/")[2]: url
                for place, url in self.rest.models.get_download_endpoint(
                    name, account_id=self.name
                ).filename_to_signed_urls.items()
            },
            f"the files of {model}",
        )
        found = {file: self._fetched(urls[file], f"{file} of {model}") for file in ADAPTER_FILES if file in urls}
        write_adapter(found, target, where=self._where)

    def _fetched(self, url: str, what: str) -> bytes:
        try:
            return self.ask(lambda: fetch(url, 600.0, trusted=self.url), what)
        except Refused as error:
            if error.status is None or error.status >= 500:
                raise
            # A link that has ended; asked for again there is another.
            raise Refused(
                f"{what}: its link is refused with {error.status}", where=self._where, retriable=True
            ) from None

    def wait_until_ready(self, look: Callable[[], Any], what: str, deadline_s: float, pause_s: float = 3.0) -> None:
        """Look again and again until something's state is READY.

        Raises:
            BackendError: It isn't within the deadline, or never will be.
        """
        end = time.monotonic() + deadline_s
        while True:
            state, status = self.ask(lambda: state_of(look()), what)
            if state == "READY":
                return
            if status is not None and status.code not in (None, "OK"):
                raise Unfit(
                    f"{what}: {status.code}: {status.message}",
                    where=self._where,
                    fix="see the message of the service",
                    retriable=status.code in PASSING,
                )
            if time.monotonic() > end:
                raise BackendError(
                    f"{what} isn't ready after {deadline_s:g} s: {state}", where=self._where, retriable=True
                )
            time.sleep(pause_s)

    def _told(self, error: Exception, what: str) -> KitchenError:
        """An error of the SDK as one of the kitchen's; never with the key in it."""
        said = f"{type(error).__name__}: {error}".replace(self._key, "***")
        import httpx

        code = getattr(error, "status_code", None) or getattr(error, "code", None)
        status = code if isinstance(code, int) else None
        fix, retriable = _MEANING.get(status or 0, ("see the message of the service", False))
        if status is None:
            away = (self._sdk.APIConnectionError, httpx.TransportError, OSError, HTTPException)
            # The others are what is left of an answer that isn't of its API, such as a page of a proxy.
            retriable = isinstance(error, (*away, AttributeError, KeyError, TypeError, ValueError))
        elif status >= 500 and status not in (501, 505):
            retriable = True
        return Refused(
            f"{what}: {said}",
            where=self._where,
            fix="run it again when the service is well" if retriable else fix,
            retriable=retriable,
            status=status,
            retry_after_s=_retry_after(error),
        )


PASSING = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNAVAILABLE"})
"""Codes of a status that another try may well not meet."""

_MEANING = {
    401: (f"set {KEY_VARIABLE} to a valid key", False),
    403: (f"set {KEY_VARIABLE} to a key that may do this", False),
    402: ("see the account's billing page", False),
    # How it refuses an account that is suspended, or has spent what it may.
    412: ("see the account's quotas and limits", False),
    **dict.fromkeys((408, 425, 429), ("", True)),
}


def state_of(found: Any) -> tuple[Any, Any]:
    """State and status of something that is made ready."""
    return found.state, getattr(found, "status", None)


def _retry_after(error: Exception) -> float | None:
    """Seconds that the service asks to wait, or None."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after"]))
    return None
