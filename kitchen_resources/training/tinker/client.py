"""Primitives on a service that speaks the Tinker API, through its SDK; no other module imports it.

What the SDK leaves to its user is done here. It repeats requests for minutes and polls without end, so every answer has a
deadline. After a failed request a training client takes no further ones, so a client is made for an attempt and never
mended. A state is only ever restored into a new one, as servers want it.
"""

import io
import json
import math
import os
import tarfile
import threading
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import BackendError, CapabilityError, ConfigError, KitchenError, StateLost
from kitchen_resources.formulas.seeds import derived_seed
from kitchen_resources.training.port import (
    LOSSES,
    AdamParams,
    CustomLoss,
    Datum,
    ExternalState,
    ForwardBackwardResult,
    ModelInput,
    SampledSequence,
    SamplingParams,
)

KEY_VARIABLE = "TINKER_API_KEY"
STATE_FILE = "tinker.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")

ALPHA = 32
"""Scale of an adapter at every such service; a recipe can't choose it."""

PROBE_TOLERANCE = 1e-3
"""How far the probe's loss after a restore may be from that at its save, in nats a token. SkyRL's differ by under 1e-4."""

_SAMPLED = frozenset({"importance_sampling", "ppo", "cispo"})
"""Losses whose data have advantages and no weights: a token without advantage adds no gradient."""

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


class _Answer(Future):  # type: ignore[type-arg]
    """A future of the SDK, with a deadline, and its result in the kitchen's types."""

    def __init__(self, service: TinkerService, sent: Any, read: Callable[[Any], Any], what: str) -> None:
        super().__init__()
        self._service = service
        self._sent = sent
        self._read = read
        self._what = what

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            try:
                found = self._service.wait(self._sent.result, self._what, deadline_s=timeout)
                self.set_result(self._read(found))
            except Exception as error:  # noqa: BLE001  (a future carries whatever went wrong)
                self.set_exception(error)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        with suppress(Exception):
            self.result(timeout)
        return super().exception(0)


