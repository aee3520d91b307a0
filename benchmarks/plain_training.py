"""A plain TRL script: nothing of the kitchen, only prepared Parquet and arguments written by hand.

It saves what it needs to go on after each epoch, as transformers does, and puts that on stable storage, as whoever
relies on it must.

    python -m benchmarks.plain_training ARGUMENTS.json      # as benchmarks/overhead.py runs it
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.turns import Turns, turns_of, write_result


class SavesAndTakesTurns(TrainerCallback):
    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.saved = Path()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.turns.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.turns.step_ended()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for path in (*self.saved.iterdir(), self.saved, self.saved.parent):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


ON_GPU = os.environ.get("BENCH_DEVICE", "cpu") != "cpu"
given = json.loads(Path(sys.argv[1]).read_text())
torch.set_num_threads(1)
callback = SavesAndTakesTurns(turns_of(given))
trainer = SFTTrainer(
    model=given["model"],
    args=SFTConfig(
        output_dir=given["folder"],
        use_cpu=not ON_GPU,
        model_init_kwargs={"attn_implementation": "eager"} if ON_GPU else None,
        bf16=False,
        activation_checkpointing=False,
        save_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        **given["sft"],
    ),
    train_dataset=Dataset.from_parquet(given["parquet"], cache_dir=given["folder"] + "/cache"),
    callbacks=[callback],
)
trainer.remove_callback(PrinterCallback)
trainer.train()
callback.turns.end()

assert not any(name.startswith("kitchen") for name in sys.modules), "this script is to know nothing of the kitchen"
state_bytes = sum(path.stat().st_size for path in callback.saved.iterdir())
write_result(given["result"], callback.turns, weights=str(callback.saved), state_bytes=state_bytes)
