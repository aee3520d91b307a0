"""A plain TRL script: nothing of the kitchen, only the prepared Parquet and arguments written by hand.

Usage: python plain_trl.py ARGUMENTS.json, with {model, parquet, output, sft, lora, threads}.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

given = json.loads(Path(sys.argv[1]).read_text())
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
