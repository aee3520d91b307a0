"""Real training killed by SIGKILL at random moments, and run again: always the states of an undisturbed run."""

import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.evaluation.local import LocalEvaluator
from kitchen_resources.launch import Launch
from kitchen_resources.ports import Ports
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.telemetry.dispatch import NoopTelemetry
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.run import TrainingRun
from kitchen_resources.training.trl.backend import TrlTrainer
from tests.faults.forked import Say, forked

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
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "LoRA, dropout, step checkpoints": {"lora": {"rank": 4, "dropout": 0.1}, "checkpoint_steps": 4},
    "evaluation, best, step checkpoints": {
        "checkpoint_steps": 5,
        "select": "best",
        "evaluations": [{"max_tokens": 3, "samples": 4}],
    },
}


def import_everything() -> None:
    """Import what the children need, so that a child starts in milliseconds; no tensor is touched before the fork."""
    import datasets
    import peft
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM
    from trl import SFTConfig, SFTTrainer

    assert all((datasets, peft, trl, AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM, SFTConfig, SFTTrainer))


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


def _train(root: Path, fields: Mapping[str, Any]) -> Callable[[Say], None]:
    def work(say: Say) -> None:
        blobs = LocalBlobs(root)
        trainer = LiveTrainer(TrlTrainer(device="cpu", threads=1))
        ports = Ports(trainer, blobs, SourceDatasets(), LocalEvaluator(), StoreRegistry(blobs), NoopTelemetry())
        recipe = bind(SupervisedRecipe, {**BASE, **fields}, RecipeDefinition(name="supervised"))
        run = TrainingRun(Launch(recipe, ports, run_id=str(time.monotonic_ns())), _Saying(say))
        for epoch in run.planned().missing:
            run.ensure(epoch)
        finished = run.finish()
        trainer.discard()
        say(f"done {finished.steps_done}")

    return work


def states(root: Path) -> dict[int, str]:
    """State digest of each checkpoint that exists, by step."""
    store = CheckpointStore(LocalBlobs(root))
    return {e.step: e.state_digest for run in store.find("") for e in store.head(run).entries()}


def undisturbed(root: Path, fields: Mapping[str, Any]) -> tuple[dict[int, str], float]:
    """The states of a run that nothing disturbs, and about how long it takes, in seconds."""
    started = time.monotonic()
    with forked(_train(root, fields)) as child:
        lines = child.rest()
        assert child.wait() == 0, lines
    return states(root), time.monotonic() - started


def campaign(folder: Path, variant: str, kills: int, chance: random.Random) -> Tally:
    """Kill one variant at random moments until it was killed so often, each store run to its end and compared."""
    fields = VARIANTS[variant]
    expected, seconds = undisturbed(folder / "undisturbed", fields)
    tally = Tally()
    round_number = 0
    while tally.kills < kills:
        round_number += 1
        root = folder / f"round-{round_number}"
        published: dict[int, str] = {}
        while True:
            with forked(_train(root, fields)) as child:
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
        with forked(_train(root, fields)) as child:
            assert child.rest()[-1] == "done 0"
        shutil.rmtree(root)
    return tally
