"""A TRL session: one epoch a call, always from its parent's verified files, in the calling thread."""

import gc
import math
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kitchen_resources.errors import BackendError, CheckpointError, KitchenError, OutOfMemory
from kitchen_resources.training.ledger import RowPlan, require_planned
from kitchen_resources.training.port import (
    CheckpointDraft,
    EpochResult,
    LocalCheckpoint,
    StepMetrics,
    TrainingEvents,
    TrainingJob,
)
from kitchen_resources.training.trl import distillation, preference, reinforcement, supervised
from kitchen_resources.training.trl.arguments import training_arguments
from kitchen_resources.training.trl.callbacks import EpochWatch
from kitchen_resources.training.trl.export import export_model
from kitchen_resources.training.trl.models import load_for_training, lora_config, quiet_libraries
from kitchen_resources.training.trl.state import load_weights, write_resume_folder
from kitchen_resources.training.trl.trainer import SavedState

# What torch says on a CPU; there it has no class of its own for it.
_OUT_OF_HOST_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc")

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
        attempt = _EpochAttempt(self._job, epoch, events, planned, exact_inside=self._exact_inside)
        folder = self._job.scratch / f"epoch-{epoch}-{uuid.uuid4().hex[:8]}"
        try:
            with quiet_libraries(), _errors_named(self._job, epoch), _trainer_freed():
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

    def _train(self, attempt: "_EpochAttempt", epoch: int, parent: LocalCheckpoint | None, folder: Path) -> None:
        trainer = self._build(epoch, attempt, folder)
        resume = None
        if parent is not None and parent.restart == "weights":
            load_weights(parent, trainer.model)
        elif parent is not None:
            resume = str(write_resume_folder(parent, folder / "resume", batch_size=self._job.recipe.batch_size))
        trainer.train(resume_from_checkpoint=resume)

    def _build(self, epoch: int, attempt: "_EpochAttempt", folder: Path) -> Any:
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


class _EpochAttempt:
    """What one call of `train_epoch` has received, done and published."""

    def __init__(
        self, job: TrainingJob, epoch: int, events: TrainingEvents, expected: list[list[int]], *, exact_inside: bool
    ) -> None:
        self._job = job
        self._exact_inside = exact_inside
        self._epoch = epoch
        self._events = events
        self._expected = expected
        self._rows = [list(step) for step in events.earlier_rows()]
        self._steps = list(events.earlier_steps())
        self.steps_done = 0
        self.published: LocalCheckpoint | None = None
        self._drafted: Path | None = None
        self._started_at = (epoch - 1) * job.plan.steps_per_epoch

    def step(self, metrics: StepMetrics, rows: list[int]) -> None:
        """An optimiser step is done."""
        self._rows.append(rows)
        self._steps.append(metrics)
        self.steps_done += 1
        self._require_planned_rows(metrics.global_step)
        self._events.step(metrics)

    def stopping(self) -> bool:
        """Whether the step that has just ended is to be saved, because the run is to stop."""
        return self._events.stopping(exact=self._exact_inside)

    def save(self, saved: SavedState) -> None:
        """A checkpoint's files are written."""
        into_epoch = len(self._rows)
        step = self._started_at + into_epoch
        complete = step == self._job.plan.last_step(self._epoch)
        draft = CheckpointDraft(
            folder=saved.folder,
            state_files=saved.state_files,
            other_files=saved.other_files,
            epoch=self._epoch,
            global_step=step,
            steps_into_epoch=into_epoch,
            epoch_complete=complete,
            row_ids=[list(step) for step in self._rows],
            metrics=epoch_metrics(self._steps),
            steps=list(self._steps),
            records=saved.records,
        )
        self.published = self._events.checkpoint(draft)
        if self._drafted is not None:
            # The files of the one before are the store's now; a link here would keep the space of what is pruned.
            shutil.rmtree(self._drafted, ignore_errors=True)
        self._drafted = saved.folder

    def _require_planned_rows(self, global_step: int) -> None:
        """As soon as a step is done, and not only when its epoch would be published."""
        index = len(self._rows) - 1
        if global_step != self._started_at + index + 1:
            raise CheckpointError(
                f"the trainer counts it as step {global_step}",
                where=f"epoch {self._epoch}, step {self._started_at + index + 1}",
                fix="report this: the trainer did not go on from where the checkpoint ends",
            )
        # The steps before it were looked at in their turn.
        if index >= len(self._expected) or sorted(self._rows[index]) != sorted(self._expected[index]):
            require_planned(self._expected, self._rows, epoch=self._epoch, first_step=self._started_at + 1)


def epoch_metrics(steps: list[StepMetrics]) -> dict[str, float]:
    """Numbers of an epoch so far: loss as the mean per trained token, sums of tokens and seconds, peaks of memory.

    What else the method logs is the mean over the steps that have it.
    """
    further: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.extra.items():
            further.setdefault(name, []).append(value)
    tokens = sum(step.tokens for step in steps)
    seconds = sum(step.seconds for step in steps)
    weighted = sum(step.loss * step.tokens for step in steps)
    return {
        **{name: math.fsum(values) / len(values) for name, values in further.items()},
        "loss": weighted / tokens if tokens else steps[-1].loss,
        "last_loss": steps[-1].loss,
        "learning_rate": steps[-1].learning_rate,
        "grad_norm": steps[-1].grad_norm,
        "tokens": float(tokens),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "peak_host_memory_bytes": float(max(step.host_memory_bytes for step in steps)),
        "peak_device_memory_bytes": float(max(step.device_memory_bytes for step in steps)),
    }


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


@contextmanager
def _errors_named(job: TrainingJob, epoch: int) -> Iterator[None]:
    """Turn what the libraries raise into errors that say what to do."""
    import torch

    where = f"epoch {epoch}"
    try:
        yield
    except KitchenError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(job, where, error) from error
    except (RuntimeError, ValueError) as error:
        if any(sign in str(error) for sign in _OUT_OF_HOST_MEMORY):
            raise _out_of_memory(job, where, error) from error
        raise BackendError(f"{type(error).__name__}: {error}", where=where) from error


def _out_of_memory(job: TrainingJob, where: str, error: BaseException) -> OutOfMemory:
    recipe = job.recipe
    tips = [f"lower batch_size ({recipe.batch_size}) and raise gradient_accumulation_steps by as much"]
    tips.append(f"lower max_length ({recipe.max_length})")
    if not recipe.gradient_checkpointing:
        tips.append("set gradient_checkpointing: true")
    if recipe.lora is None:
        tips.append("train a LoRA (lora: {rank: 16})")
    first_line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return OutOfMemory(
        f"{job.resolution.device} ran out of memory: {first_line}",
        where=where,
        fix="; or ".join(tips) + "; what is published stays, and the run goes on from there",
    )
