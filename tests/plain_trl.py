"""A plain TRL script: nothing of the kitchen, only the prepared Parquet and arguments written by hand.

Reads paths of JSON files from standard input, a line each, with {model, parquet, output, sft, lora, threads}, and answers
each with a line: its exit status. Each is trained in a process of its own, which is forked when the libraries are
imported and nothing else has been done.
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


# What the libraries print is no answer.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        train(json.loads(Path(line.strip()).read_text()))
        sys.exit()
    print(os.waitpid(child, 0)[1], file=answers, flush=True)
