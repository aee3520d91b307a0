"""A session at a service that speaks the Tinker API, by Tinker's SDK: restores and downloads."""

import io
import os
import tarfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kitchen_resources.errors import BackendError, CapabilityError, ConfigError
from kitchen_resources.training.port import AdamParams
from kitchen_resources.training.remote.adapters import ADAPTER_FILES, fetch, write_adapter
from kitchen_resources.training.remote.asking import Asking, ServiceSettings

KEY_VARIABLE = "TINKER_API_KEY"


class TinkerService(Asking):
    """A session at the service: every client of a run belongs to it, and ends with it.

    Raises:
        CapabilityError: The SDK isn't installed.
        ConfigError: There is no key.
    """

    tells_loss_alone = False
    probe_tolerance = 1e-3  # SkyRL's differ by under 1e-4.

    def __init__(self, settings: ServiceSettings) -> None:
        self.sdk = _sdk()
        super().__init__("tinker", settings, _key(), KEY_VARIABLE)
        given: dict[str, Any] = {"base_url": settings.base_url} if settings.base_url else {}
        self._service = self.sdk.ServiceClient(
            user_metadata={"kitchen_run": settings.label}, api_key=self._key, **given
        )
        self._closed = False

    def adam(self, params: AdamParams) -> Any:
        """See `Service.adam`."""
        return self.sdk.AdamParams(**asdict(params))

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

    def sampler(self, client: Any) -> Any:
        """See `Service.sampler`."""
        return self.call(client.save_weights_and_get_sampling_client, "weights to sample by")

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
        self.call(
            lambda: _unpack(fetch(found.url, self.settings.deadline_s, trusted=self.settings.base_url), target),
            f"the archive of {path}",
        )

    def close(self) -> None:
        """End the session; may be called twice."""
        if self._closed:
            return
        self._closed = True
        for holder in (self._service._session_holder, self._service._rest_holder):
            if holder is not None:
                holder.close()


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


def _unpack(archive: bytes, target: Path) -> None:
    """The adapter's two files out of an archive, and nothing else of it."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            name = Path(member.name).name
            stream = members.extractfile(member) if member.isfile() and name in ADAPTER_FILES else None
            if stream is not None:
                found[name] = stream.read()
    write_adapter(found, target, where="backend tinker")
