"""A plain TRL script: nothing of the kitchen, only the prepared Parquet and arguments written by hand.

Usage: python plain_trl.py ARGUMENTS.json ..., each with {model, parquet, output, sft, lora, threads}. Each is trained in
a process of its own, which is forked when the libraries are imported and nothing else has been done.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer


def train(given: dict[str, Any]) -> None:
    torch.set_num_threads(given["threads"])
    trainer = SFTTrainer(
        model=given["model"],
        args=SFTConfig(
            output_dir=given["output"] + "-trainer",
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            save_strategy="no",
            report_to="none",
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            **given["sft"],
        ),
        train_dataset=Dataset.from_parquet(given["parquet"], cache_dir=given["output"] + "-cache"),
        peft_config=LoraConfig(**given["lora"]) if given["lora"] else None,
    )
    trainer.train()
    trainer.model.save_pretrained(given["output"])


for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        train(json.loads(Path(path).read_text()))
        sys.exit()
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"{path}: failed")
