"""Primitives on a service that speaks the Tinker API, through an SDK of it.

After a failed request a training client takes no further ones, so a client is made for an attempt and never
mended. A state is only ever restored into a new one, as servers want it.
"""

import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import BackendError, ConfigError, StateLost
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
from kitchen_resources.training.remote.asking import Service

ALPHA = 32
"""Scale of an adapter at every such service; a recipe can't choose it."""

_SAMPLED = frozenset({"importance_sampling", "ppo", "cispo"})
"""Losses whose data have advantages and no weights: a token without advantage adds no gradient."""


class _Answer(Future):  # type: ignore[type-arg]
    """A future of the SDK, with a deadline, and its result in the kitchen's types."""

    def __init__(self, service: Service, sent: Any, read: Callable[[Any], Any], what: str) -> None:
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


class RemoteTrainingClient:
    """A `TrainingClient` at a service.

    The model is made there when it is first needed, so that a state can be its first request.

    Args:
        service: The session.
        probe: Data whose loss is noted with a saved state, and compared when it is restored.
    """

    def __init__(self, service: Service, probe: Sequence[Datum] = ()) -> None:
        self._service = service
        self._probe = list(probe)
        self._training: Any = None
        self._sampling: Any = None
        self._closed = False

    @property
    def _where(self) -> str:
        return f"backend {self._service.name}"

    @property
    def _state_file(self) -> str:
        """What is known of a state that the service keeps."""
        return f"{self._service.name}.json"

    # Training.

    def forward_backward(
        self, data: Sequence[Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> "Future[ForwardBackwardResult]":
        """See `TrainingClient.forward_backward`. The loss is worked out here: services don't agree on what they tell."""
        return self._sent(
            lambda: self._model().forward_backward(
                [_sent_datum(self._service.sdk, datum, loss_fn) for datum in _required(data, loss_fn, self._where)],
                loss_fn,
                dict(loss_fn_config) if loss_fn_config else None,
            ),
            lambda found: _named_result(
                data, found, loss_fn, loss_fn_config or {}, alone=self._service.tells_loss_alone
            ),
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
            sent = [
                _sent_datum(self._service.sdk, datum, "cross_entropy")
                for datum in _required(data, "custom", self._where)
            ]
            return self._service.call(lambda: model.forward_backward_custom(sent, loss), "a custom loss")

        def read(_: Any) -> ForwardBackwardResult:
            return ForwardBackwardResult({"loss:sum": told["loss"], **told["metrics"]}, told["logprobs"])

        return self._sent(send, read, f"forward_backward_custom of {len(data)} data")

    def optim_step(self, params: AdamParams) -> "Future[Mapping[str, float]]":
        """See `TrainingClient.optim_step`; the gradient norm where the service tells it."""
        self._sampling = None
        return self._sent(lambda: self._model().optim_step(self._service.adam(params)), _moved, "optim_step")

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
        (folder / self._state_file).write_bytes(canonical_json(record))
        return (state,)

    def _load(self, folder: Path, *, weights_only: bool) -> None:
        if not (folder / self._state_file).is_file():
            raise BackendError(f"there is no saved state in {folder}", where=self._where)
        saved = json.loads((folder / self._state_file).read_bytes())
        if saved["service"] != self._service.settings.service:
            # Another service would say that it has no such state, and sound checkpoints would be given up for it.
            raise ConfigError(
                f"is {self._service.settings.service}, and this run's states are kept by {saved['service']}",
                where=f"trainer.backend.{self._service.name}.base_url",
                fix="name that one again; or start anew from the weights: continue_from with carry: weights",
            )
        if saved["expires"] and datetime.fromisoformat(saved["expires"]) < datetime.now(UTC):
            raise StateLost(f"the state {saved['uri']} was kept until {saved['expires']}", where=self._where)
        self._give_back()
        self._training = self._service.train(saved["uri"], optimizer=not weights_only)
        found = self._probed()
        known = saved["probe_loss"]
        if found is not None and known is not None and not abs(found - known) <= self._service.probe_tolerance:
            raise StateLost(
                f"the state {saved['uri']} has a probe loss of {found:.6g}, and had {known:.6g} when it was saved",
                where=self._where,
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
            raise BackendError("the client is closed", where=self._where)
        if self._training is None:
            self._training = self._service.train()
        return self._training

    def _sampler(self) -> Any:
        """Samples by the weights of this moment."""
        if self._sampling is None:
            self._sampling = self._service.sampler(self._model())
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


class RemoteBaseClient:
    """A model of the service that is only read: samples and log-probabilities."""

    def __init__(self, service: Service, base_model: str) -> None:
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


def ask_samples(service: Service, sampler: Any, prompt: ModelInput, num_samples: int, params: SamplingParams) -> Any:
    """Ask for continuations of a prompt; each prompt draws numbers of its own from one seed."""
    asked = service.sdk.SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        stop=list(params.stop) or None,
        seed=derived_seed(params.seed, *prompt.tokens) % 2**31,
    )
    return sampler.sample(_input(service.sdk, prompt), num_samples, asked)


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


def _required(data: Sequence[Datum], loss_fn: str, where: str) -> Sequence[Datum]:
    """The data, refused here where a service would answer with a poisoned client."""
    if loss_fn != "custom" and loss_fn not in LOSSES:
        raise BackendError(f"there is no loss {loss_fn!r}", where=where, fix=f"one of {', '.join(LOSSES)}")
    if not data:
        raise BackendError("the batch is empty", where=where, fix="give it at least one datum")
    for datum in data:
        given, length = datum.loss_fn_inputs, len(datum.model_input.tokens)
        needed = ("target_tokens", *(("logprobs", "advantages") if loss_fn in {*_SAMPLED, "dro"} else ()))
        for name in needed:
            if name not in given:
                raise BackendError(f"a datum has no {name}", where=where, fix=f"give {name}, one a token")
        for name, values in given.items():
            if len(values) != length:
                raise BackendError(
                    f"{name} has length {len(values)}, and the input {length}",
                    where=where,
                    fix="one value for each token of the input",
                )
        weights = given.get("weights", [])
        if loss_fn in _SAMPLED and any(a and not w for a, w in zip(given["advantages"], weights, strict=False)):
            raise BackendError("a token of weight 0 has an advantage", where=where, fix="give it the advantage 0")
    return data


def _named_result(
    data: Sequence[Datum], found: Any, loss_fn: str, config: Mapping[str, float], *, alone: bool = False
) -> ForwardBackwardResult:
    """The answer of a pass under a named loss; `alone` where it may be no more than that."""
    import torch

    from kitchen_resources.training.local.losses import LOSSES as FORMULAS

    outputs = list(found.loss_fn_outputs)
    if len(outputs) != len(data) or not all("logprobs" in output for output in outputs):
        # Some tell the loss of a batch alone.
        if not alone or "loss:sum" not in found.metrics:
            raise BackendError("a pass is answered without log-probabilities for each of its data")
        return ForwardBackwardResult({"loss:sum": float(found.metrics["loss:sum"])}, [])
    logprobs = [
        list(map(float, output["logprobs"].tolist()))[: len(datum.model_input.tokens)]
        for output, datum in zip(outputs, data, strict=True)
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


def _failed(error: Exception) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
