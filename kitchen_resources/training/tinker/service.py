"""A session at a service that speaks the Tinker API: deadlines, errors, restores, downloads.

What the SDK leaves to its user is done here. It repeats requests for minutes and polls without end, so every answer has a
deadline; and its errors become the kitchen's, without the key in them.
"""

import io
import json
import os
import tarfile
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kitchen_resources.errors import BackendError, CapabilityError, ConfigError, KitchenError, StateLost

KEY_VARIABLE = "TINKER_API_KEY"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")

T = TypeVar("T")


@dataclass(frozen=True)
class TinkerSettings:
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


class TinkerService:
    """A session at the service: every client of a run belongs to it, and ends with it.

    Raises:
        CapabilityError: The SDK isn't installed.
        ConfigError: There is no key.
    """

    def __init__(self, settings: TinkerSettings) -> None:
        self.settings = settings
        self.sdk = _sdk()
        self._key = _key()
        given: dict[str, Any] = {"base_url": settings.base_url} if settings.base_url else {}
        self._service = self.sdk.ServiceClient(
            user_metadata={"kitchen_run": settings.label}, api_key=self._key, **given
        )
        self._closed = False

    def require_base_model(self) -> None:
        """Refuse a base that the service doesn't serve: some train another one then, without a word.

        Raises:
            CapabilityError: With those that it does.
        """
        answer = self.call(self._service.get_server_capabilities, "what it serves")
        served = sorted(name for model in answer.supported_models if (name := model.model_name))
        if self.settings.base_model not in served:
            raise CapabilityError(
                f"the service has no base model {self.settings.base_model!r}",
                where="trainer.backend.tinker.base_model",
                fix=f"one of {', '.join(served) or 'none: it serves no model'}",
            )

    def train(self, state: str | None = None, *, optimizer: bool = True) -> Any:
        """A new training client of the SDK: of the base with a new adapter, or at a saved state."""
        settings = self.settings
        about = {"kitchen_run": settings.label}
        if state is None:
            return self.call(
                lambda: self._service.create_lora_training_client(
                    settings.base_model,
                    rank=settings.rank,
                    seed=settings.seed,
                    train_unembed=False,
                    user_metadata=about,
                ),
                "a training client",
            )
        restore = (
            self._service.create_training_client_from_state_with_optimizer
            if optimizer
            else self._service.create_training_client_from_state
        )
        return self.call(lambda: restore(state, user_metadata=about), f"the state {state}")

    def base_sampler(self, base_model: str) -> Any:
        """A sampling client of the SDK for a base as it is."""
        return self.call(lambda: self._service.create_sampling_client(base_model=base_model), "a sampling client")

    def unload(self, client: Any) -> None:
        """Give back the place of a training client; where that fails, it ends with the session."""
        request = self.sdk.types.UnloadModelRequest(model_id=client.model_id)

        async def unload() -> None:
            with client.holder.aclient(_train_pool()) as http:
                await http.models.unload(request=request, max_retries=0)

        with suppress(BackendError):
            self.call(lambda: client.holder.run_coroutine_threadsafe(unload()).result(), "an unload", deadline_s=15)

    def download(self, path: str, target: Path) -> None:
        """Bring the adapter that a sampler's path names into a folder."""
        run, _, checkpoint = path.removeprefix("tinker://").partition("/")
        rest = self._service.create_rest_client()
        found = self.call(lambda: rest.get_checkpoint_archive_url(run, checkpoint).result(), f"the archive of {path}")
        self.call(lambda: _unpack(_fetch(found.url, self.settings.deadline_s), target), f"the archive of {path}")

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

        threading.Thread(target=run, name="tinker call", daemon=True).start()
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
        except Exception as error:
            raise self._told(error, what) from error

    def close(self) -> None:
        """End the session; may be called twice."""
        if self._closed:
            return
        self._closed = True
        for holder in (self._service._session_holder, self._service._rest_holder):
            if holder is not None:
                holder.close()

    @property
    def _where(self) -> str:
        return f"backend tinker at {self.settings.service}"

    def _told(self, error: Exception, what: str) -> KitchenError:
        """An error of the SDK as one of the kitchen's; never with the key in it."""
        said = f"{type(error).__name__}: {error}".replace(self._key, "***")
        status = getattr(error, "status_code", None) or _status_in(said)
        if status in (401, 403):
            return BackendError(
                f"the service refused the key: {said}", where=self._where, fix=f"set {KEY_VARIABLE} to a valid key"
            )
        if status == 402:
            return BackendError(f"payment is due: {said}", where=self._where, fix="see the account's billing page")
        category = str(getattr(error, "category", "")).lower()
        # A server that was started again knows neither the session nor what was loaded in it; a new one does.
        forgot = any(mark in said for mark in ("poisoned", "not loaded", "Model not found", "Session not found"))
        gone = isinstance(error, self.sdk.APIConnectionError) or forgot
        passing = status in (408, 409, 410, 429) or (status is not None and status >= 500)
        retriable = gone or passing or category.endswith(("server", "unknown"))
        fix = "run it again when the service is well" if retriable else "see the message of the service"
        kind = StateLost if status == 404 and what.startswith("the state ") else BackendError
        if kind is StateLost:
            return StateLost(f"the service has {what} no more: {said}", where=self._where)
        return BackendError(f"{what}: {said}", where=self._where, fix=fix, retriable=retriable)


