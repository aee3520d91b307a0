"""Primitives on a model in this process."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import BackendError, KitchenError
from kitchen_resources.training.local.losses import LOSSES
from kitchen_resources.training.local.sampler import SampleRequest, sample
from kitchen_resources.training.port import (
    AdamParams,
    CustomLoss,
    Datum,
    ExternalState,
    ForwardBackwardResult,
    ModelInput,
    SampledSequence,
    SamplingParams,
)
from kitchen_resources.training.pytorch.failures import is_out_of_memory

if TYPE_CHECKING:
    import torch

COUNTERS = "client.json"
RNG = "client_rng.safetensors"


@dataclass(frozen=True)
class LocalSettings:
    """How a client works.

    Attributes:
        seed: Seed of dropout.
        pad_token_id: Filler of short rows.
        rows_at_a_time: Rows of one forward pass of training.
        samples_at_a_time: Continuations, or rows whose log-probabilities are asked for, in one batch.
        bf16: Whether arithmetic is in bf16, beside the weights' own type.
    """

    seed: int
    pad_token_id: int
    rows_at_a_time: int = 8
    samples_at_a_time: int = 64
    bf16: bool = False


class _Waiting(Future):  # type: ignore[type-arg]
    """A request that is done with its like, in one batch, as soon as one of them is waited for.

    `concurrent.futures.wait` doesn't ask for it: wait with `result()`.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> Any:
        self._work()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._work()
        return super().exception(timeout)


