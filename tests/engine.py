"""The engine without Dagster: one store, the noop backend, and launches of one small recipe over ten rows.

Ten rows in batches of four make epochs of three steps, the last with two rows; three epochs make nine steps.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from kitchen_resources.blobs.content import StoredFile
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import CheckpointEntry, Head
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.datasets.port import DatasetStore
from kitchen_resources.datasets.sources import NoopDatasets
from kitchen_resources.digests import digest_bytes, digest_json
from kitchen_resources.evaluation.local import NoopEvaluator
from kitchen_resources.evaluation.port import Evaluator
from kitchen_resources.launch import Launch
from kitchen_resources.ports import Ports
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.registry.port import ModelFiles, ModelVersion, Registration
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.telemetry.dispatch import NoopTelemetry
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.noop import NoopSession, NoopTrainer
from kitchen_resources.training.port import (
    BaseModel,
    Capabilities,
    CheckpointDraft,
    EpochResult,
    LocalCheckpoint,
    Resolution,
    Session,
    StepMetrics,
    Trainer,
    TrainingEvents,
    TrainingJob,
)
from kitchen_resources.training.run import Finished, TrainingRun

ROWS = 10
SMALL: Mapping[str, Any] = {
    "model": "some/model",
    "dataset": "rows",
    "held_out": "0",
    "epochs": 3,
    "batch_size": 4,
    "lease_wait_s": 0.0,
}


class Told:
    """An observer that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.entries: list[CheckpointEntry] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def published(self, entry: CheckpointEntry) -> None:
        self.entries.append(entry)

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints published, in order."""
        return [entry.step for entry in self.entries]

    @property
    def text(self) -> str:
        return "\n".join(self.said)


class UnmarkedTrainer(NoopTrainer):
    """The noop backend without the mark that its numbers are simulated, so that its checkpoints are evaluated.

    Its base is a real one: `model: embedded:tiny`.
    """

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), simulated=False)

    def resolve(self, recipe: Recipe, base: BaseModel, models: Any = MappingProxyType({})) -> Resolution:
        resolution = super().resolve(recipe, base, models)
        return replace(resolution, values={**resolution.values, "attention": "eager"})


class HookedTrainer(NoopTrainer):
    """The noop backend, with a function that is called before each step is reported, and may raise."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self.on_step = on_step

    def open(self, job: TrainingJob) -> Session:
        return _HookedSession(job, self.on_step)


class _HookedSession(NoopSession):
    def __init__(self, job: TrainingJob, on_step: Callable[[int], None]) -> None:
        super().__init__(job)
        self._on_step = on_step

    def train_epoch(self, epoch: int, parent: LocalCheckpoint | None, events: TrainingEvents) -> EpochResult:
        return super().train_epoch(epoch, parent, _HookedEvents(events, self._on_step))


@dataclass
class _HookedEvents:
    events: TrainingEvents
    on_step: Callable[[int], None]

    def step(self, metrics: StepMetrics) -> None:
        self.on_step(metrics.global_step)
        self.events.step(metrics)

    def checkpoint(self, draft: CheckpointDraft) -> LocalCheckpoint:
        return self.events.checkpoint(draft)

    def stopping(self, *, exact: bool) -> bool:
        return self.events.stopping(exact=exact)

    def check(self) -> None:
        pass

    def earlier_rows(self) -> Sequence[Sequence[int]]:
        return self.events.earlier_rows()

    def earlier_steps(self) -> Sequence[StepMetrics]:
        return self.events.earlier_steps()


class Planted(Exception):
    """A failure that a test planted."""


def failing_at(step: int, error: BaseException | None = None) -> HookedTrainer:
    """A backend that fails when it reaches a step; every time."""

    def fail(reached: int) -> None:
        if reached == step:
            raise error or Planted(f"at step {step}")

    return HookedTrainer(fail)


_runs = itertools.count(1)


