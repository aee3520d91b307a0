"""Real training killed by SIGKILL, and run again: always the states and the registry of an undisturbed run."""

import gc
import importlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.blobs.resource import open_store
from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.evaluation.local import LocalEvaluator
from kitchen_resources.evaluation.port import Evaluator
from kitchen_resources.launch import Launch
from kitchen_resources.ports import Ports
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.telemetry.dispatch import NoopTelemetry
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.run import TrainingRun
from kitchen_resources.training.trl.backend import TrlTrainer
from kitchen_resources.training.upstream import make_version
from tests import letters
from tests.faults.forked import Say, forked
from tests.faults.kill_points import POINTS, Deadly

PREFERENCE: Mapping[str, Any] = {
    "model": "embedded:tiny",
    "dataset": "embedded:date_pairs",
    "max_rows": 110,
    "max_length": 64,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 1.0e-3,
    "keep_last": 1,
}
REINFORCEMENT: Mapping[str, Any] = {
    "model": "embedded:tiny",
    "environment": {"name": "letters", "args": {"turns": 2}},
    "max_length": 64,
    "epochs": 2,
    "steps_per_epoch": 6,
    "batch_size": 16,
    "group_size": 4,
    "groups_per_batch": 4,
    "max_tokens": 4,
    "learning_rate": 1.0e-3,
    "keep_last": 1,
    "eval_every": 0,
}
DISTILLATION: Mapping[str, Any] = {
    "model": "embedded:tiny",
    "teacher": "embedded:tiny",
    "dataset": "embedded:dates",
    "max_rows": 110,
    "max_length": 64,
    "max_tokens": 4,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 1.0e-3,
    "keep_last": 1,
}
BASE: Mapping[str, Any] = {
    "model": "embedded:tiny",
    "dataset": "embedded:dates",
    "max_rows": 220,
    "max_length": 64,
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 3.0e-3,
    "keep_last": 1,
}
SHORT: Mapping[str, Any] = {"max_rows": 40}
VARIANTS: Mapping[str, tuple[type[Recipe], Mapping[str, Any]]] = {
    "full": (SupervisedRecipe, {**BASE, "max_rows": 70}),
    "LoRA, dropout, step checkpoints": (
        SupervisedRecipe,
        {**BASE, "max_rows": 70, "lora": {"rank": 4, "dropout": 0.1}, "checkpoint_steps": 3},
    ),
    "evaluation, best, step checkpoints": (
        SupervisedRecipe,
        {
            **BASE,
            "max_rows": 70,
            "checkpoint_steps": 3,
            "select": "best",
            "evaluations": [{"max_tokens": 3, "samples": 4}],
        },
    ),
    "preference": (PreferenceRecipe, {**PREFERENCE, **SHORT, "checkpoint_steps": 3, "precompute_reference": True}),
    "reinforcement": (
        ReinforcementRecipe,
        {
            **REINFORCEMENT,
            "steps_per_epoch": 4,
            "batch_size": 8,
            "groups_per_batch": 2,
            "max_tokens": 2,
            "ppo_epochs": 2,
            "kl_coef": 0.1,
            "held_out": "0.05",
        },
    ),
    "distillation": (
        DistillationRecipe,
        {**DISTILLATION, **SHORT, "lora": {"rank": 4, "dropout": 0.1}, "mode": "logit", "checkpoint_steps": 3},
    ),
    "distillation on policy": (DistillationRecipe, {**DISTILLATION, **SHORT, "mode": "on_policy"}),
}


METHODS: Mapping[str, str] = {
    "supervised": "full",
    "preference": "preference",
    "reinforcement": "reinforcement",
    "distillation": "distillation",
}
"""The variant of each method that comes to all named points."""