class LocalTrainingClient:
    """A `TrainingClient` on a transformers model, whole or with a peft adapter.

    Everything is done in the thread that asks, in the order that it is asked; but samples and log-probabilities wait for
    each other, so that those of many prompts are one batch. Dropout draws from a generator that belongs to the client and
    is part of its state.

    Args:
        model: The model; its trained weights are those that require a gradient.
        settings: How to work.
    """

    def __init__(self, model: Any, settings: LocalSettings) -> None:
        import torch
        from trl.trainer import add_fused_lm_head

        self._model = model
        self._settings = settings
        # Log-probabilities of targets without the logits of the whole vocabulary.
        add_fused_lm_head(model.get_base_model() if hasattr(model, "peft_config") else model)
        self._trained = [weight for weight in model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(_groups(model), lr=0.0)
        self._rng = _first_rng(settings.seed)
        self._steps = 0
        self._closed = False
        self._asked: list[tuple[Any, _Waiting]] = []

    # Training.

    def forward_backward(
        self, data: Sequence[Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> "Future[ForwardBackwardResult]":
        """See `TrainingClient.forward_backward`."""
        return self._now(lambda: self._named(data, loss_fn, loss_fn_config or {}))

    def forward_backward_custom(self, data: Sequence[Datum], loss_fn: CustomLoss) -> "Future[ForwardBackwardResult]":
        """See `TrainingClient.forward_backward_custom`."""
        return self._now(lambda: self._custom(data, loss_fn))

    def optim_step(self, params: AdamParams) -> "Future[Mapping[str, float]]":
        """See `TrainingClient.optim_step`; the gradient norm is that before it is cut."""
        return self._now(lambda: self._step(params))

    def _named(self, data: Sequence[Datum], name: str, config: Mapping[str, float]) -> ForwardBackwardResult:
        if name not in LOSSES:
            raise _refused(f"there is no loss {name!r}", f"one of {', '.join(LOSSES)}")
        loss_of, needed, settings = LOSSES[name]
        unknown = sorted(set(config) - set(settings))
        if unknown:
            raise _refused(
                f"the loss {name} has no setting {unknown[0]!r}",
                f"one of {', '.join(settings)}" if settings else "none",
            )
        import torch

        _require_whole(data, needed)
        total, logprobs = 0.0, []
        with self._drawing():
            for rows in self._micro_batches(data):
                found, inputs = self._target_logprobs(rows)
                loss = loss_of(found, inputs, {**settings, **config})
                torch.autograd.backward(loss)
                total += float(loss.detach())
                logprobs += _rows_of(found, rows)
        return ForwardBackwardResult({"loss:sum": total}, logprobs)

    def _custom(self, data: Sequence[Datum], loss_fn: CustomLoss) -> ForwardBackwardResult:
        import torch

        _require_whole(data, ())
        batches = list(self._micro_batches(data))
        with self._drawing():
            if len(batches) == 1:
                found, _ = self._target_logprobs(batches[0])
                logprobs = [row[: len(d.model_input.tokens)] for row, d in zip(found, data, strict=True)]
                loss, metrics = loss_fn(data, logprobs)
                loss.backward()
                return ForwardBackwardResult({"loss:sum": float(loss.detach()), **metrics}, _rows_of(found, data))
            # The loss may tie any rows together: first the log-probabilities of all, then their gradients by parts.
            drawn = torch.random.get_rng_state()
            with torch.no_grad():
                logprobs = [
                    row[: len(d.model_input.tokens)].clone().requires_grad_()
                    for rows in batches
                    for row, d in zip(self._target_logprobs(rows)[0], rows, strict=True)
                ]
            with torch.enable_grad():
                loss, metrics = loss_fn(data, logprobs)
                loss.backward()
            torch.random.set_rng_state(drawn)
            done = 0
            for rows in batches:
                found, _ = self._target_logprobs(rows)
                gradient = torch.zeros_like(found)
                for place, leaf in enumerate(logprobs[done : done + len(rows)]):
                    if leaf.grad is not None:
                        gradient[place, : len(leaf)] = leaf.grad
                torch.autograd.backward(found, gradient)
                done += len(rows)
        return ForwardBackwardResult(
            {"loss:sum": float(loss.detach()), **metrics}, [row.detach().tolist() for row in logprobs]
        )

    def _step(self, params: AdamParams) -> dict[str, float]:
        import torch

        limit = params.grad_clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self._trained, limit)
        for group in self._optimizer.param_groups:
            group.update(lr=params.learning_rate, betas=(params.beta1, params.beta2), eps=params.eps)
            group["weight_decay"] = params.weight_decay if group["decays"] else 0.0
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._steps += 1
        return {"grad_norm": float(norm), "step": float(self._steps)}

    # Asking.

    def sample(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> "Future[list[SampledSequence]]":
        """See `TrainingClient.sample`."""
        if not prompt.tokens:
            return self._now(lambda: _raise(_refused("the prompt is empty", "give it at least one token")))
        return self._later(SampleRequest(prompt, num_samples, params))

    def compute_logprobs(self, tokens: ModelInput) -> "Future[list[float | None]]":
        """See `TrainingClient.compute_logprobs`; under the weights alone, without dropout."""
        return self._later(tokens)

    def _answer(self) -> None:
        """Do what waits, in one batch of each kind."""
        import torch

        waiting, self._asked = self._asked, []
        if not waiting:
            return
        try:
            with torch.no_grad(), self._evaluating():
                samples = [(asked, future) for asked, future in waiting if isinstance(asked, SampleRequest)]
                made = sample(
                    self._model,
                    [asked for asked, _ in samples],
                    pad_token_id=self._settings.pad_token_id,
                    rows_at_a_time=self._settings.samples_at_a_time,
                )
                for (_, future), sequences in zip(samples, made, strict=True):
                    future.set_result(sequences)
                inputs = [(asked, future) for asked, future in waiting if isinstance(asked, ModelInput)]
                for (_, future), logprobs in zip(inputs, self._logprobs([a for a, _ in inputs]), strict=True):
                    future.set_result(logprobs)
        except Exception as error:  # noqa: BLE001  (a future carries whatever went wrong)
            for _, future in waiting:
                if not future.done():
                    future.set_exception(_as_backend_error(error))

    def _logprobs(self, inputs: Sequence[ModelInput]) -> list[list[float | None]]:
        found: list[list[float | None]] = [[None] * min(1, len(asked.tokens)) for asked in inputs]
        long = sorted((i for i, a in enumerate(inputs) if len(a.tokens) > 1), key=lambda i: len(inputs[i].tokens))
        for start in range(0, len(long), self._settings.samples_at_a_time):
            indices = long[start : start + self._settings.samples_at_a_time]
            rows = [
                Datum(ModelInput(inputs[i].tokens[:-1]), {"target_tokens": inputs[i].tokens[1:]}) for i in indices
            ]
            for index, row in zip(indices, _rows_of(self._target_logprobs(rows)[0], rows), strict=True):
                found[index] += row
        return found

    # State.

    def save_state(self, folder: Path) -> "Future[tuple[ExternalState, ...]]":
        """See `TrainingClient.save_state`."""
        return self._now(lambda: self._save(folder))

    def load_state(self, folder: Path, *, weights_only: bool = False) -> "Future[None]":
        """See `TrainingClient.load_state`; gradients that were added are dropped."""
        return self._now(lambda: self._load(folder, weights_only=weights_only))

    def close(self) -> None:
        """See `TrainingClient.close`."""
        if self._closed:
            return
        self._asked = []
        del self._model, self._optimizer
        self._closed = True
        self._trained = []

    def _save(self, folder: Path) -> tuple[ExternalState, ...]:
        from safetensors.torch import save_file

        from kitchen_resources.training.pytorch.state import write_optimizer, write_weights

        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder, self._model)
        write_optimizer(folder, self._optimizer.state_dict())
        save_file(self._rng, folder / RNG)
        (folder / COUNTERS).write_bytes(canonical_json({"steps": self._steps}))
        return ()

    def _load(self, folder: Path, *, weights_only: bool) -> None:
        from safetensors.torch import load_file

        from kitchen_resources.training.pytorch.state import load_weights, read_optimizer

        if not (folder / COUNTERS).is_file():
            raise _refused(f"there is no saved state in {folder}", "name a folder that save_state wrote")
        load_weights(folder, self._model)
        if weights_only:
            return
        self._optimizer.load_state_dict(read_optimizer(folder))
        self._optimizer.zero_grad(set_to_none=True)
        self._rng = load_file(folder / RNG)
        self._steps = json.loads((folder / COUNTERS).read_bytes())["steps"]

    # Passes.

    def _micro_batches(self, data: Sequence[Datum]) -> Iterator[Sequence[Datum]]:
        size = self._settings.rows_at_a_time
        for start in range(0, len(data), size):
            yield data[start : start + size]

    def _target_logprobs(self, rows: Sequence[Datum]) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
        """Log-probabilities of the targets, shape (rows, T), and the rows' inputs; 0 behind a row's end."""
        import torch

        device = self._model.device
        longest = max(len(row.model_input.tokens) for row in rows)

        def padded(values: Sequence[Sequence[float]], fill: float, dtype: "torch.dtype") -> "torch.Tensor":
            return torch.tensor(
                [[*row, *[fill] * (longest - len(row))] for row in values], dtype=dtype, device=device
            )

        tokens = [row.model_input.tokens for row in rows]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._settings.bf16):
            found = self._model(
                input_ids=padded(tokens, self._settings.pad_token_id, torch.int64),
                attention_mask=padded([[1] * len(row) for row in tokens], 0, torch.int64),
                shift_labels=padded([row.loss_fn_inputs["target_tokens"] for row in rows], -100, torch.int64),
                fused_lm_head=True,
            ).log_probs.float()
        ones = padded([[1.0] * len(row) for row in tokens], 0.0, torch.float32)
        names = {name for row in rows for name in row.loss_fn_inputs} - {"target_tokens"}
        inputs = {
            name: padded(
                [row.loss_fn_inputs.get(name, [1.0] * len(row.model_input.tokens)) for row in rows],
                0.0,
                torch.float32,
            )
            for name in sorted(names)
        }
        return found, {"weights": ones, **inputs}

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Random numbers of the client's own, and the process's put back."""
        import torch

        before = _rng_state()
        _set_rng_state(self._rng)
        try:
            with torch.enable_grad():
                yield
            self._rng = _rng_state()
        finally:
            _set_rng_state(before)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self._model.eval()
        try:
            yield
        finally:
            self._model.train()

    # Futures.

    def _now(self, work: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        # What was asked before is asked of the weights as they are now.
        self._answer()
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001  (a future carries whatever went wrong)
            future.set_exception(_as_backend_error(error))
        return future

    def _later(self, asked: Any) -> "Future[Any]":
        future = _Waiting(self._answer)
        self._asked.append((asked, future))
        return future


def _groups(model: Any) -> list[dict[str, Any]]:
    """The trained weights, those that decay and those that don't, as transformers' Trainer tells them apart."""
    from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS
    from transformers.trainer_pt_utils import get_parameter_names

    patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decaying = set(get_parameter_names(model, ALL_LAYERNORM_LAYERS, patterns))
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for name, weight in trained if (name in decaying) is decays], "decays": decays}
        for decays in (True, False)
    ]
    return [group for group in groups if group["params"]]


def _require_whole(data: Sequence[Datum], needed: Sequence[str]) -> None:
    """Refuse data that a loss can't be worked out of."""
    if not data:
        raise _refused("the batch is empty", "give it at least one datum")
    for datum in data:
        length = len(datum.model_input.tokens)
        for name in ("target_tokens", *needed):
            if name not in datum.loss_fn_inputs and name != "weights":
                fix = "give tokens 1 … T as target_tokens" if name == "target_tokens" else f"give {name}, one a token"
                raise _refused(f"a datum has no {name}", fix)
        for name, values in datum.loss_fn_inputs.items():
            if len(values) != length:
                raise _refused(
                    f"{name} has length {len(values)}, and the input {length}",
                    "one value for each token of the input",
                )


def _rows_of(logprobs: "torch.Tensor", rows: Sequence[Datum]) -> list[list[float]]:
    """Each row's own log-probabilities, without what fills it up."""
    values = logprobs.detach().cpu().tolist()
    return [row[: len(datum.model_input.tokens)] for row, datum in zip(values, rows, strict=True)]


def _first_rng(seed: int) -> "dict[str, torch.Tensor]":
    """The random state of a seed; the process's own is left alone."""
    import torch

    states = {"cpu": torch.Generator("cpu").manual_seed(seed).get_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.Generator("cuda").manual_seed(seed).get_state()
    return states


def _rng_state() -> "dict[str, torch.Tensor]":
    import torch

    states = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_rng_state(states: "Mapping[str, torch.Tensor]") -> None:
    import torch

    torch.random.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _refused(what: str, fix: str) -> BackendError:
    return BackendError(what, where="backend local", fix=fix)


def _raise(error: Exception) -> Any:
    raise error


def _as_backend_error(error: Exception) -> Exception:
    # The session says what to lower.
    if isinstance(error, KitchenError) or is_out_of_memory(error):
        return error
    return BackendError(f"{type(error).__name__}: {error}", where="backend local")
