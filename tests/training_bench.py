"""A bench for trainers: one small job for any backend, and a store of checkpoints as folders."""

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kitchen_resources.blobs.content import StoredFile
from kitchen_resources.checkpoints.manifest import state_digest
from kitchen_resources.datasets.port import LocalDataset
from kitchen_resources.digests import canonical_json, digest_bytes, digest_file, digest_json
from kitchen_resources.embedded.tokenizer import PAD_ID, TURN_END_ID
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.base_models import resolve_base
from kitchen_resources.training.plan import make_plan
from kitchen_resources.training.port import (
    CheckpointDraft,
    EpochResult,
    LocalCheckpoint,
    StepMetrics,
    Trainer,
    TrainingJob,
)

ROWS = 10
ROW_IDS = [100 + 7 * index for index in range(ROWS)]
"""Ids that are no positions, as when rows were dropped."""

SMALL: Mapping[str, Any] = {
    "model": "embedded:tiny",
    "dataset": "rows",
    "epochs": 2,
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 3.0e-3,
    "lr_schedule": "cosine",
    "warmup_steps": 1,
    "max_length": 64,
    "precision": "fp32",
}
"""Ten rows, four a step: three steps an epoch, of which the last is short."""


def write_training_rows(path: Path) -> dict[int, int]:
    """Prepared rows in a Parquet file; returns the learned tokens of each by row id."""
    import pyarrow
    import pyarrow.parquet

    generator = random.Random(1)
    tokens = [[generator.randrange(32, 127) for _ in range(generator.randrange(4, 20))] for _ in range(ROWS)]
    labels = [[-100, -100, *row[2:]] for row in tokens]
    ids = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([("row_id", pyarrow.int64()), ("input_ids", ids), ("labels", ids)])
    table = pyarrow.table({"row_id": ROW_IDS, "input_ids": tokens, "labels": labels}, schema=schema)
    pyarrow.parquet.write_table(table, path)
    return {row_id: len(row) - 2 for row_id, row in zip(ROW_IDS, tokens, strict=True)}


@dataclass
class Shelf:
    """The `TrainingEvents` of a run: checkpoints as folders that nobody writes again, and all that was reported.

    Attributes:
        folder: Where the checkpoints are put.
        fail_at: A step whose report fails, as when the lease is lost; 0 for none.
        stop_after: After how many steps that no checkpoint follows the run is asked to stop; 0 for never.
    """

    folder: Path
    fail_at: int = 0
    steps: list[StepMetrics] = field(default_factory=list)
    drafts: dict[int, CheckpointDraft] = field(default_factory=dict)
    checkpoints: dict[int, LocalCheckpoint] = field(default_factory=dict)
    parent: int = 0
    stop_after: int = 0
    asked: int = 0
    exact: bool = True

    def step(self, metrics: StepMetrics) -> None:
        if metrics.global_step == self.fail_at:
            raise TakenOver
        self.steps.append(metrics)

    def checkpoint(self, draft: CheckpointDraft) -> LocalCheckpoint:
        target = self.folder / f"step-{draft.global_step}"
        files = {}
        target.mkdir(parents=True)
        for name in [*draft.state_files, *draft.other_files]:
            shutil.copyfile(draft.folder / name, target / name)
            (target / name).chmod(0o444)
            sha256 = digest_file(target / name)
            files[name] = StoredFile(sha256, (target / name).stat().st_size, name in draft.state_files)
        ledger = digest_bytes(canonical_json([list(step) for step in draft.row_ids]))
        cursor = (draft.epoch, draft.global_step, draft.steps_into_epoch)
        self.drafts[draft.global_step] = draft
        self.checkpoints[draft.global_step] = LocalCheckpoint(
            folder=target,
            epoch=draft.epoch,
            global_step=draft.global_step,
            steps_into_epoch=draft.steps_into_epoch,
            epoch_complete=draft.epoch_complete,
            state_digest=state_digest(files, ledger, cursor),
        )
        if self.asked == self.stop_after > 0:
            raise Stopped
        return self.checkpoints[draft.global_step]

    def stopping(self, *, exact: bool) -> bool:
        self.asked += 1
        if self.asked != self.stop_after:
            return False
        self.exact = exact
        if not exact:
            raise Stopped
        return True

    def check(self) -> None:
        pass

    def earlier_rows(self) -> Sequence[Sequence[int]]:
        draft = self.drafts.get(self.parent)
        return [] if draft is None or draft.epoch_complete else draft.row_ids

    def earlier_steps(self) -> Sequence[StepMetrics]:
        draft = self.drafts.get(self.parent)
        return [] if draft is None or draft.epoch_complete else draft.steps

    def digests(self) -> dict[int, str]:
        """State digest of each checkpoint by step."""
        return {step: checkpoint.state_digest for step, checkpoint in self.checkpoints.items()}


class Stopped(BaseException):
    """Raised to a session that was asked to stop, once it has published."""


class TakenOver(Exception):
    """Raised to a session by the events."""


class Bench:
    """Makes jobs for one backend, and trains them epoch by epoch."""

    def __init__(self, trainer: Trainer, folder: Path, fields: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.trainer = trainer
        self.fields = fields
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.rows = folder / "rows.parquet"
        self.learned = write_training_rows(self.rows)
        self._attempts = 0

    def job(self, **fields: Any) -> TrainingJob:
        recipe = bind(SupervisedRecipe, {**SMALL, **self.fields, **fields}, RecipeDefinition(name="small"))
        base = resolve_base(recipe.model, self.folder / "cache")
        self._attempts += 1
        scratch = self.folder / f"scratch-{self._attempts}"
        scratch.mkdir()
        moving = {name: value for name, value in fields.items() if name != "checkpoint_steps"}
        return TrainingJob(
            fingerprint=digest_json(moving),
            recipe=recipe,
            resolution=self.trainer.resolve(recipe, base),
            base=base,
            data=LocalDataset(self.rows, ROWS, packed=False, pad_token_id=PAD_ID, stop_token_ids=(TURN_END_ID,)),
            plan=make_plan(recipe, ROWS),
            scratch=scratch,
        )

    def shelf(self, **how: Any) -> Shelf:
        self._attempts += 1
        return Shelf(self.folder / f"shelf-{self._attempts}", **how)

    def train(
        self,
        job: TrainingJob,
        shelf: Shelf,
        epochs: Sequence[int] = (1, 2),
        parent: LocalCheckpoint | None = None,
    ) -> list[EpochResult]:
        """Train epochs in one session, which is closed in the end."""
        session = self.trainer.open(job)
        results = []
        try:
            for epoch in epochs:
                shelf.parent = parent.global_step if parent else 0
                results.append(session.train_epoch(epoch, parent, shelf))
                parent = results[-1].checkpoint
        finally:
            session.close()
        return results
