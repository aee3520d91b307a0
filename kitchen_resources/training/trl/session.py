"""A TRL session: one epoch a call, always from its parent's verified files, in the calling thread."""

import gc
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kitchen_resources.errors import BackendError
from kitchen_resources.training.attempt import EpochAttempt
from kitchen_resources.training.ledger import RowPlan
from kitchen_resources.training.port import (
    EpochResult,
    LocalCheckpoint,
    TrainingEvents,
    TrainingJob,
)
from kitchen_resources.training.pytorch.export import export_model
from kitchen_resources.training.pytorch.failures import errors_named
from kitchen_resources.training.pytorch.importing import import_trainer_libraries
from kitchen_resources.training.pytorch.models import load_for_training, lora_config, quiet_libraries
from kitchen_resources.training.pytorch.state import load_weights
from kitchen_resources.training.trl import distillation, preference, reinforcement, supervised
from kitchen_resources.training.trl.arguments import training_arguments
from kitchen_resources.training.trl.callbacks import EpochWatch
from kitchen_resources.training.trl.resume import write_resume_folder

METHODS: Mapping[str, Any] = {
    "supervised": supervised,
    "preference": preference,
    "reinforcement": reinforcement,
    "distillation": distillation,
}
"""The module of each method that TRL trains here; they have the same functions."""


class TrlSession:
    """See the module. What it keeps between epochs is no state: imports, and the prepared rows.

    Args:
        job: What to train.
        exact_inside: Whether a run can go on exactly from inside an epoch.
    """

    def __init__(self, job: TrainingJob, *, exact_inside: bool) -> None:
        import_trainer_libraries()
        import datasets
        import torch
        import transformers

        self._job = job
        self._exact_inside = exact_inside
        self._method = METHODS[job.recipe.method]
        self._threads = torch.get_num_threads()
        torch.set_num_threads(job.resolution.threads)
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
        columns = self._method.columns(job)
        # What a failed attempt of this process has left: its model must not wait for the end of the next epoch.
        gc.collect()
        # In memory and not through the `datasets` cache, which would lie outside the store.
        self._rows = datasets.Dataset(_read_columns(job.data.path, columns))
        self._row_column = columns[-1]
        self._row_plan = RowPlan(job.recipe, job.plan, job.data)
        self._setup = self._method.Setup(job, self._rows)

    def train_epoch(self, epoch: int, parent: LocalCheckpoint | None, events: TrainingEvents) -> EpochResult:
        """See `Session.train_epoch`."""
        planned = self._row_plan.of_epoch(epoch)
        attempt = EpochAttempt(self._job, epoch, events, planned, exact_inside=self._exact_inside)
        folder = self._job.scratch / f"epoch-{epoch}-{uuid.uuid4().hex[:8]}"
        try:
            with quiet_libraries(), errors_named(self._job, epoch), _trainer_freed():
                self._train(attempt, epoch, parent, folder)
        finally:
            # The folder of the parent goes only now: it may be the one that the last epoch published.
            for old in self._job.scratch.glob("epoch-*"):
                if old != folder:
                    shutil.rmtree(old, ignore_errors=True)
        if attempt.published is None or not attempt.published.epoch_complete:
            raise BackendError("the trainer ended before the epoch did", where=f"epoch {epoch}")
        return EpochResult(attempt.published, attempt.steps_done)

    def export(self, checkpoint: LocalCheckpoint, target: Path, *, merged: bool) -> None:
        """See `Session.export`."""
        export_model(self._job.base, self._job.serving(), checkpoint, target, merged=merged)

    def close(self) -> None:
        """See `Session.close`."""
        import torch

        self._rows = None
        self._setup.close()
        torch.set_num_threads(self._threads)

    def _train(self, attempt: "EpochAttempt", epoch: int, parent: LocalCheckpoint | None, folder: Path) -> None:
        trainer = self._build(epoch, attempt, folder)
        resume = None
        if parent is not None and (parent.restart == "weights" or "fsdp" in self._job.resolution.values):
            load_weights(parent.folder, trainer.model)
        if parent is not None and parent.restart != "weights":
            resume = str(write_resume_folder(parent, folder / "resume", batch_size=self._job.recipe.batch_size))
        trainer.train(resume_from_checkpoint=resume)

    def _build(self, epoch: int, attempt: "EpochAttempt", folder: Path) -> Any:
        from accelerate.state import AcceleratorState
        from transformers import PrinterCallback

        job = self._job
        # The state is one a process, and keeps the precision of an earlier run in it.
        AcceleratorState._reset_state(reset_partial_state=True)
        arguments = training_arguments(
            self._method.config_class(job.recipe),
            job.recipe,
            job.resolution,
            job.plan,
            folder,
            self._method.method_arguments(job),
        )
        assert job.base.folder is not None
        trainer = self._method.trainer_class(job.recipe)(
            model=self._setup.prepare(load_for_training(job.base.folder, job.recipe, job.resolution)),
            args=arguments,
            train_dataset=self._setup.rows,
            processing_class=_tokenizer(job.base.folder, job.data.pad_token_id),
            peft_config=lora_config(job.recipe),
            **self._setup.inputs(),
        )
        self._setup.attach(trainer, epoch)
        trainer.adopt(job.recipe, job.plan, self._row_column, attempt.save)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(
            EpochWatch(trainer, job.recipe, job.plan, epoch, attempt.step, attempt.stopping, self._method.METRICS)
        )
        return trainer


def _read_columns(path: Path, columns: list[str]) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path, columns=columns, memory_map=True)


def _tokenizer(folder: Path, pad_token_id: int) -> Any:
    """The base's tokenizer; TRL wants one for its pad token, the rows themselves come tokenized."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if tokenizer.pad_token_id != pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id)
    return tokenizer


@contextmanager
def _trainer_freed() -> Iterator[None]:
    """Free a trainer with its model: it is part of a reference cycle, and two models in memory are one too many.

    What was there before is left out of the collections until then. transformers asks for one in every epoch too,
    and with all libraries loaded each took 0.6 s.
    """
    gc.freeze()
    try:
        yield
    finally:
        _collect()
        gc.unfreeze()


def _collect() -> None:
    gc.collect()
