"""A plain TRL script: nothing of the kitchen, only the prepared Parquet and arguments written by hand.

Usage: python plain_trl.py ARGUMENTS.json
ARGUMENTS: {model, parquet, output, sft: {…}, lora: {…} | null, threads}
"""

import json
import os
import sys

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

given = json.load(open(sys.argv[1]))
torch.set_num_threads(given["threads"])
rows = Dataset.from_parquet(given["parquet"], keep_in_memory=True, cache_dir=given["output"] + "-cache")
trainer = SFTTrainer(
    model=given["model"],
    args=SFTConfig(
        output_dir=given["output"] + "-trainer",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        **given["sft"],
    ),
    train_dataset=rows,
    peft_config=LoraConfig(**given["lora"]) if given["lora"] else None,
)
trainer.train()
trainer.model.save_pretrained(given["output"])
