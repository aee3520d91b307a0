"""A session at Fireworks, by its Training SDK: Tinker's calls, and its own ways to restore and to hand out weights.

A service of the SDK trains one adapter. So each client has a service of its own, also one that goes on from a state.
"""

import os
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kitchen_resources.errors import BackendError, CapabilityError
from kitchen_resources.training.fireworks.account import KEY_VARIABLE, Account, Refused, import_sdk, require_key
from kitchen_resources.training.fireworks.config import API
from kitchen_resources.training.port import AdamParams
from kitchen_resources.training.remote.asking import Asking, ServiceSettings
from kitchen_resources.training.remote.client import ALPHA

SERVERLESS = "/training/v1/serverless"
"""Path of the trainers that several runs share."""

_PATIENCE_S = 120.0
"""How long what passes is asked for again before an epoch that is trained is given up for it, in seconds."""

_LEAST_RATE = 1e-12
"""An Adam step moves a weight by about its rate, and this is far below the distance of two floats."""


class FireworksService(Asking):
    """The services of a run's clients.

    Raises:
        CapabilityError: The SDK isn't installed.
        ConfigError: There is no key.
    """

    tells_loss_alone = True
    probe_tolerance = 5e-3  # Hatchery keeps states in bfloat16; its own differ by up to 2e-3.

    def __init__(self, settings: ServiceSettings) -> None:
        self.sdk = _sdk()
        super().__init__("fireworks", settings, require_key("fireworks"), KEY_VARIABLE)
        # Never left to the SDK: without one it would take Tinker's from the environment.
        self._url = settings.base_url or f"{API}{SERVERLESS}"
        patience = min(settings.deadline_s, _PATIENCE_S)
        self._account = Account("fireworks", self._url.removesuffix(SERVERLESS), patience_s=patience)
        self._closed = False
        self._opened: list[tuple[Any, Any]] = []

    def adam(self, params: AdamParams) -> Any:
        """See `Service.adam`. A rate of 0, as of the first step of a warm-up, is refused there; this one moves no weight."""
        given = {**asdict(params), "learning_rate": max(params.learning_rate, _LEAST_RATE)}
        return self.sdk.AdamParams(**given, emit_grad_norm_metrics="basic")

    def require_base_model(self) -> None:
        """Refuse a base that the service doesn't have.

        Raises:
            CapabilityError: It has no such model.
        """
        self.call(lambda: self._account.require_model(self.settings.base_model), "the base model")

    def train(self, state: str | None = None, *, optimizer: bool = True) -> Any:
        """See `Service.train`."""
        client = self.call(self._new_client, "a training client")
        if state is not None:
            restore = client.load_state_with_optimizer if optimizer else client.load_state
            sent = self.call(lambda: restore(state), f"the state {state}")
            self.wait(sent.result, f"the state {state}")
        return client

    def sampler(self, client: Any) -> Any:
        """See `Service.sampler`."""
        raise _no_samples()

    def base_sampler(self, base_model: str) -> Any:
        """See `Service.base_sampler`: a frozen model, which says what a text's tokens are likely by."""

        def make() -> Any:
            service = self.sdk.ServiceClient(base_url=self._url, api_key=self._key)
            client = service.create_base_training_client(base_model)
            self._opened.append((service, client))
            return client

        return _Reader(self.sdk, self.call(make, f"the model {base_model}"))

    def unload(self, client: Any) -> None:
        """See `Service.unload`."""
        with suppress(BackendError):
            self.call(lambda: client.unload_model().result(15), "an unload", deadline_s=15)
        for service, own in self._opened:
            if own is client:
                self._close(service)
        self._opened = [(service, own) for service, own in self._opened if own is not client]

    def download(self, path: str, target: Path) -> None:
        """Bring the adapter that a sampler's path names into a folder: by a model that is made of it for the moment."""
        model = f"kitchen-{uuid.uuid4().hex}"
        try:
            self._account.ask(lambda: self._promote(path, model), f"the weights of {path}")
            self.call(lambda: self._fetch(path, model, target), f"the weights of {path}")
        finally:
            # Also one that was made after nobody waited for it any more.
            with suppress(BackendError):
                self._account.ask(
                    lambda: self._account.rest.models.delete(model, account_id=self._account.name),
                    f"deleting {model}",
                )

    def _fetch(self, path: str, model: str, target: Path) -> None:
        self._account.wait_until_ready(
            lambda: self._account.rest.models.get(model, account_id=self._account.name),
            f"the model of {path}",
            self.settings.deadline_s,
        )
        self._account.download_adapter(model, target)

    def close(self) -> None:
        """See `Service.close`. What was saved stays; the sessions end by themselves when nobody asks any more."""
        self._closed = True
        opened, self._opened = self._opened, []
        for service, _ in opened:
            self._close(service)

    def _new_client(self) -> Any:
        settings = self.settings
        about = {"kitchen_run": settings.label}
        service = self.sdk.ServiceClient(base_url=self._url, api_key=self._key, user_metadata=about)
        try:
            client = service.create_lora_training_client(
                settings.base_model,
                rank=settings.rank,
                seed=settings.seed,
                alpha=ALPHA,
                train_unembed=False,
                user_metadata=about,
            )
        except BaseException:
            self._close(service)
            raise
        self._opened.append((service, client))
        if self._closed:
            # Nobody waited for it.
            self._close(service)
        return client

    def _promote(self, path: str, model: str) -> None:
        """Have a model made of a sampler's checkpoint, by the session that holds it; one that is made is left as it is."""
        from fireworks.training.sdk.fireworks_client import FireworksClient

        if self._has(model):
            # The answer was lost.
            return
        root, wanted = self._url.removesuffix(SERVERLESS), path.rpartition("/")[2]
        # Else it would trust anybody at an address that is a number.
        verify = True if root.startswith("https://") else None
        try:
            with FireworksClient(api_key=self._key, base_url=root, verify_ssl=verify) as client:
                for service, _ in self._opened:
                    session = f"accounts/{self._account.name}/trainingSessions/{service.training_session_id}"
                    for row in client.list_training_session_checkpoints(session):
                        if row["name"].rpartition("/")[2] == wanted and row.get("promotable"):
                            client.promote_session_checkpoint(row["name"], model, self.settings.base_model)
                            return
        except RuntimeError as error:
            # How this client says all that the service refuses.
            raise self._told(error, f"the weights of {path}") from None
        raise BackendError(f"no session of this run lists {wanted} as one that may be promoted", where=self._where)

    def _has(self, model: str) -> bool:
        try:
            self._account.ask(lambda: self._account.rest.models.get(model, account_id=self._account.name), model)
        except Refused as error:
            if error.status != 404:
                raise
            return False
        return True

    @staticmethod
    def _close(service: Any) -> None:
        # Best effort: what it does besides is to clean up what was never made here.
        with suppress(Exception):
            service.close()


