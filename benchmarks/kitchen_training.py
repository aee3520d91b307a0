"""The kitchen's side of the comparison: a run of three epochs on the engine, with telemetry on as by default.

Epoch 2 goes on in the session of epoch 1; epoch 3 as a new process does it, from the store. Only imports stay.

    python -m benchmarks.kitchen_training ARGUMENTS.json      # as benchmarks/overhead.py runs it
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.overhead import DEVICE
from benchmarks.stopwatch import Stopwatch, Watched
from benchmarks.turns import Turns, turns_of, write_result
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.evaluation.local import NoopEvaluator
from kitchen_resources.launch import Launch
from kitchen_resources.ports import Ports
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.telemetry.console import ConsoleHandler
from kitchen_resources.telemetry.dispatch import Dispatcher
from kitchen_resources.telemetry.jsonl import JsonlHandler
from kitchen_resources.telemetry.port import Event, Handler
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.port import LocalCheckpoint
from kitchen_resources.training.run import TrainingRun
from kitchen_resources.training.trl.backend import TrlTrainer


class _TakesTurns:
    """A telemetry handler: a step has ended."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def handle(self, event: Event) -> None:
        if event.name == "training.step":
            self._turns.step_ended()

    def close(self) -> None:
        pass


class _Silent:
    """An observer whom nobody listens to."""

    def say(self, message: str) -> None:
        pass

    def published(self, entry: CheckpointEntry) -> None:
        pass


def bound(fields: Mapping[str, Any]) -> Recipe:
    """A recipe of those fields."""
    return bind(SupervisedRecipe, dict(fields), RecipeDefinition(name="overhead"))


@contextmanager
def new_process(recipe: Recipe, folder: Path, name: str, *handlers: Handler) -> Iterator[TrainingRun]:
    """A run as a process of its own would go on with it, with further telemetry handlers."""
    trainer = LiveTrainer(TrlTrainer(device=DEVICE, threads=1))
    blobs = LocalBlobs(folder / "store")
    with (folder / "console.txt").open("a", encoding="utf-8") as console:
        telemetry = Dispatcher([ConsoleHandler(console), JsonlHandler(folder / "events.jsonl"), *handlers])
        ports = Ports(
            trainer=trainer,
            blobs=blobs,
            datasets=SourceDatasets(),
            evaluator=NoopEvaluator(),
            registry=StoreRegistry(blobs),
            telemetry=telemetry,
        )
        run = TrainingRun(Launch(recipe, ports, run_id=name), _Silent())
        try:
            run.planned()
            yield run
        finally:
            trainer.discard()
            telemetry.close()


def watched() -> list[Watched]:
    """Where the seconds and bytes between two epochs go."""
    from transformers import Trainer

    from kitchen_resources.checkpoints import store
    from kitchen_resources.training.pytorch.state import TRAINING_STATE
    from kitchen_resources.training.trl import session, trainer

    def resumed(arguments: tuple[Any, ...], target: Path) -> Mapping[str, int]:
        parent = arguments[0].folder
        converted = sum((parent / name).stat().st_size for name in TRAINING_STATE)
        rewritten = sum(path.stat().st_size for path in target.iterdir() if not path.is_symlink())
        # Optimiser, schedule and random state are read to be converted; then the Trainer reads all of it.
        return {"read": converted + _size(target), "written": rewritten}

    def published(arguments: tuple[Any, ...], entry: CheckpointEntry) -> Mapping[str, int]:
        return {"written": _size(arguments[2].folder), "published, with hashing": entry.bytes}

    def checked_out(arguments: tuple[Any, ...], checkpoint: LocalCheckpoint) -> Mapping[str, int]:
        return {"checked out, with hashing": _size(checkpoint.folder)}

    def hashed(arguments: tuple[Any, ...], digest: str) -> Mapping[str, int]:
        return {"hashed": arguments[0].stat().st_size}

    return [
        Watched(session.TrlSession, "__init__", "session"),
        Watched(session.TrlSession, "_build", "session"),
        Watched(session, "_collect", "session"),
        Watched(session, "write_resume_folder", "read", resumed),
        Watched(Trainer, "_load_from_checkpoint", "read"),
        Watched(Trainer, "_load_optimizer_and_scheduler", "read"),
        Watched(Trainer, "_load_rng_state", "read"),
        Watched(trainer, "write_weights", "written"),
        Watched(trainer, "write_training_state", "written"),
        Watched(store, "digest_file", "hashed", hashed),
        Watched(CheckpointStore, "publish", "published, with hashing", published),
        Watched(CheckpointStore, "checkout", "checked out, with hashing", checked_out),
    ]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def main(given: dict[str, Any]) -> None:
    """Train, in turns with the other process."""
    folder = Path(given["folder"])
    recipe = bound(given["recipe"])
    turns = turns_of(given)
    steps = _TakesTurns(turns)
    between: dict[str, Stopwatch] = {"live": Stopwatch(), "new process": Stopwatch()}
    with new_process(recipe, folder, "first", steps) as run:
        run.job()
        import trl  # noqa: F401  (imported by the first epoch else, while the other side waits)

        turns.begin()
        run.ensure(1)
        with between["live"].around(*watched()):
            run.ensure(2)
    with new_process(recipe, folder, "second", steps) as run, between["new process"].around(*watched()):
        run.ensure(3)
    turns.end()
    with new_process(recipe, folder, "third") as run:
        head = run.head()
        weights = CheckpointStore(LocalBlobs(folder / "store")).checkout(
            head.fingerprint, head.entries()[-1], folder / "weights"
        )
    write_result(
        given["result"],
        turns,
        weights=str(weights.folder),
        state_bytes=head.entries()[-1].bytes,
        between={name: {"seconds": watch.seconds, "bytes": watch.bytes} for name, watch in between.items()},
    )


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
