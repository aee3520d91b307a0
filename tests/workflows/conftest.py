"""A store, a Dagster instance and a Python door for each test; models and rows of the embedded default."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from plain import PlainTrainer

import kitchen_assets as kitchen
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.store import CheckpointStore

SMALL: dict[str, Any] = {
    "max_rows": 220,
    "epochs": 3,
    "batch_size": 16,
    "learning_rate": 3.0e-3,
    "warmup_ratio": None,
    "held_out": "0.1",
    "evaluations": [],
    "eval_every": 0,
}
"""A run of 3 epochs of 13 steps, the last with 6 rows of 16: 198 rows to train on, 22 held out."""


@dataclass
class Bench:
    """What a test works with.

    Attributes:
        root: Folder of the store.
        folder: Folder of the test.
        instance: Dagster instance of the test.
    """

    root: Path
    folder: Path
    instance: dg.DagsterInstance

    @property
    def blobs(self) -> LocalBlobs:
        """The store."""
        return LocalBlobs(self.root)

    @property
    def checkpoints(self) -> CheckpointStore:
        """The checkpoints in it."""
        return CheckpointStore(self.blobs)

    def resources(self, **others: Any) -> dict[str, Any]:
        """Run config of the ports: this store, a quiet console, one thread."""
        return {
            "blobs": {"store": {"local": {"path": str(self.root)}}},
            "telemetry": {"console": False},
            "trainer": {"backend": {"trl": {"threads": 1}}},
            **others,
        }

    def run(self, config: dict[str, Any] | None = None, **others: Any) -> kitchen.RunResult:
        """Run the supervised recipe on few rows."""
        return kitchen.run(
            "supervised", {**SMALL, **(config or {})}, self.resources(**others), instance=self.instance
        )

    def weights(self, fingerprint: str, step: int | None = None) -> Path:
        """Folder of a checkpoint's files; the newest by default."""
        head = self.checkpoints.head(fingerprint)
        entry = head.entries()[-1] if step is None else head.at(step)
        assert entry is not None
        target = self.folder / f"weights-{fingerprint[:8]}-{entry.step}"
        return self.checkpoints.checkout(fingerprint, entry, target).folder

    def prepared(self) -> Path:
        """The Parquet that training read, when only one data set was prepared."""
        (key,) = self.blobs.list("prepared/")
        stored = self.blobs.get(key)
        assert stored is not None
        value = json.loads(stored.data)
        path = self.folder / "prepared.parquet"
        if not path.exists():
            self.checkpoints.content.get_file((value["packs"] or value["train"])["blob"], path)
        return path

    def embedded_model(self) -> Path:
        """The embedded model's folder, in use by the runs of this store."""
        (folder,) = (self.blobs.scratch() / "cache" / "models").glob("embedded-tiny-*")
        return folder


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A new store and instance."""
    with dg.DagsterInstance.ephemeral(tempdir=str(_made(tmp_path / "dagster"))) as instance:
        yield Bench(tmp_path / "store", tmp_path, instance)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainTrainer]:
    """The plain TRL script, ready to train."""
    trainer = PlainTrainer(tmp_path_factory.mktemp("plain") / "log.txt")
    yield trainer
    trainer.close()


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows to a JSONL file of the test."""

    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