@lru_cache(maxsize=1)
def import_everything() -> None:
    """Import what the children need, so that a child starts in milliseconds; no tensor is touched before the fork."""
    import datasets
    import peft
    import transformers
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM, conversion_mapping
    from trl import DistillationTrainer, DPOTrainer, GRPOTrainer, SFTTrainer

    import kitchen_resources.blobs.s3_client

    transformers.utils.logging.disable_progress_bar()
    assert all((kitchen_resources, datasets, peft, trl, AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM))
    assert all((DistillationTrainer, DPOTrainer, GRPOTrainer, SFTTrainer))
    letters.register()
    # What the libraries import when they are first used: found out by a child, and imported here too.
    with tempfile.TemporaryDirectory() as folder, forked(_scout(Path(folder))) as child:
        for line in child.rest():
            if line.startswith("imported ") and line.split(" ")[1] not in sys.modules:
                with suppress(ImportError):
                    importlib.import_module(line.split(" ")[1])
    # What a process works out once: 0.4 s of each child.
    conversion_mapping.get_checkpoint_conversion_mapping("qwen3")
    for name in ("embedded:dates", "embedded:date_pairs"):
        SourceDatasets().open(name, split="train")
    # A collection in a child looks at what is new there, and not at all that is imported: 0.3 s each time.
    gc.collect()
    gc.freeze()


def _scout(folder: Path) -> Callable[[Say], None]:
    """Trains once, and says what that has imported."""

    def work(say: Say) -> None:
        register(folder, "full")(lambda line: None)
        for name in list(sys.modules):
            say(f"imported {name}")

    return work


@dataclass(frozen=True)
class End:
    """What is in a store when all is done.

    Attributes:
        states: State digest of each checkpoint that exists, by step.
        whole: The steps whose payload is there.
        versions: Registered versions, without times and the names of runs.
        candidate: The version that is the candidate.
    """

    states: Mapping[int, str]
    whole: frozenset[int]
    versions: tuple[Any, ...]
    candidate: Mapping[str, int | None]


@dataclass
class Tally:
    """What a campaign did."""

    where: str
    kills: int = 0
    resumes: int = 0
    mismatches: list[str] = field(default_factory=list)

    def line(self) -> str:
        return f"trl, {self.where}: {self.kills} kills, {self.resumes} resumes, {len(self.mismatches)} mismatches, 0 lost"


class _Saying:
    def __init__(self, say: Say) -> None:
        self._say = say

    def say(self, message: str) -> None:
        self._say(f"said {message}")

    def published(self, entry: CheckpointEntry) -> None:
        self._say(f"published {entry.step} {entry.state_digest}")


def train(place: Path | str, recipe_class: type[Recipe], fields: Mapping[str, Any]) -> Callable[[Say], None]:
    """What a child does: make all epochs of a run in a store exist. It says each step, and what is published."""

    def work(say: Say) -> None:
        launch = _launch(open_store(str(place)), recipe_class, fields, LocalEvaluator(), _Steps(say))
        run = TrainingRun(launch, _Saying(say))
        for epoch in run.planned().missing:
            run.ensure(epoch)
        finished = run.finish()
        launch.ports.trainer.discard()
        say(f"done {finished.steps_done}")

    return work


def register(place: Path | str, variant: str, point: str = "") -> Callable[[Say], None]:
    """What a child does: a recipe to its registered version. It says each step, and what is published.

    Args:
        place: Where the store is.
        variant: What to train.
        point: Where the child is to die, one of `kill_points.POINTS`; empty for nowhere.
    """

    def work(say: Say) -> None:
        deadly = Deadly(point, len(states(place)))
        blobs = deadly.blobs(open_store(str(place)))
        telemetry = _Steps(say, deadly.step)
        launch = _launch(blobs, *VARIANTS[variant], deadly.evaluator(LocalEvaluator()), telemetry)
        say(f"done {make_version(launch, _Saying(say)).version}")

    return work


def _launch(
    blobs: BlobStore,
    recipe_class: type[Recipe],
    fields: Mapping[str, Any],
    evaluator: Evaluator,
    telemetry: NoopTelemetry,
) -> Launch:
    trainer = LiveTrainer(TrlTrainer(device="cpu", threads=1))
    ports = Ports(trainer, blobs, SourceDatasets(), evaluator, StoreRegistry(blobs), telemetry)
    recipe = bind(recipe_class, fields, RecipeDefinition(name=recipe_class.method))
    return Launch(recipe, ports, run_id=str(time.monotonic_ns()))


