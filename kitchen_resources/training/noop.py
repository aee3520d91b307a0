"""The `noop` backend: weightless, instant, deterministic. Every number it makes is simulated, and says so."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kitchen_resources.digests import canonical_json, digest_bytes, digest_json
from kitchen_resources.errors import BackendError, CapabilityError
from kitchen_resources.formulas.batches import RowOrder
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.plan import learning_rate_at, planned_rows
from kitchen_resources.training.port import (
    LOSSES,
    AdamParams,
    BaseModel,
    Capabilities,
    CheckpointDraft,
    CustomLoss,
    Datum,
    EpochResult,
    ExternalState,
    ForwardBackwardResult,
    LocalCheckpoint,
    ModelInput,
    Resolution,
    SampledSequence,
    SamplingParams,
    Session,
    StepMetrics,
    TrainingEvents,
    TrainingJob,
)

ALGORITHM_VERSION = 1
STATE_FILE = "simulated.json"
ROW_ORDER: RowOrder = "digest"


class NoopTrainer:
    """A `Trainer` without weights: it walks through the plan, so that everything around training can be tried."""

    def capabilities(self) -> Capabilities:
        """See `Trainer.capabilities`."""
        methods = frozenset({"supervised", "preference", "reinforcement", "distillation"})
        return Capabilities(
            backend="noop",
            methods=methods,
            resume="exact",
            step_checkpoints=methods,
            fractional_weights=True,
            quantization=frozenset({"none", "8bit", "4bit"}),
            simulated=True,
            row_order=ROW_ORDER,
        )

    def check(self, recipe: Recipe) -> list[Problem]:
        """See `Trainer.check`."""
        return []

    def resolve(
        self, recipe: Recipe, base: BaseModel, models: Mapping[str, BaseModel] = MappingProxyType({})
    ) -> Resolution:
        """See `Trainer.resolve`."""
        return Resolution(
            algorithm={"noop": ALGORITHM_VERSION},
            values={"precision": "simulated", "optimizer": recipe.optimizer},
            threads=1,
            device="none",
            environment={"noop": ALGORITHM_VERSION},
            memory_bytes=0,
            state_bytes=1024,
        )

    def open(self, job: TrainingJob) -> Session:
        """See `Trainer.open`."""
        return NoopSession(job)


class NoopSession:
    """A `Session` whose weights are a running digest of the rows that it was given."""

    def __init__(self, job: TrainingJob) -> None:
        import pyarrow.parquet

        column = "row_ids" if job.data.packed else "row_id"
        rows = pyarrow.parquet.read_table(job.data.path)
        self._ids = [value if isinstance(value, list) else [value] for value in rows[column].to_pylist()]
        self._tokens = _trained_tokens(rows)
        self._job = job

    def train_epoch(self, epoch: int, parent: LocalCheckpoint | None, events: TrainingEvents) -> EpochResult:
        """See `Session.train_epoch`."""
        job, plan = self._job, self._job.plan
        state = _read_state(parent, job)
        first = (epoch - 1) * plan.steps_per_epoch
        rows = [list(step) for step in events.earlier_rows()]
        steps = list(events.earlier_steps())
        done = 0
        checkpoint: LocalCheckpoint | None = None
        for indices in _plan_of_epoch(job, epoch)[len(rows) :]:
            rows.append([row_id for index in indices for row_id in self._ids[index]])
            state = digest_bytes(f"{state}{rows[-1]}".encode())
            step = first + len(rows)
            steps.append(self._metrics(epoch, step, state, sum(self._tokens[index] for index in indices)))
            events.step(steps[-1])
            done += 1
            every = job.recipe.checkpoint_steps
            due = step == plan.last_step(epoch) or bool(every and step % every == 0)
            if due or events.stopping(exact=job.recipe.draws(1) is None):
                checkpoint = events.checkpoint(self._draft(epoch, step, state, rows, steps))
        if checkpoint is None:
            raise CapabilityError("has nothing left to do in this epoch", where=f"epoch {epoch}")
        return EpochResult(checkpoint, done)

    def export(self, checkpoint: LocalCheckpoint, target: Path, *, merged: bool) -> None:
        """Write the simulated state; no model can be loaded from it."""
        target.mkdir(parents=True)
        (target / STATE_FILE).write_bytes((checkpoint.folder / STATE_FILE).read_bytes())

    def close(self) -> None:
        """See `Session.close`."""

    def _metrics(self, epoch: int, step: int, state: str, tokens: int) -> StepMetrics:
        recipe, plan = self._job.recipe, self._job.plan
        rate = learning_rate_at(recipe, plan, step)
        noise = int(state[:4], 16) / 0xFFFF
        loss = 5.0 * (1 - step / (plan.total_steps + 1)) + 0.1 * noise
        return StepMetrics(
            epoch, step, plan.total_steps, loss, rate, 1.0 + noise, tokens, 0.001, 0, 0, {"simulated": 1.0}
        )

    def _draft(
        self, epoch: int, step: int, state: str, rows: list[list[int]], steps: list[StepMetrics]
    ) -> CheckpointDraft:
        folder = self._job.scratch / f"state-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / STATE_FILE
        path.unlink(missing_ok=True)
        path.write_bytes(canonical_json({"state": state, "step": step, "simulated": True}))
        tokens = sum(s.tokens for s in steps)
        return CheckpointDraft(
            folder=folder,
            state_files=[STATE_FILE],
            other_files=[],
            epoch=epoch,
            global_step=step,
            steps_into_epoch=len(rows),
            epoch_complete=step == self._job.plan.last_step(epoch),
            row_ids=[list(step_rows) for step_rows in rows],
            metrics={
                "loss": sum(s.loss for s in steps) / len(steps),
                "last_loss": steps[-1].loss,
                "learning_rate": steps[-1].learning_rate,
                "tokens": float(tokens),
                "seconds": sum(s.seconds for s in steps),
                "tokens_per_second": tokens / sum(s.seconds for s in steps),
            },
            steps=list(steps),
        )


def _read_state(parent: LocalCheckpoint | None, job: TrainingJob) -> str:
    if parent is None:
        return digest_bytes(f"{job.fingerprint}{job.recipe.seed}".encode())
    state: str = json.loads((parent.folder / STATE_FILE).read_bytes())["state"]
    return state


def _trained_tokens(rows: Any) -> list[int]:
    """Tokens that a row would train: those with a label, those of both answers of a pair, or none of a bare prompt."""
    if "labels" in rows.column_names:
        return [sum(label != -100 for label in labels) for labels in rows["labels"].to_pylist()]
    if "chosen_ids" not in rows.column_names:
        return [0] * rows.num_rows
    answers = (rows[name].to_pylist() for name in ("chosen_ids", "rejected_ids"))
    return [len(chosen) + len(rejected) for chosen, rejected in zip(*answers, strict=True)]


def _plan_of_epoch(job: TrainingJob, epoch: int) -> list[list[int]]:
    """Rows of each step, in an order by digest: noop needs no torch."""
    return planned_rows(job.recipe, job.plan, epoch, ROW_ORDER)


class NoopTrainingClient:
    """A `TrainingClient` without weights: right shapes, simulated numbers, the same for the same calls.

    The log-probability of a token follows from the state, its position and itself, whichever call asks: so a sample's
    log-probabilities are those of the next forward pass over it, until an optimiser step moves the state.
    """

    def __init__(self, seed: int = 0) -> None:
        self._state = digest_json(["noop", seed])
        self._gradients: list[str] = []
        self._steps = 0

    def forward_backward(
        self, data: Sequence[Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> "Future[ForwardBackwardResult]":
        """See `TrainingClient.forward_backward`; every loss is the weighted cross entropy."""
        if loss_fn not in LOSSES:
            return _failed(f"there is no loss {loss_fn!r}", f"one of {', '.join(LOSSES)}")
        problem = next((problem for datum in data if (problem := _problem(datum))), None)
        if problem:
            return _failed(*problem)
        logprobs = [self._target_logprobs(datum) for datum in data]
        weights = [
            datum.loss_fn_inputs.get("weights", [1.0] * len(lp)) for datum, lp in zip(data, logprobs, strict=True)
        ]
        loss = -sum(lp * w for row, ws in zip(logprobs, weights, strict=True) for lp, w in zip(row, ws, strict=True))
        self._gradients.append(digest_json([loss_fn, dict(loss_fn_config or {}), loss, logprobs]))
        return _done(ForwardBackwardResult({"loss:sum": loss, "simulated": 1.0}, logprobs))

    def forward_backward_custom(self, data: Sequence[Datum], loss_fn: CustomLoss) -> "Future[ForwardBackwardResult]":
        """See `TrainingClient.forward_backward_custom`; the loss function is really called."""
        problem = next((problem for datum in data if (problem := _problem(datum))), None)
        if problem:
            return _failed(*problem)
        logprobs = [self._target_logprobs(datum) for datum in data]
        loss, metrics = loss_fn(data, logprobs)
        self._gradients.append(digest_json(["custom", float(loss), logprobs]))
        return _done(ForwardBackwardResult({"loss:sum": float(loss), "simulated": 1.0, **metrics}, logprobs))

    def optim_step(self, params: AdamParams) -> "Future[Mapping[str, float]]":
        """See `TrainingClient.optim_step`."""
        self._steps += 1
        self._state = digest_json([self._state, self._gradients, vars(params)])
        self._gradients = []
        return _done({"step": float(self._steps), "simulated": 1.0})

    def sample(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> "Future[list[SampledSequence]]":
        """See `TrainingClient.sample`."""
        return _done([self._sample(prompt, params, index) for index in range(num_samples)])

    def compute_logprobs(self, tokens: ModelInput) -> "Future[list[float | None]]":
        """See `TrainingClient.compute_logprobs`."""
        return _done(
            [None if place == 0 else self._logprob(place, token) for place, token in enumerate(tokens.tokens)]
        )

    def save_state(self, folder: Path) -> "Future[tuple[ExternalState, ...]]":
        """See `TrainingClient.save_state`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STATE_FILE).write_bytes(canonical_json({"state": self._state, "steps": self._steps}))
        return _done(())

    def load_state(self, folder: Path, *, weights_only: bool = False) -> "Future[None]":
        """See `TrainingClient.load_state`."""
        if not (folder / STATE_FILE).is_file():
            return _failed(f"there is no saved state in {folder}", "name a folder that save_state wrote")
        saved = json.loads((folder / STATE_FILE).read_bytes())
        self._state, self._steps, self._gradients = saved["state"], saved["steps"], []
        return _done(None)

    def close(self) -> None:
        """See `TrainingClient.close`."""

    def _target_logprobs(self, datum: Datum) -> list[float]:
        targets = datum.loss_fn_inputs["target_tokens"]
        return [self._logprob(place, int(token)) for place, token in enumerate(targets, start=1)]

    def _logprob(self, place: int, token: int) -> float:
        """Log-probability of a token at a place of a sequence, from 0; between -1 and -2."""
        return -1.0 - int(digest_json([self._state, place, token])[:4], 16) / 0xFFFF

    def _sample(self, prompt: ModelInput, params: SamplingParams, index: int) -> SampledSequence:
        """One continuation; the greedy ones of a prompt are all the same."""
        drawn = [params.seed, index] if params.temperature else []
        tokens: list[int] = []
        while len(tokens) < params.max_tokens and not (tokens and tokens[-1] in params.stop):
            chosen = digest_json([self._state, list(prompt.tokens), tokens, params.temperature, drawn])
            tokens.append(int(chosen[:4], 16) % 256)
        stopped = bool(tokens) and tokens[-1] in params.stop
        logprobs = [self._logprob(place, token) for place, token in enumerate(tokens, start=len(prompt.tokens))]
        return SampledSequence(tokens, logprobs, "stop" if stopped else "length")


def _problem(datum: Datum) -> tuple[str, str] | None:
    """What is wrong with a datum, and the fix; None when nothing is."""
    length = len(datum.model_input.tokens)
    if "target_tokens" not in datum.loss_fn_inputs:
        return "a datum has no target_tokens", "give tokens 1 … T as target_tokens"
    for name, values in datum.loss_fn_inputs.items():
        if len(values) != length:
            return f"{name} has length {len(values)}, and the input {length}", "one value for each token of the input"
    return None


def _done(value: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _failed(what: str, fix: str) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_exception(BackendError(what, where="backend noop", fix=fix))
    return future