def require_sdk() -> None:
    """Refuse to go on without SDK or key.

    Raises:
        CapabilityError: The SDK isn't installed.
        ConfigError: There is no key.
    """
    _sdk()
    _key()


def sdk_version() -> str:
    """The SDK's version."""
    import importlib.metadata

    return importlib.metadata.version("tinker")


def _sdk() -> Any:
    # Not telling the vendor of every exception, with the data in it, unless somebody wants to.
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    try:
        import tinker
    except ImportError as error:
        raise CapabilityError(
            "needs the package tinker, which isn't installed",
            where="trainer.backend.tinker",
            fix="pip install 'crucible-kitchen[tinker]'",
        ) from error
    return tinker


def _train_pool() -> Any:
    from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

    return ClientConnectionPoolType.TRAIN


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "")
    if not key.startswith(("tml-", "eyJ")):
        raise ConfigError(
            f"the environment variable {KEY_VARIABLE} holds no key" if key else f"{KEY_VARIABLE} isn't set",
            where="trainer.backend.tinker",
            fix=f"export {KEY_VARIABLE}=tml-… where Dagster runs; it is never written into config",
        )
    return key


def _status_in(said: str) -> int | None:
    """The HTTP status in a message of the SDK, where it raises no error that has one."""
    for mark in ("with status ", "(status ", "Error code: "):
        digits = said.partition(mark)[2][:3]
        if digits.isdecimal():
            return int(digits)
    return None


def _fetch(url: str, timeout_s: float) -> bytes:
    request = urllib.request.Request(url)
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        data: bytes = response.read()
    return data


def _unpack(archive: bytes, target: Path) -> None:
    """The adapter's two files out of an archive, and nothing else of it."""
    from kitchen_resources.training.base_models import safetensors_shapes
    from kitchen_resources.training.pytorch.state import canonical_adapter_config

    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            name = Path(member.name).name
            stream = members.extractfile(member) if member.isfile() and name in ADAPTER_FILES else None
            if stream is not None:
                found[name] = stream.read()
    missing = [name for name in ADAPTER_FILES if name not in found]
    if missing:
        raise BackendError(f"its archive holds no {missing[0]}", where="backend tinker")
    weights = target / ADAPTER_FILES[0]
    weights.write_bytes(found[ADAPTER_FILES[0]])
    # Servers leave open which modules are adapted; peft then takes some of its own choice, and drops the rest silently.
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in safetensors_shapes(weights) if ".lora_" in name}
    config = {**json.loads(found[ADAPTER_FILES[1]]), "target_modules": sorted(adapted)}
    (target / ADAPTER_FILES[1]).write_bytes(canonical_adapter_config(config))
