"""The training port: what a backend is to the kitchen.

Two levels. A `Trainer` trains whole epochs from one verified checkpoint to the next; every backend is one. A
`TrainingClient` offers primitives (forward-backward, optimiser step, sampling) on which the kitchen's own loops
are written; its types and semantics are those of the Tinker API.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.datasets.port import LocalDataset
from kitchen_resources.formulas.batches import RowOrder
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.plan import TrainingPlan

# Level a: epochs.


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; asked before any work, and refused then.

    Attributes:
        backend: Name of the adapter.
        methods: Methods it trains.
        resume: `exact`: the same bits as without a break; `state`: weights and optimiser come back; `none`.
        step_checkpoints: Methods in which a checkpoint inside an epoch resumes as exactly as one at its end, where an
            epoch is a pass over the rows.
        fractional_weights: Whether tokens may weigh other than 0 and 1 in the loss.
        own_code: Whether it trains by a loss of one's own, and by stages of one's own in a step.
        lora: Whether it trains an adapter.
        full: Whether it trains the whole model.
        quantization: Bit widths it loads a frozen base in.
        simulated: Nothing is learned; its numbers can't be evaluated, promoted or used as a base.
        row_order: How it permutes rows; the ledger of a run is compared with the plan in this order.
        by_store: Whether its workers share only the store with this machine, which therefore must be a bucket.
        in_one_go: Whether it trains all epochs of a run together, as one epoch of the plan, and nobody tells which rows
            its steps receive.
    """

    backend: str
    methods: frozenset[str]
    resume: Literal["exact", "state", "none"]
    step_checkpoints: frozenset[str] = frozenset()
    fractional_weights: bool = False
    own_code: bool = False
    lora: bool = True
    full: bool = True
    quantization: frozenset[str] = frozenset({"none"})
    simulated: bool = False
    row_order: RowOrder = "torch"
    by_store: bool = False
    in_one_go: bool = False

    @property
    def places_orders(self) -> bool:
        """Whether it works by orders in the store, which outlive the launcher that placed them."""
        return self.by_store or self.in_one_go

    def is_exact_inside(self, recipe: Recipe) -> bool:
        """Whether a run can go on exactly from inside an epoch; not from inside a block of samples, which aren't kept."""
        return recipe.method in self.step_checkpoints and recipe.draws(1) is None


@dataclass(frozen=True)
class BaseModel:
    """A base model as a local folder.

    Attributes:
        reference: As the recipe names it.
        folder: Local folder; None on a backend that has no weights.
        digest: sha256 over every file that is read: weights, configs, tokenizer, template.
        files: sha256 of each of those files.
        parameters: Number of weights; 0 when unknown.
        bytes: Size of the weights on disk.
        revision: Commit of a hub model, else "".
        note: What a person should know, such as that a cached copy is used.
        simulated: There are no weights behind it.
    """

    reference: str
    folder: Path | None
    digest: str
    files: Mapping[str, str]
    parameters: int = 0
    bytes: int = 0
    revision: str = ""
    note: str = ""
    simulated: bool = False


@dataclass(frozen=True)
class Resolution:
    """What a recipe comes to on this backend and this machine: no `auto`, no null that a library fills in.

    Attributes:
        algorithm: Version of each piece of arithmetic used, raised by hand when its results change.
        values: Resolved values that move weights, by name; they enter the identity.
        threads: CPU threads of the training process; set again by every later session of the run.
        device: Where it runs, such as `cpu` or `cuda:0`; not part of the identity.
        environment: Library versions, CPU capability, device; recorded, and drift is explained.
        memory_bytes: Estimate of the peak memory on the device, in bytes.
        state_bytes: Estimate of one checkpoint's size, in bytes.
        elsewhere: Whether `device` is another machine's, so that what is done here of the run needs one of its own.
    """

    algorithm: Mapping[str, int]
    values: Mapping[str, Any]
    threads: int
    device: str
    environment: Mapping[str, Any]
    memory_bytes: int
    state_bytes: int
    elsewhere: bool = False


