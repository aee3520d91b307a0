"""A plain TRL script: nothing of the kitchen, only prepared Parquet and arguments written by hand.

It saves what it needs to go on after each epoch, as transformers does, and puts that on stable storage, as whoever
relies on it must.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


@dataclass(frozen=True)
class PlainTraining:
    """What a run of the plain script was.

    Attributes:
        step_ends: Moment at which each step ended, epoch by epoch, in seconds.
        seconds: Of all epochs, without loading the model and building the trainer.
        state_bytes: Size of what was saved after the last epoch.
        weights: Folder of the weights at the end.
    """

    step_ends: list[list[float]]
    seconds: float
    state_bytes: int
    weights: Path


class _Clock(TrainerCallback):
    """Notes when steps end; puts each checkpoint on stable storage."""

    def __init__(self) -> None:
        self.step_ends: list[list[float]] = []
        self.started = self.ended = 0.0
        self.saved = Path()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.step_ends.append([])

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.step_ends[-1].append(time.perf_counter())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for path in (*self.saved.iterdir(), self.saved, self.saved.parent):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended = time.perf_counter()


def train(model: Path, parquet: Path, output: Path, arguments: Mapping[str, Any]) -> PlainTraining:
    """Train a model folder on a Parquet file of `input_ids` and `labels`, on one CPU thread.

    Args:
        model: Folder of the base model.
        parquet: Prepared rows.
        output: Folder to make, for all that is written.
        arguments: Of `SFTConfig`, beside those that say where it runs.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(1)
    clock = _Clock()
    trainer = SFTTrainer(
        model=str(model),
        args=SFTConfig(
            output_dir=str(output),
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            save_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            **arguments,
        ),
        train_dataset=Dataset.from_parquet(str(parquet), cache_dir=str(output / "cache")),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return PlainTraining(
        step_ends=clock.step_ends,
        seconds=clock.ended - clock.started,
        state_bytes=sum(path.stat().st_size for path in clock.saved.iterdir()),
        weights=clock.saved,
    )