class _Reader:
    """A frozen model that is asked by forward passes; it has the part of a sampling client that this backend needs."""

    def __init__(self, sdk: Any, client: Any) -> None:
        self._sdk = sdk
        self._client = client

    def compute_logprobs(self, text: Any) -> "_Read":
        """The log-probability of each token of a text after those before it; the first one's isn't told."""
        tokens = text.to_ints()
        targets = {
            "target_tokens": self._sdk.TensorData(data=tokens[1:], dtype="int64"),
            "weights": self._sdk.TensorData(data=[1.0] * (len(tokens) - 1), dtype="float32"),
        }
        datum = self._sdk.Datum(model_input=self._sdk.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=targets)
        return _Read(self._client.forward([datum], "cross_entropy"))

    def sample(self, *_: Any) -> Any:
        """Not offered."""
        raise _no_samples()


class _Read:
    """The future of a reading."""

    def __init__(self, sent: Any) -> None:
        self._sent = sent

    def result(self, timeout: float | None = None) -> list[float | None]:
        """Log-probabilities, in nats."""
        (output,) = self._sent.result(timeout).loss_fn_outputs
        return [None, *map(float, output["logprobs"].tolist())]


def _no_samples() -> CapabilityError:
    return CapabilityError("doesn't sample", where="backend fireworks", fix="another backend")


def _sdk() -> Any:
    # Not telling the vendor of every exception, with the data in it, unless somebody wants to.
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    import_sdk("fireworks")
    try:
        from fireworks.training import sdk

        # It imports what it needs when it is first used.
        _ = sdk.ServiceClient, sdk.Datum
    except ImportError as error:
        raise CapabilityError(
            f"needs a package of fireworks-ai's Training SDK: {error}",
            where="trainer.backend.fireworks",
            fix="pip install 'crucible-kitchen[fireworks]'",
        ) from error
    return sdk