@dataclass(frozen=True)
class ExternalState:
    """A part of a checkpoint that a remote service keeps; nothing here can vouch for its bytes.

    Attributes:
        uri: Its name there.
        expires: Until when it is kept, ISO 8601; "" where nobody says.
        probe_loss: Mean loss per token on a fixed probe at the save, in nats, by which a restore is told from another.
    """

    uri: str
    expires: str = ""
    probe_loss: float | None = None


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint whose verified files lie in a local folder, read-only.

    Attributes:
        folder: Where the files are.
        epoch: Epoch it belongs to, from 1.
        global_step: Optimiser steps done since the start of the run.
        steps_into_epoch: Optimiser steps done in `epoch`.
        epoch_complete: Whether `epoch` ends here.
        state_digest: Digest over weights, optimiser, schedule, random state, cursor and ledger.
        restart: `all`: resume exactly here. `weights`: take only the weights, and start at step 0.
    """

    folder: Path
    epoch: int
    global_step: int
    steps_into_epoch: int
    epoch_complete: bool
    state_digest: str
    restart: Literal["all", "weights"] = "all"


@dataclass(frozen=True)
class StepMetrics:
    """One optimiser step. Units: tokens (trained ones), seconds, bytes."""

    epoch: int
    global_step: int
    total_steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float
    host_memory_bytes: int
    device_memory_bytes: int
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens per second of this step."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


TRANSCRIPT = "transcript.jsonl"
"""Record of an epoch's sampling: some of the episodes or answers, one a line."""


@dataclass(frozen=True)
class CheckpointDraft:
    """What a session hands over to be published: files in a folder, and what they are.

    Attributes:
        folder: Folder of the files; the session won't write them again.
        state_files: Names of the files that are the state: weights, optimiser, schedule, random state.
        other_files: Names of what is stored with them, such as config and tokenizer.
        epoch: As in LocalCheckpoint.
        global_step: As in LocalCheckpoint.
        steps_into_epoch: As in LocalCheckpoint.
        epoch_complete: As in LocalCheckpoint.
        row_ids: Prepared rows that each optimiser step of this epoch so far received, in order: one sequence a step.
        metrics: Numbers over this epoch so far: loss, tokens, seconds …
        steps: The epoch's step metrics so far.
        records: What else is to stay on record of the epoch, by file name, such as some of what was sampled.
        external: What of the state a remote service keeps.
    """

    folder: Path
    state_files: Sequence[str]
    other_files: Sequence[str]
    epoch: int
    global_step: int
    steps_into_epoch: int
    epoch_complete: bool
    row_ids: Sequence[Sequence[int]]
    metrics: Mapping[str, float]
    steps: Sequence[StepMetrics]
    records: Mapping[str, bytes] = field(default_factory=dict)
    external: Sequence[ExternalState] = ()


class TrainingEvents(Protocol):
    """What a session reports while it trains. Any of these calls may raise, which ends the epoch at once."""

    def step(self, metrics: StepMetrics) -> None:
        """An optimiser step is done. Raises `LeaseLost` when another process took the run over."""
        ...

    def stopping(self, *, exact: bool) -> bool:
        """Asked after each step that no checkpoint follows: whether to publish one now, because the run is to stop.

        Args:
            exact: Whether a run can go on exactly from here. If not, this raises what ends the run.
        """
        ...

    def checkpoint(self, draft: CheckpointDraft) -> LocalCheckpoint:
        """Publish a checkpoint; returns it as it now stands in the store, or raises where the run is to stop."""
        ...

    def check(self) -> None:
        """Raises `LeaseLost` when another process took the run over."""
        ...

    def earlier_rows(self) -> Sequence[Sequence[int]]:
        """Rows of the steps of this epoch that the parent checkpoint already holds."""
        ...

    def earlier_steps(self) -> Sequence[StepMetrics]:
        """Metrics of the steps of this epoch that the parent checkpoint already holds."""
        ...


