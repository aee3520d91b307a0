"""The kitchen's side of the comparison: runs on the engine, with telemetry as by default, and what their epochs cost."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.stopwatch import Stopwatch, Watched
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.evaluation.local import NoopEvaluator
from kitchen_resources.launch import Launch
from kitchen_resources.ports import Ports
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import RecipeDefinition, SupervisedRecipe
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.telemetry.dispatch import Dispatcher
from kitchen_resources.telemetry.handlers import ConsoleHandler, JsonlHandler
from kitchen_resources.telemetry.port import Event
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.run import TrainingRun
from kitchen_resources.training.trl.backend import TrlTrainer

PARTS = ("session", "read", "written", "hashed", "published", "checked out")
"""What the seconds of an epoch beside its steps go to, as far as they are told apart."""


@dataclass(frozen=True)
class KitchenEpoch:
    """One epoch.

    Attributes:
        step_ends: Moment at which each step ended, in seconds.
        started: Moment at which the epoch was asked for.
        ended: Moment at which its checkpoint existed.
        seconds: Of what is done beside the steps, by part.
        bytes: Of state read, written, hashed and published.
    """

    step_ends: list[float]
    started: float
    ended: float
    seconds: Mapping[str, float]
    bytes: Mapping[str, int]


class _Clock:
    """A telemetry handler that notes when steps end."""

    def __init__(self) -> None:
        self.step_ends: list[float] = []

    def handle(self, event: Event) -> None:
        if event.name == "training.step":
            self.step_ends.append(time.perf_counter())

    def close(self) -> None:
        pass


class _Silent:
    """An observer that nobody listens to."""

    def say(self, message: str) -> None:
        pass

    def published(self, entry: CheckpointEntry) -> None:
        pass


class KitchenTraining:
    """Runs of one recipe in a store of its own, by one process at a time.

    Args:
        folder: Of the store, and of what telemetry writes.
        fields: Of the recipe.
    """

    def __init__(self, folder: Path, fields: Mapping[str, Any]) -> None:
        self._folder = folder
        self._blobs = LocalBlobs(folder / "store")
        self._recipe = bind(SupervisedRecipe, dict(fields), RecipeDefinition(name="overhead"))
        self._clock = _Clock()
        self._processes = 0

    @contextmanager
    def process(self) -> Iterator[TrainingRun]:
        """A run as a process of its own would go on with it: nothing lives in memory but imports."""
        self._processes += 1
        trainer = LiveTrainer(TrlTrainer(device="cpu", threads=1))
        with (self._folder / "console.txt").open("a", encoding="utf-8") as console:
            telemetry = Dispatcher(
                [ConsoleHandler(console), JsonlHandler(self._folder / "events.jsonl"), self._clock]
            )
            ports = Ports(
                trainer=trainer,
                blobs=self._blobs,
                datasets=SourceDatasets(),
                evaluator=NoopEvaluator(),
                registry=StoreRegistry(self._blobs),
                telemetry=telemetry,
            )
            run = TrainingRun(Launch(self._recipe, ports, run_id=f"process-{self._processes}"), _Silent())
            try:
                run.planned()
                yield run
            finally:
                trainer.discard()
                telemetry.close()

    def parquet(self) -> Path:
        """The prepared rows."""
        with self.process() as run:
            return run.job().data.path

    def epoch(self, run: TrainingRun, epoch: int) -> KitchenEpoch:
        """Train an epoch, watched."""
        self._clock.step_ends = []
        watch = Stopwatch()
        with watch.around(*_watched()):
            started = time.perf_counter()
            run.ensure(epoch)
            ended = time.perf_counter()
        return KitchenEpoch(self._clock.step_ends, started, ended, _apart(watch.seconds), dict(watch.bytes))

    def weights(self, run: TrainingRun) -> Path:
        """A folder with the weights of the newest checkpoint, verified."""
        store, entry = run.head(), run.head().entries()[-1]
        return self._checkout(store.fingerprint, entry)

    def _checkout(self, fingerprint: str, entry: CheckpointEntry) -> Path:
        from kitchen_resources.checkpoints.store import CheckpointStore

        target = self._folder / f"weights-{entry.step}"
        return CheckpointStore(self._blobs).checkout(fingerprint, entry, target).folder


def _watched() -> list[Watched]:
    from transformers import Trainer

    from kitchen_resources.checkpoints import store
    from kitchen_resources.training.trl import session, trainer
    from kitchen_resources.training.trl.state import TRAINING_STATE

    def resumed(arguments: tuple[Any, ...], target: Path) -> Mapping[str, int]:
        parent = arguments[0].folder
        converted = sum((parent / name).stat().st_size for name in TRAINING_STATE)
        rewritten = sum(path.stat().st_size for path in target.iterdir() if not path.is_symlink())
        # Optimiser, schedule and random state are read to be converted, and all of it is read by the Trainer.
        return {"read": converted + _size(target), "written": rewritten}

    def published(arguments: tuple[Any, ...], entry: CheckpointEntry) -> Mapping[str, int]:
        return {"written": _size(arguments[2].folder), "published": entry.bytes}

    return [
        Watched(session.TrlSession, "__init__", "session"),
        Watched(session.TrlSession, "_build", "session"),
        Watched(session.TrlSession, "_drop_trainer", "session"),
        Watched(session, "write_resume_folder", "read", resumed),
        Watched(Trainer, "_load_from_checkpoint", "read"),
        Watched(Trainer, "_load_optimizer_and_scheduler", "read"),
        Watched(Trainer, "_load_rng_state", "read"),
        Watched(trainer, "write_weights", "written"),
        Watched(trainer, "write_training_state", "written"),
        Watched(store, "digest_file", "hashed", lambda arguments, _: {"hashed": arguments[0].stat().st_size}),
        Watched(store.CheckpointStore, "publish", "published", published),
        Watched(store.CheckpointStore, "checkout", "checked out"),
        Watched(store.CheckpointStore, "_put_payload", "payload"),
    ]


def _apart(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by part with nothing counted twice: hashing happens inside of publishing and checking out."""
    return dict(seconds)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