@dataclass
class Engine:
    """A store and what launches on it are made of.

    Attributes:
        blobs: The store.
        adapter: The backend.
        datasets: Where rows come from.
        evaluator: Who measures.
        told: What all its launches said.
    """

    blobs: BlobStore = field(default_factory=MemoryBlobs)
    adapter: Trainer = field(default_factory=NoopTrainer)
    datasets: DatasetStore = field(default_factory=lambda: NoopDatasets(ROWS))
    evaluator: Evaluator = field(default_factory=NoopEvaluator)
    told: Told = field(default_factory=Told)

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(self.blobs)

    def launch(
        self, *, run_id: str = "", root_id: str | None = None, live: LiveTrainer | None = None, **fields: Any
    ) -> Launch:
        """A new launch, as a process of its own would make it: with a trainer that has no live session."""
        ports = Ports(
            trainer=live or LiveTrainer(self.adapter),
            blobs=self.blobs,
            datasets=self.datasets,
            evaluator=self.evaluator,
            registry=StoreRegistry(self.blobs),
            telemetry=NoopTelemetry(),
        )
        return Launch(recipe(**fields), ports, run_id=run_id or f"run-{next(_runs)}", root_id=root_id)

    def run(self, **how: Any) -> TrainingRun:
        """A run of a new launch; arguments as `launch`."""
        return TrainingRun(self.launch(**how), self.told)

    def finish(self, **how: Any) -> Finished:
        """Plan and finish a run, and close its session."""
        launch = self.launch(**how)
        run = TrainingRun(launch, self.told)
        try:
            run.planned()
            return run.finish()
        finally:
            launch.ports.trainer.discard()

    def head(self) -> Head:
        """Head of the only run in the store."""
        (fingerprint,) = self.store.find("")
        return self.store.head(fingerprint)

    def with_(self, **others: Any) -> "Engine":
        """The same store with another backend, data set or evaluator, and an observer of its own."""
        return replace(self, told=Told(), **others)


_recipes: dict[str, Recipe] = {}


def recipe(name: str = "supervised", **fields: Any) -> Recipe:
    """The small recipe, with some fields changed. Recipes are frozen, and Dagster takes its time to make one."""
    key = digest_json([name, fields])
    if key not in _recipes:
        _recipes[key] = bind(SupervisedRecipe, {**SMALL, **fields}, RecipeDefinition(name=name))
    return _recipes[key]


def states(head: Head) -> dict[int, str]:
    """State digest of each checkpoint that exists, by step."""
    return {entry.step: entry.state_digest for entry in head.entries()}


def epoch_ends(head: Head) -> dict[int, str]:
    """State digest at the end of each epoch, by step."""
    return {entry.step: entry.state_digest for entry in head.entries() if entry.epoch_complete}


_undisturbed: dict[str, dict[int, str]] = {}


def undisturbed(**fields: Any) -> dict[int, str]:
    """What `epoch_ends` is when nothing goes wrong, in a store of its own."""
    key = digest_json(fields)
    if key not in _undisturbed:
        _undisturbed[key] = epoch_ends(Engine().finish(**fields).head)
    return _undisturbed[key]


def payload_keys(engine: Engine) -> set[str]:
    """Keys of all payload in the store."""
    return {key for key in engine.blobs.list("runs/") if "/payload/" in key}


def needed_files(engine: Engine) -> int:
    """How many payload objects the checkpoints that are present need, over all runs."""
    store, needed = engine.store, set()
    for fingerprint in store.find(""):
        for entry in store.head(fingerprint).entries():
            if entry.payload == "present":
                needed |= {(fingerprint, file.sha256) for file in store.manifest(entry).files.values()}
    return len(needed)


def register(engine: Engine, head: Head, step: int, kind: str = "merged", **fields: Any) -> ModelVersion:
    """Register a checkpoint as a version, its model one small file."""
    entry = head.at(step)
    assert entry is not None
    contents = {"config.json": b"{}", "adapter/a.json": b"[]"}
    stored = {name: StoredFile(engine.store.content.put(data), len(data)) for name, data in contents.items()}
    values: dict[str, Any] = {
        "name": "supervised",
        "fingerprint": head.fingerprint,
        "step": step,
        "epoch": entry.epoch,
        "state_digest": entry.state_digest,
        "manifest": entry.manifest,
        "model": ModelFiles(stored, kind, digest_bytes(kind.encode())),
        **{name: {} for name in ("base", "dataset", "metrics", "base_metrics", "cost", "identity", "environment")},
        "launch": "run-1",
        "simulated": False,
    }
    return StoreRegistry(engine.blobs).register(Registration(**{**values, **fields}))