class _Steps(NoopTelemetry):
    """Says each optimiser step."""

    def __init__(self, say: Say, on_step: Callable[[], None] = lambda: None) -> None:
        self._say = say
        self._on_step = on_step

    def emit(self, event: str, measurements: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        if event == "training.step":
            self._say(f"step {metadata['epoch']} {metadata['step']}")
            self._on_step()


def states(place: Path | str) -> dict[int, str]:
    """State digest of each checkpoint that exists, by step."""
    store = CheckpointStore(open_store(str(place)))
    return {e.step: e.state_digest for run in store.find("") for e in store.head(run).entries()}


def end_of(place: Path | str) -> End:
    """What is in a store now."""
    blobs = open_store(str(place))
    checkpoints, registry = CheckpointStore(blobs), StoreRegistry(blobs)
    entries = [entry for run in checkpoints.find("") for entry in checkpoints.head(run).entries()]
    names = sorted({key.split("/")[1] for key in blobs.list("registry/")})
    return End(
        states={entry.step: entry.state_digest for entry in entries},
        whole=frozenset(entry.step for entry in entries if entry.payload == "present"),
        versions=tuple(
            (v.name, v.version, v.fingerprint, v.step, v.state_digest, v.model.digest, v.metrics, v.base_metrics)
            for name in names
            for v in registry.versions(name)
        ),
        candidate={name: registry.alias(name, "candidate") for name in names},
    )


def undisturbed(place: Path | str, variant: str) -> tuple[End, float]:
    """What a run that nothing disturbs ends in, and about how long it takes, in seconds."""
    started = time.monotonic()
    with forked(register(place, variant)) as child:
        lines = child.rest()
        assert child.wait() == 0, lines
    end = end_of(place)
    assert (len(end.versions), list(end.candidate.values())) == (1, [1])
    return end, time.monotonic() - started


def check_named_points(stores: Callable[[str], Path | str], variant: str, expected: End) -> int:
    """Kill a run at each named point and run it to its end, in a store of its own each time.

    Returns:
        The steps that were made again.
    """
    again = 0
    for point in POINTS:
        store = stores(point)
        with forked(register(store, variant, point)) as child:
            lines = child.rest()
            assert child.wait() == -signal.SIGKILL, (point, lines[-3:])
        between = end_of(store)
        assert published_by(lines).items() <= between.states.items(), point
        with forked(register(store, variant)) as child:
            rest = child.rest()
            assert (child.wait(), rest[-1]) == (0, "done 1"), (point, rest[-3:])
        assert end_of(store) == expected, point
        assert published_by(rest).keys().isdisjoint(between.states), point
        steps = steps_of(lines) + steps_of(rest)
        again += len(steps) - len(set(steps))
    return again


def steps_of(lines: list[str]) -> list[str]:
    """The optimiser steps that a child did."""
    return [line.removeprefix("step ") for line in lines if line.startswith("step ")]


def published_by(lines: list[str]) -> dict[int, str]:
    """State digests that a child published, by step."""
    found = (line.split() for line in lines if line.startswith("published "))
    return {int(step): digest for _, step, digest in found}


def campaign(
    stores: Callable[[str], Path | str], variant: str, kills: int, chance: random.Random, where: str
) -> Tally:
    """Kill one variant at random moments until it was killed so often, each store run to its end and compared.

    Args:
        stores: The place of a store of each name.
        variant: What to train.
        kills: How often at least.
        chance: Chooses the moments.
        where: Name of the kind of store.
    """
    expected, seconds = undisturbed(stores("undisturbed"), variant)
    tally = Tally(where)
    while tally.kills < kills:
        store = stores(f"round-{tally.resumes + 1}")
        published: dict[int, str] = {}
        while True:
            with forked(register(store, variant)) as child:
                if tally.kills < kills:
                    # The moment is chosen, not measured: what is asserted holds for any. Those that come after it are
                    # for the processes that go on.
                    time.sleep(chance.uniform(0, 0.7 * seconds))
                    child.kill()
                lines, status = child.rest(), child.wait()
            assert not [line for line in lines if line.startswith("failed:")], lines
            for step, digest in published_by(lines).items():
                if published.setdefault(step, digest) != digest:
                    tally.mismatches.append(f"{variant}, step {step}")
            lost = published.items() - end_of(store).states.items()
            assert not lost, f"published checkpoints were lost: {lost}"
            if status == 0:
                break
            assert status == -signal.SIGKILL
            tally.kills += 1
        tally.resumes += 1
        if end_of(store) != expected:
            tally.mismatches.append(f"{variant}, round {tally.resumes}")
    with forked(register(store, variant)) as child:
        lines = child.rest()
    assert (steps_of(lines), lines[-1]) == ([], "done 1")
    return tally
