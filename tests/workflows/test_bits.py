"""Promise 1: the same fingerprint, the same bits, as a plain TRL script that knows nothing of the kitchen."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from plain import PlainTrainer, weights_digest

from tests.workflows.conftest import Bench

PLAIN = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 16,
    "learning_rate": 3.0e-3,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "seed": 0,
    "data_seed": 0,
}
LORA = {"rank": 8, "alpha": 16, "dropout": 0.1}
PLAIN_LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]] = {
    "dropout, accumulation, cosine with warm-up": (
        {
            "gradient_accumulation_steps": 2,
            "batch_size": 8,
            "lr_schedule": "cosine",
            "warmup_steps": 5,
            "weight_decay": 0.01,
        },
        {
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 8,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 5,
            "weight_decay": 0.01,
        },
        None,
    ),
    "LoRA, dropout, accumulation, ragged": (
        {"lora": LORA, "gradient_accumulation_steps": 2, "batch_size": 8},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8},
        PLAIN_LORA,
    ),
    "LoRA, dropout, accumulation, packing": (
        {"lora": LORA, "gradient_accumulation_steps": 2, "batch_size": 2, "packing": True, "max_length": 128},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "padding_free": True},
        PLAIN_LORA,
    ),
}
QUICK = ("LoRA, dropout, accumulation, packing",)
"""The case that has most of what the others have, which are plainer: the ones to look at when it fails."""


@pytest.mark.heavy
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.full) for case in CASES]
)
def test_a_run_has_the_bits_of_a_plain_trl_script(bench: Bench, plain: PlainTrainer, case: str) -> None:
    config, sft, lora = CASES[case]
    model = _model_with_dropout(bench) if case.startswith("dropout") else None
    config = {**config, **({"model": str(model)} if model else {})}

    result = bench.run(config)
    ours = weights_digest(bench.weights(result.fingerprint))

    written = {"model": model or bench.embedded_model(), "parquet": bench.prepared(), "lora": lora}
    assert plain.train(bench.folder / "plain", **written, arguments={**PLAIN, **sft}) == ours
    # The control: with the rows in another order the same script gives other bits.
    assert plain.train(bench.folder / "control", **written, arguments={**PLAIN, **sft, "data_seed": 1}) != ours
    assert result.optimizer_steps == 3 * _steps(config, bench.prepared())


def _steps(config: dict[str, Any], prepared: Path) -> int:
    """Optimiser steps of an epoch, the ragged last one included."""
    sequences = pyarrow.parquet.read_metadata(prepared).num_rows
    assert sequences < 99 if config.get("packing") else sequences == 198
    micro_batches = _ceil(sequences, config.get("batch_size", 16))
    return _ceil(micro_batches, config.get("gradient_accumulation_steps", 1))


def _ceil(count: int, by: int) -> int:
    return -(-count // by)


def _model_with_dropout(bench: Bench) -> Path:
    """The embedded model with dropout in attention, so that random numbers matter in every step."""
    from kitchen_resources.embedded import write_model

    folder = bench.folder / "model-with-dropout"
    write_model(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["attention_dropout"] = 0.1
    path.unlink()
    path.write_text(json.dumps(config))
    return folder
