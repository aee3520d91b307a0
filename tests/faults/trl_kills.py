"""Real training killed by SIGKILL at random moments, and run again: always the states of an undisturbed run."""

import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.resource import open_store
from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.evaluation.local import LocalEvaluator
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
from tests import letters
from tests.faults.forked import Say, forked

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
STEPS = 26
VARIANTS: Mapping[str, tuple[type[Recipe], Mapping[str, Any]]] = {
    "full": (SupervisedRecipe, BASE),
    "LoRA, dropout, step checkpoints": (
        SupervisedRecipe,
        {**BASE, "lora": {"rank": 4, "dropout": 0.1}, "checkpoint_steps": 4},
    ),
    "evaluation, best, step checkpoints": (
        SupervisedRecipe,
        {
            **BASE,
            "checkpoint_steps": 5,
            "select": "best",
            "evaluations": [{"max_tokens": 3, "samples": 4}],
        },
    ),
    "preference": (PreferenceRecipe, {**PREFERENCE, "checkpoint_steps": 5, "precompute_reference": True}),
    "reinforcement": (ReinforcementRecipe, {**REINFORCEMENT, "ppo_epochs": 2, "kl_coef": 0.1}),
    "distillation": (DistillationRecipe, {**DISTILLATION, "lora": {"rank": 4, "dropout": 0.1}, "mode": "logit"}),
    "distillation on policy": (DistillationRecipe, {**DISTILLATION, "mode": "on_policy"}),
}


def import_everything() -> None:
    """Import what the children need, so that a child starts in milliseconds; no tensor is touched before the fork."""
    import datasets
    import peft
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM
    from trl import DistillationTrainer, DPOTrainer, GRPOTrainer, SFTTrainer

    assert all((datasets, peft, trl, AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM))
    assert all((DistillationTrainer, DPOTrainer, GRPOTrainer, SFTTrainer))
    letters.register()


@dataclass
class Tally:
    """What a campaign did."""

    kills: int = 0
    resumes: int = 0
    steps: int = 0
    mismatches: list[str] = field(default_factory=list)

    def line(self) -> str:
        return f"trl: {self.kills} kills, {self.resumes} resumes, {len(self.mismatches)} mismatches, 0 lost"


class _Saying:
    def __init__(self, say: Say) -> None:
        self._say = say

    def say(self, message: str) -> None:
        self._say(f"said {message}")

    def published(self, entry: CheckpointEntry) -> None:
        self._say(f"published {entry.step} {entry.state_digest}")


def train(root: Path | str, recipe_class: type[Recipe], fields: Mapping[str, Any]) -> Callable[[Say], None]:
    """What a child does: make all epochs of a run in a store exist. It says each step, and what is published."""

    def work(say: Say) -> None:
        blobs = open_store(str(root))
        trainer = LiveTrainer(TrlTrainer(device="cpu", threads=1))
        ports = Ports(trainer, blobs, SourceDatasets(), LocalEvaluator(), StoreRegistry(blobs), _Steps(say))
        recipe = bind(recipe_class, fields, RecipeDefinition(name=recipe_class.method))
        run = TrainingRun(Launch(recipe, ports, run_id=str(time.monotonic_ns())), _Saying(say))
        for epoch in run.planned().missing:
            run.ensure(epoch)
        finished = run.finish()
        trainer.discard()
        say(f"done {finished.steps_done}")

    return work


class _Steps(NoopTelemetry):
    """Says each optimiser step."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def emit(self, event: str, measurements: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        if event == "training.step":
            self._say(f"step {metadata['epoch']} {metadata['step']}")


def states(root: Path | str) -> dict[int, str]:
    """State digest of each checkpoint that exists, by step."""
    store = CheckpointStore(open_store(str(root)))
    return {e.step: e.state_digest for run in store.find("") for e in store.head(run).entries()}


def undisturbed(root: Path, recipe_class: type[Recipe], fields: Mapping[str, Any]) -> tuple[dict[int, str], float]:
    """The states of a run that nothing disturbs, and about how long it takes, in seconds."""
    started = time.monotonic()
    with forked(train(root, recipe_class, fields)) as child:
        lines = child.rest()
        assert child.wait() == 0, lines
    return states(root), time.monotonic() - started


def campaign(folder: Path, variant: str, kills: int, chance: random.Random) -> Tally:
    """Kill one variant at random moments until it was killed so often, each store run to its end and compared."""
    recipe_class, fields = VARIANTS[variant]
    expected, seconds = undisturbed(folder / "undisturbed", recipe_class, fields)
    tally = Tally()
    round_number = 0
    while tally.kills < kills:
        round_number += 1
        root = folder / f"round-{round_number}"
        published: dict[int, str] = {}
        while True:
            with forked(train(root, recipe_class, fields)) as child:
                # The moment is chosen, not measured: what is asserted holds for any.
                time.sleep(chance.uniform(0, 1.1 * seconds))
                child.kill()
                lines, status = child.rest(), child.wait()
            assert not [line for line in lines if line.startswith("failed:")], lines
            for line in lines:
                if line.startswith("published "):
                    _, step, digest = line.split()
                    if published.setdefault(int(step), digest) != digest:
                        tally.mismatches.append(f"{variant}, step {step}")
            lost = published.items() - states(root).items()
            assert not lost, f"published checkpoints were lost: {lost}"
            if status == 0:
                break
            assert status == -signal.SIGKILL
            tally.kills += 1
        tally.resumes += 1
        if states(root) != expected:
            tally.mismatches.append(f"{variant}, round {round_number}")
        with forked(train(root, recipe_class, fields)) as child:
            assert child.rest()[-1] == "done 0"
        shutil.rmtree(root)
    return tally
