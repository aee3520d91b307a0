"""An engine that pretends to learn: the noop backend on a real model and real rows, measured by a script.

Nothing is loaded and nothing is trained, and yet evaluations, the registry and telemetry see a run that isn't simulated.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.datasets.port import DatasetStore
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.evaluation.port import EvaluatedModel, EvaluationResult, EvaluationTask, Evaluator, Measure
from kitchen_resources.launch import Launch
from kitchen_resources.ports import Ports
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.registry.port import ModelRegistry
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.telemetry.port import Telemetry
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.port import BaseModel, Capabilities, Resolution
from kitchen_resources.training.run import Finished, TrainingRun

LOSS = "held_out/loss"


class PretendingTrainer(NoopTrainer):
    """The noop backend, which doesn't say that nothing is learned."""

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), backend="pretending", simulated=False)

    def resolve(self, recipe: Recipe, base: BaseModel, models: Any = MappingProxyType({})) -> Resolution:
        resolution = super().resolve(recipe, base, models)
        values = {**resolution.values, "precision": "fp32", "attention": "sdpa", "weight_dtype": "float32"}
        return replace(resolution, values=values, device="cpu", threads=3)


class ScriptedEvaluator:
    """An evaluator that finds the losses of a script, one after the other, and remembers what it was asked."""

    def __init__(self, losses: Sequence[float] = (), name: str = "scripted") -> None:
        self.name = name
        self.asked: list[tuple[EvaluatedModel, Sequence[EvaluationTask]]] = []
        self._losses = iter(losses or itertools.count(1.0))

    def check(self, scorer: str, arguments: Mapping[str, Any]) -> str | None:
        return None

    def evaluate(self, model: EvaluatedModel, tasks: Sequence[EvaluationTask]) -> EvaluationResult:
        self.asked.append((model, tasks))
        sample = {
            "evaluation": "held_out",
            "where": "rows.jsonl:1",
            "prompt": "1 + 1",
            "expected": "2",
            "answer": f"answer {len(self.asked)}",
            "score": 0.0,
        }
        return EvaluationResult({LOSS: Measure(next(self._losses), 2, float("nan"), 9.0)}, [sample])


class Recorded:
    """Telemetry that keeps every event: name, measurements, metadata."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    def emit(self, name: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        self.events.append((name, dict(measurements), dict(metadata)))

    def close(self) -> None:
        pass

    def named(self, name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [(measurements, metadata) for event, measurements, metadata in self.events if event == name]


class Silent:
    """An observer that wants to know nothing."""

    def say(self, message: str) -> None:
        pass

    def published(self, entry: CheckpointEntry) -> None:
        pass


def write_sums(path: Path, count: int = 20, first: int = 0) -> Path:
    """A JSONL file of prompts and completions: sums."""
    rows = [{"prompt": f"{n} + {n}", "completion": str(2 * n)} for n in range(first, first + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


_launches = itertools.count(1)


@dataclass
class Pretence:
    """A store, the adapters on it, and a file of rows."""

    rows: Path
    blobs: BlobStore = field(default_factory=MemoryBlobs)
    evaluator: Evaluator = field(default_factory=ScriptedEvaluator)
    registry: ModelRegistry | None = None
    telemetry: Telemetry = field(default_factory=Recorded)
    datasets: DatasetStore = field(default_factory=SourceDatasets)
    trainer: Callable[[], NoopTrainer] = PretendingTrainer

    def launch(self, **fields: Any) -> Launch:
        """A new launch, as a process of its own would make it: four training rows in two steps an epoch."""
        small = {
            "model": "embedded:tiny",
            "dataset": str(self.rows),
            "held_out": "0.5",
            "max_length": 64,
            "max_rows": 8,
            "epochs": 2,
            "batch_size": 2,
        }
        recipe = bind(SupervisedRecipe, {**small, **fields}, RecipeDefinition(name="sums"))
        ports = Ports(
            trainer=LiveTrainer(self.trainer()),
            blobs=self.blobs,
            datasets=self.datasets,
            evaluator=self.evaluator,
            registry=self.registry or StoreRegistry(self.blobs),
            telemetry=self.telemetry,
        )
        return Launch(recipe, ports, run_id=f"launch-{next(_launches)}")


def train(launch: Launch) -> Finished:
    """Plan and finish the run of a launch."""
    run = TrainingRun(launch, Silent())
    run.planned()
    try:
        return run.finish()
    finally:
        launch.ports.trainer.discard()