class TinkerTrainingClient:
    """A `TrainingClient` at a service.

    The model is made there when it is first needed, so that a state can be its first request.

    Args:
        service: The session.
        probe: Data whose loss is noted with a saved state, and compared when it is restored.
    """

    def __init__(self, service: TinkerService, probe: Sequence[Datum] = ()) -> None:
        self._service = service
        self._probe = list(probe)
        self._training: Any = None
        self._sampling: Any = None
        self._closed = False

    # Training.

    def forward_backward(
        self, data: Sequence[Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> "Future[ForwardBackwardResult]":
        """See `TrainingClient.forward_backward`. The loss is worked out here: services don't agree on what they tell."""
        return self._sent(
            lambda: self._model().forward_backward(
                [_sent_datum(self._service.sdk, datum, loss_fn) for datum in _required(data, loss_fn)],
                loss_fn,
                dict(loss_fn_config) if loss_fn_config else None,
            ),
            lambda found: _named_result(data, found, loss_fn, loss_fn_config or {}),
            f"forward_backward of {len(data)} data",
        )

    def forward_backward_custom(self, data: Sequence[Datum], loss_fn: CustomLoss) -> "Future[ForwardBackwardResult]":
        """See `TrainingClient.forward_backward_custom`; two passes there, with the loss in between worked out here."""
        told: dict[str, Any] = {}

        def loss(_: Any, logprobs: Sequence[Any]) -> tuple[Any, Mapping[str, float]]:
            value, metrics = loss_fn(data, logprobs)
            told.update(
                loss=float(value.detach()),
                metrics=dict(metrics),
                logprobs=[row.detach().tolist() for row in logprobs],
            )
            return value, {}

        def send() -> Any:
            model = self._model()
            sent = [_sent_datum(self._service.sdk, datum, "cross_entropy") for datum in _required(data, "custom")]
            return self._service.call(lambda: model.forward_backward_custom(sent, loss), "a custom loss")

        def read(_: Any) -> ForwardBackwardResult:
            return ForwardBackwardResult({"loss:sum": told["loss"], **told["metrics"]}, told["logprobs"])

        return self._sent(send, read, f"forward_backward_custom of {len(data)} data")

    def optim_step(self, params: AdamParams) -> "Future[Mapping[str, float]]":
        """See `TrainingClient.optim_step`; the gradient norm where the service tells it."""
        self._sampling = None
        return self._sent(
            lambda: self._model().optim_step(self._service.sdk.AdamParams(**asdict(params))), _moved, "optim_step"
        )

    # Asking.

    def sample(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> "Future[list[SampledSequence]]":
        """See `TrainingClient.sample`."""
        return self._sent(
            lambda: ask_samples(self._service, self._sampler(), prompt, num_samples, params),
            _sequences,
            "samples",
        )

    def compute_logprobs(self, tokens: ModelInput) -> "Future[list[float | None]]":
        """See `TrainingClient.compute_logprobs`."""
        return self._sent(
            lambda: self._sampler().compute_logprobs(_input(self._service.sdk, tokens)),
            lambda found: _aligned(found, len(tokens.tokens)),
            "log-probabilities",
        )

    # State.

    def save_state(self, folder: Path) -> "Future[tuple[ExternalState, ...]]":
        """See `TrainingClient.save_state`: the adapter comes here, optimiser and random state stay there."""
        return self._done(lambda: self._save(folder))

    def load_state(self, folder: Path, *, weights_only: bool = False) -> "Future[None]":
        """See `TrainingClient.load_state`.

        Raises, in its future:
            StateLost: The service keeps it no more, or gives another loss on the probe than when it was saved.
        """
        return self._done(lambda: self._load(folder, weights_only=weights_only))

    def close(self) -> None:
        """See `TrainingClient.close`."""
        training, self._training, self._sampling, self._closed = self._training, None, None, True
        if training is not None:
            self._service.unload(training)

    def _save(self, folder: Path) -> tuple[ExternalState, ...]:
        settings, model = self._service.settings, self._model()
        name = f"{settings.label or 'kitchen'}-{uuid.uuid4().hex[:12]}"
        kept_s = None if settings.keep_days is None else int(settings.keep_days * 86400)
        saved = self._service.wait(model.save_state(name, ttl_seconds=kept_s).result, "save_state")
        served = self._service.wait(
            model.save_weights_for_sampler(name, ttl_seconds=kept_s).result, "save_weights_for_sampler"
        )
        loss = self._probed()
        folder.mkdir(parents=True, exist_ok=True)
        self._service.download(served.path, folder)
        expires = "" if kept_s is None else (datetime.now(UTC) + timedelta(seconds=kept_s)).isoformat()
        state = ExternalState(uri=saved.path, expires=expires, probe_loss=loss)
        record = {"base_model": settings.base_model, "service": settings.service, **asdict(state)}
        (folder / STATE_FILE).write_bytes(canonical_json(record))
        return (state,)

    def _load(self, folder: Path, *, weights_only: bool) -> None:
        if not (folder / STATE_FILE).is_file():
            raise BackendError(f"there is no saved state in {folder}", where="backend tinker")
        saved = json.loads((folder / STATE_FILE).read_bytes())
        if saved["service"] != self._service.settings.service:
            # Another service would say that it has no such state, and sound checkpoints would be given up for it.
            raise ConfigError(
                f"is {self._service.settings.service}, and this run's states are kept by {saved['service']}",
                where="trainer.backend.tinker.base_url",
                fix="name that one again; or start anew from the weights: continue_from with carry: weights",
            )
        if saved["expires"] and datetime.fromisoformat(saved["expires"]) < datetime.now(UTC):
            raise StateLost(f"the state {saved['uri']} was kept until {saved['expires']}", where="backend tinker")
        self._give_back()
        self._training = self._service.train(saved["uri"], optimizer=not weights_only)
        found = self._probed()
        known = saved["probe_loss"]
        if found is not None and known is not None and not abs(found - known) <= PROBE_TOLERANCE:
            raise StateLost(
                f"the state {saved['uri']} has a probe loss of {found:.6g}, and had {known:.6g} when it was saved",
                where="backend tinker",
            )

    def _probed(self) -> float | None:
        """Mean loss per trained token of the probe, in nats; None where there is none."""
        tokens = sum(sum(datum.loss_fn_inputs["weights"]) for datum in self._probe)
        if not tokens:
            return None
        sent = [_sent_datum(self._service.sdk, datum, "cross_entropy") for datum in self._probe]
        found = self._service.wait(self._model().forward(sent, "cross_entropy").result, "a forward pass")
        return _named_result(self._probe, found, "cross_entropy", {}).metrics["loss:sum"] / tokens

    def _give_back(self) -> None:
        if self._training is not None:
            self._service.unload(self._training)
        self._training = self._sampling = None

    def _model(self) -> Any:
        if self._closed:
            raise BackendError("the client is closed", where="backend tinker")
        if self._training is None:
            self._training = self._service.train()
        return self._training

    def _sampler(self) -> Any:
        """Samples by the weights of this moment."""
        if self._sampling is None:
            model = self._model()
            self._sampling = self._service.call(model.save_weights_and_get_sampling_client, "weights to sample by")
        return self._sampling

    def _sent(self, send: Callable[[], Any], read: Callable[[Any], Any], what: str) -> "Future[Any]":
        try:
            return _Answer(self._service, send(), read, what)
        except Exception as error:  # noqa: BLE001  (a future carries whatever went wrong)
            return _failed(error)

    def _done(self, work: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001  (a future carries whatever went wrong)
            return _failed(error)
        return future


class TinkerBaseClient:
    """A model of the service that is only read: samples and log-probabilities."""

    def __init__(self, service: TinkerService, base_model: str) -> None:
        self._service = service
        self._sampler = service.base_sampler(base_model)

    def sample(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> "Future[list[SampledSequence]]":
        """See `TrainingClient.sample`."""
        sent = ask_samples(self._service, self._sampler, prompt, num_samples, params)
        return _Answer(self._service, sent, _sequences, "samples")

    def compute_logprobs(self, tokens: ModelInput) -> "Future[list[float | None]]":
        """See `TrainingClient.compute_logprobs`."""
        sent = self._sampler.compute_logprobs(_input(self._service.sdk, tokens))
        return _Answer(self._service, sent, lambda found: _aligned(found, len(tokens.tokens)), "log-probabilities")

    def close(self) -> None:
        """See `TrainingClient.close`."""


def ask_samples(
    service: TinkerService, sampler: Any, prompt: ModelInput, num_samples: int, params: SamplingParams
) -> Any:
    """Ask for continuations of a prompt; each prompt draws numbers of its own from one seed."""
    asked = service.sdk.SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        stop=list(params.stop) or None,
        seed=derived_seed(params.seed, *prompt.tokens) % 2**31,
    )
    return sampler.sample(_input(service.sdk, prompt), num_samples, asked)


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


def _input(sdk: Any, tokens: ModelInput) -> Any:
    return sdk.ModelInput.from_ints(list(tokens.tokens))


def _sent_datum(sdk: Any, datum: Datum, loss_fn: str) -> Any:
    inputs = {
        name: sdk.TensorData(data=list(values), dtype="int64" if name == "target_tokens" else "float32")
        for name, values in datum.loss_fn_inputs.items()
        if not (name == "weights" and loss_fn in _SAMPLED)
        and not (name not in ("target_tokens", "weights") and loss_fn == "cross_entropy")
    }
    return sdk.Datum(model_input=_input(sdk, datum.model_input), loss_fn_inputs=inputs)


def _required(data: Sequence[Datum], loss_fn: str) -> Sequence[Datum]:
    """The data, refused here where a service would answer with a poisoned client."""
    if loss_fn != "custom" and loss_fn not in LOSSES:
        raise BackendError(f"there is no loss {loss_fn!r}", where="backend tinker", fix=f"one of {', '.join(LOSSES)}")
    if not data:
        raise BackendError("the batch is empty", where="backend tinker", fix="give it at least one datum")
    for datum in data:
        given, length = datum.loss_fn_inputs, len(datum.model_input.tokens)
        needed = ("target_tokens", *(("logprobs", "advantages") if loss_fn in {*_SAMPLED, "dro"} else ()))
        for name in needed:
            if name not in given:
                raise BackendError(f"a datum has no {name}", where="backend tinker", fix=f"give {name}, one a token")
        for name, values in given.items():
            if len(values) != length:
                raise BackendError(
                    f"{name} has length {len(values)}, and the input {length}",
                    where="backend tinker",
                    fix="one value for each token of the input",
                )
        weights = given.get("weights", [])
        if loss_fn in _SAMPLED and any(a and not w for a, w in zip(given["advantages"], weights, strict=False)):
            raise BackendError(
                "a token of weight 0 has an advantage", where="backend tinker", fix="give it the advantage 0"
            )
    return data


def _named_result(
    data: Sequence[Datum], found: Any, loss_fn: str, config: Mapping[str, float]
) -> ForwardBackwardResult:
    """The answer of a pass under a named loss."""
    import torch

    from kitchen_resources.training.local.losses import LOSSES as FORMULAS

    logprobs = [
        list(map(float, output["logprobs"].tolist()))[: len(datum.model_input.tokens)]
        for output, datum in zip(found.loss_fn_outputs, data, strict=True)
    ]
    loss_of, _, settings = FORMULAS[loss_fn]
    total = 0.0
    for row, datum in zip(logprobs, data, strict=True):
        inputs = {name: torch.tensor(list(values)) for name, values in datum.loss_fn_inputs.items()}
        inputs.setdefault("weights", torch.ones(len(row)))
        total += float(loss_of(torch.tensor(row), inputs, {**settings, **config}))
    return ForwardBackwardResult({"loss:sum": total}, logprobs)


def _moved(found: Any) -> dict[str, float]:
    told = getattr(found, "metrics", None) or {}
    norms = [float(value) for name, value in told.items() if "grad_norm" in name]
    return {"grad_norm": norms[0]} if norms else {}


def _sequences(found: Any) -> list[SampledSequence]:
    return [
        SampledSequence(
            tokens=list(map(int, sequence.tokens)),
            logprobs=list(map(float, sequence.logprobs or [])),
            stop_reason="stop" if str(sequence.stop_reason) == "stop" else "length",
        )
        for sequence in found.sequences
    ]


def _aligned(found: Sequence[float | None], length: int) -> list[float | None]:
    """One log-probability a token, the first one's unknown: services leave it out, give null, or a number."""
    known = [None if value is None or math.isnan(value) else float(value) for value in found]
    if length == 0:
        return []
    return [None, *known[len(known) - (length - 1) :]] if length > 1 else [None]


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


def _failed(error: Exception) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