@dataclass(frozen=True)
class Serving:
    """What a served model needs besides its weights.

    Attributes:
        weight_dtype: Type that weights were held in while training.
        pad_token_id: Filler of short rows.
        stop_token_ids: Where an answer ends.
        chat_template: The template that rows were rendered with, where it isn't the base's own.
    """

    weight_dtype: str
    pad_token_id: int
    stop_token_ids: tuple[int, ...]
    chat_template: str | None


class DerivedFiles(Protocol):
    """Keeps what was worked out once, in the store, by what it was worked out from."""

    def __call__(self, key: Mapping[str, Any], make: Callable[[Path], None], target: Path) -> Path:
        """The file for a key, at `target`; made there by `make`, and kept, when the store has none yet."""
        ...

    def known(self, key: Mapping[str, Any]) -> bool:
        """Whether the store has the file for a key."""
        ...


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a session needs; made once a run, after preflight and data preparation.

    Attributes:
        fingerprint: Identity of the run, 64 hexadecimal digits.
        recipe: What to train.
        resolution: What it comes to here.
        base: The base model.
        data: Prepared rows in a local file.
        plan: Steps and epochs.
        scratch: Folder of this attempt, emptied before and after.
        models: Models besides the base, by role: `reference`, `teacher`.
        derived: Files that follow from the job alone and are worth keeping, such as a reference's log-probabilities.
        blobs: The store, for backends whose workers share nothing else with this machine.
    """

    fingerprint: str
    recipe: Recipe
    resolution: Resolution
    base: BaseModel
    data: LocalDataset
    plan: TrainingPlan
    scratch: Path
    models: Mapping[str, BaseModel] = field(default_factory=dict)
    derived: "DerivedFiles | None" = None
    blobs: BlobStore | None = None

    def serving(self) -> Serving:
        """What a model of this job needs when it is served."""
        template = self.data.extra.get("chat_template")
        return Serving(
            weight_dtype=self.resolution.values.get("weight_dtype", ""),
            pad_token_id=self.data.pad_token_id,
            stop_token_ids=tuple(self.data.stop_token_ids),
            chat_template=template if isinstance(template, str) else None,
        )


@dataclass(frozen=True)
class EpochResult:
    """A trained epoch: its last checkpoint, as published, and the optimiser steps this call really did."""

    checkpoint: LocalCheckpoint
    steps_done: int


class Session(Protocol):
    """A backend at work on one job. Not thread-safe."""

    def train_epoch(self, epoch: int, parent: LocalCheckpoint | None, events: TrainingEvents) -> EpochResult:
        """Train one epoch (or what is left of it) from its parent, and publish its end.

        Args:
            epoch: From 1.
            parent: Where to go on: the end of the epoch before, or a checkpoint inside this epoch; None at the start.
            events: Where steps and checkpoints are reported.

        Raises:
            TrainingDiverged: A loss, gradient norm or weight is not finite; nothing of the epoch is published.
            OutOfMemory: With what to lower.
            LeaseLost: Another process took over.
            StateLost: What a remote service kept of the parent is gone.
            BackendError: Anything else that the backend reports.
        """
        ...

    def export(self, checkpoint: LocalCheckpoint, target: Path, *, merged: bool) -> None:
        """Write a folder that plain transformers (or peft, when not merged) loads; `target` must not exist."""
        ...

    def close(self) -> None:
        """Free the model and whatever else is held. Always called, also after a failure; may be called twice."""
        ...


@runtime_checkable
class Trainer(Protocol):
    """A training backend."""

    def capabilities(self) -> Capabilities:
        """What it can do. Cheap, and works before anything is installed or reachable."""
        ...

    def check(self, recipe: Recipe) -> list[Problem]:
        """What of the recipe this backend can't do or doesn't know; empty when all is well."""
        ...

    def resolve(
        self, recipe: Recipe, base: BaseModel, models: Mapping[str, BaseModel] = MappingProxyType({})
    ) -> Resolution:
        """Answer what the recipe comes to here, without training anything.

        Args:
            recipe: What to train.
            base: The base model.
            models: Models besides it, by role.

        Raises:
            CapabilityError: It needs something this backend or machine lacks.
        """
        ...

    def open(self, job: TrainingJob) -> Session:
        """Start a session. Heavy imports happen here and not before."""
        ...


# Level b: primitives.

LOSSES = ("cross_entropy", "importance_sampling", "ppo", "cispo", "dro")
"""Losses by name; any other is given as a function."""


@dataclass(frozen=True)
class ModelInput:
    """Tokens a model reads, shape (T,)."""

    tokens: Sequence[int]


@dataclass(frozen=True)
class Datum:
    """One training example, its targets already shifted.

    Attributes:
        model_input: Tokens 0 … T-1.
        loss_fn_inputs: By name, sequences of length T aligned with the prediction at each position: `target_tokens`
            (tokens 1 … T), `weights`, and what a loss needs besides (`logprobs`, `advantages`).
    """

    model_input: ModelInput
    loss_fn_inputs: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class ForwardBackwardResult:
    """Sums of the loss over a batch, and the log-probability of each target: one sequence of length T a datum."""

    metrics: Mapping[str, float]
    logprobs: Sequence[Sequence[float]]


@dataclass(frozen=True)
class AdamParams:
    """Adam's parameters, always sent and never left to a backend's default."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True)
