"""Recipes of every method on one store, without Dagster: launches of them, and versions that one builds on another."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.datasets.port import DatasetStore
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.embedded import write_model
from kitchen_resources.evaluation.local import NoopEvaluator
from kitchen_resources.evaluation.port import Evaluator
from kitchen_resources.launch import Launch
from kitchen_resources.ports import Ports
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.registry.port import ModelVersion
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.telemetry.dispatch import NoopTelemetry
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.noop import NoopSession
from kitchen_resources.training.port import LocalCheckpoint, Session, Trainer, TrainingJob
from kitchen_resources.training.upstream import make_version
from tests.engine import Told
from tests.pretending import PretendingTrainer

SMALL: Mapping[str, Any] = {"max_length": 64, "epochs": 1, "held_out": "0", "lease_wait_s": 0.0}
SUPERVISED: Mapping[str, Any] = {**SMALL, "model": "embedded:tiny", "dataset": "embedded:dates", "max_rows": 8}
PREFERENCE: Mapping[str, Any] = {**SMALL, "model": "embedded:tiny", "dataset": "embedded:date_pairs", "max_rows": 8}
DISTILLATION: Mapping[str, Any] = {**SUPERVISED, "teacher": "embedded:tiny"}
REINFORCEMENT: Mapping[str, Any] = {
    **SMALL,
    "model": "embedded:tiny",
    "environment": {"name": "arithmetic", "args": {"count": 6}, "workers": 1},
    "steps_per_epoch": 2,
    "group_size": 2,
    "groups_per_batch": 2,
    "batch_size": 4,
    "max_tokens": 4,
}
OF_METHOD: Mapping[type[Recipe], Mapping[str, Any]] = {
    SupervisedRecipe: SUPERVISED,
    PreferenceRecipe: PREFERENCE,
    ReinforcementRecipe: REINFORCEMENT,
    DistillationRecipe: DISTILLATION,
}
"""A small recipe of each method."""


class ExportingTrainer(PretendingTrainer):
    """A backend that pretends to learn, and exports a real model: the embedded one, another for each state."""

    def open(self, job: TrainingJob) -> Session:
        return _ExportingSession(job)


class _ExportingSession(NoopSession):
    def export(self, checkpoint: LocalCheckpoint, target: Path, *, merged: bool) -> None:
        if merged:
            write_model(target, seed=int(checkpoint.state_digest[:6], 16))
        else:
            target.mkdir(parents=True)
            (target / "adapter_config.json").write_text("{}")


@dataclass(frozen=True)
class Known:
    """A recipe by name: its class, its values, and what is fixed where it is defined."""

    method: type[Recipe]
    values: Mapping[str, Any]
    definition: Mapping[str, Any] = field(default_factory=dict)


_runs = itertools.count(1)


@dataclass
class Rail:
    """A store, and the recipes that are launched on it.

    Attributes:
        recipes: By name.
        blobs: The store.
        trainer: Makes the backend of a launch.
        datasets: Where rows come from.
        evaluator: Who measures.
        told: What all that was trained first said.
    """

    recipes: dict[str, Known] = field(default_factory=dict)
    blobs: BlobStore = field(default_factory=MemoryBlobs)
    trainer: Callable[[], Trainer] = ExportingTrainer
    datasets: DatasetStore = field(default_factory=SourceDatasets)
    evaluator: Evaluator = field(default_factory=NoopEvaluator)
    told: Told = field(default_factory=Told)

    @property
    def registry(self) -> StoreRegistry:
        """The versions in the store."""
        return StoreRegistry(self.blobs)

    def add(
        self, name: str, method: type[Recipe], values: Mapping[str, Any] | None = None, **definition: Any
    ) -> None:
        """Make a recipe known; its values are those of the small one with these over them."""
        self.recipes[name] = Known(method, {**OF_METHOD[method], **(values or {})}, definition)

    def launch(self, name: str, *, run_id: str = "", root_id: str | None = None, **fields: Any) -> Launch:
        """A new launch of a recipe, as a process of its own would make it; `fields` are the launch's overrides."""
        return self._launch(name, run_id or f"run-{next(_runs)}", root_id, self._ports(), fields)

    def register(self, name: str, **fields: Any) -> ModelVersion:
        """Run a recipe to its registered version, in a run of its own."""
        return make_version(self.launch(name, **fields), self.told)

    def with_(self, **others: Any) -> "Rail":
        """The same store and recipes with another backend, data set or evaluator."""
        return replace(self, told=Told(), **others)

    def _launch(self, name: str, run_id: str, root_id: str | None, ports: Ports, fields: Mapping[str, Any]) -> Launch:
        known = self.recipes[name]
        recipe = bind(known.method, {**known.values, **fields}, RecipeDefinition(name=name, **known.definition))
        return Launch(
            recipe,
            ports,
            run_id=run_id,
            root_id=root_id,
            upstream=lambda other: self._launch(other, run_id, root_id, ports, {}),
        )

    def _ports(self) -> Ports:
        return Ports(
            trainer=LiveTrainer(self.trainer()),
            blobs=self.blobs,
            datasets=self.datasets,
            evaluator=self.evaluator,
            registry=self.registry,
            telemetry=NoopTelemetry(),
        )


def launch_of(method: type[Recipe], trainer: Callable[[], Trainer] = ExportingTrainer, **fields: Any) -> Launch:
    """A launch of one small recipe of a method, on a store of its own."""
    rail = Rail(trainer=trainer)
    rail.add("mine", method)
    return rail.launch("mine", **fields)