class SamplingParams:
    """How to sample: at most `max_tokens`, at `temperature` (0 is greedy), ending at any of `stop` tokens."""

    max_tokens: int
    temperature: float = 1.0
    stop: Sequence[int] = ()
    seed: int = 0


@dataclass(frozen=True)
class SampledSequence:
    """A sampled continuation with the log-probability of each of its tokens; the stop token is the last of them."""

    tokens: Sequence[int]
    logprobs: Sequence[float]
    stop_reason: Literal["stop", "length"]


CustomLoss = Callable[[Sequence[Datum], Sequence[Any]], tuple[Any, Mapping[str, float]]]
"""From data and their target log-probabilities (differentiable) to a scalar loss and metrics."""


@runtime_checkable
class TrainingClient(Protocol):
    """The primitives of a training session. Every call returns a future, so that work can be sent ahead.

    Losses are plain sums over tokens; the caller folds any normalisation into the weights. A request that fails
    resolves its future with `BackendError`; the client may be unusable after that.
    """

    def forward_backward(
        self, data: Sequence[Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> "Future[ForwardBackwardResult]":
        """Add the gradients of a batch under a named loss, one of `LOSSES`."""
        ...

    def forward_backward_custom(self, data: Sequence[Datum], loss_fn: CustomLoss) -> "Future[ForwardBackwardResult]":
        """Add the gradients of a loss given as a function of target log-probabilities."""
        ...

    def optim_step(self, params: AdamParams) -> "Future[Mapping[str, float]]":
        """Apply the gradients added so far, and clear them."""
        ...

    def sample(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> "Future[list[SampledSequence]]":
        """Sample from the current weights."""
        ...

    def compute_logprobs(self, tokens: ModelInput) -> "Future[list[float | None]]":
        """Log-probability of each token given those before it; the first has none."""
        ...

    def save_state(self, folder: Path) -> "Future[tuple[ExternalState, ...]]":
        """Write weights, optimiser and random state as safetensors and JSON; tells what of it lies elsewhere."""
        ...

    def load_state(self, folder: Path, *, weights_only: bool = False) -> "Future[None]":
        """Take over what `save_state` wrote; or of that the weights alone."""
        ...

    def close(self) -> None:
        """End the session and free what it holds; may be called twice."""
        ...
