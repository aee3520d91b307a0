"""One training of a case in a process of its own, as JSON on standard output: states, losses, memory, seconds.

python -m tests.gpu.training FOLDER CASE [DEVICE]
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.embedded import write_model
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.local.backend import LocalTrainer
from kitchen_resources.training.port import Trainer
from kitchen_resources.training.run import TrainingRun
from kitchen_resources.training.trl.backend import TrlTrainer
from tests.engine import Told
from tests.rail import Rail

EPOCHS = 3
SMALL: Mapping[str, Any] = {
    "max_rows": 64,
    "epochs": EPOCHS,
    "batch_size": 8,
    "learning_rate": 1.0e-3,
    "deterministic": True,
}
GAMES: Mapping[str, Any] = {
    **SMALL,
    "max_rows": None,
    "steps_per_epoch": 4,
    "group_size": 4,
    "groups_per_batch": 4,
    "batch_size": 16,
    "max_tokens": 8,
    "kl_coef": 0.05,
}
LORA = {"rank": 8, "alpha": 16, "dropout": 0.1}

BACKENDS: Mapping[str, Callable[[str], Trainer]] = {
    "trl": lambda device: TrlTrainer(device=device, threads=1),
    "local": lambda device: LocalTrainer(device=device, threads=1),
}


@dataclass(frozen=True)
class Case:
    """What is trained, and by which backend.

    Attributes:
        backend: Its name.
        method: Class of the recipe.
        fields: Fields of the recipe; TEACHER stands for the folder of another model.
        model: Shape of a random model to train instead of the embedded one.
    """

    backend: str
    method: type[Recipe]
    fields: Mapping[str, Any]
    model: Mapping[str, int] = field(default_factory=dict)


BITS = {
    "trl, supervised, fp32": Case("trl", SupervisedRecipe, {**SMALL, "precision": "fp32"}),
    "trl, supervised, LoRA": Case("trl", SupervisedRecipe, {**SMALL, "lora": LORA}),
    "trl, supervised, fused": Case(
        "trl", SupervisedRecipe, {**SMALL, "optimizer": "adamw_fused", "gradient_checkpointing": True}
    ),
    "trl, preference": Case("trl", PreferenceRecipe, SMALL),
    "trl, reinforcement": Case("trl", ReinforcementRecipe, GAMES),
    "trl, distillation by logits": Case("trl", DistillationRecipe, {**SMALL, "teacher": "TEACHER", "mode": "logit"}),
    "local, supervised, fp32": Case("local", SupervisedRecipe, {**SMALL, "precision": "fp32"}),
    "local, supervised, LoRA": Case("local", SupervisedRecipe, {**SMALL, "lora": LORA}),
    "local, preference": Case("local", PreferenceRecipe, SMALL),
    "local, reinforcement, LoRA": Case("local", ReinforcementRecipe, {**GAMES, "lora": LORA}),
    "local, distillation on policy": Case(
        "local",
        DistillationRecipe,
        {**SMALL, "max_rows": 32, "teacher": "TEACHER", "mode": "on_policy", "max_tokens": 8},
    ),
}
"""The embedded model by every method."""

MIDDLE: Mapping[str, int] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
FILLED: Mapping[str, Any] = {
    "dataset": "filled.jsonl",
    "epochs": 1,
    "max_rows": 32,
    "batch_size": 8,
    "max_length": 1024,
    "held_out": "0",
    "learning_rate": 1.0e-4,
}
REPEATED = {
    "trl, supervised, 200 million weights, bf16": Case(
        "trl", SupervisedRecipe, {**FILLED, "max_rows": 16, "epochs": EPOCHS, "deterministic": True}, MIDDLE
    ),
    **BITS,
}
"""Trained in one go, and killed and gone on with: the same bits. Of small models kernels have one order anyway."""

MEMORY = {
    "full, fp32": Case("trl", SupervisedRecipe, {**FILLED, "precision": "fp32"}, MIDDLE),
    "full, bf16": Case("trl", SupervisedRecipe, FILLED, MIDDLE),
    "full, bf16, recomputed": Case("trl", SupervisedRecipe, {**FILLED, "gradient_checkpointing": True}, MIDDLE),
    "full, bf16, eager attention": Case("trl", SupervisedRecipe, {**FILLED, "attention": "eager"}, MIDDLE),
    "LoRA, bf16": Case("trl", SupervisedRecipe, {**FILLED, "lora": LORA}, MIDDLE),
    "LoRA, bf16, recomputed": Case(
        "trl", SupervisedRecipe, {**FILLED, "lora": LORA, "gradient_checkpointing": True}, MIDDLE
    ),
    "LoRA, bf16, recomputed, 150,000 words": Case(
        "trl",
        SupervisedRecipe,
        {**FILLED, "lora": LORA, "gradient_checkpointing": True},
        {**MIDDLE, "vocab_size": 151_936},
    ),
    "local, LoRA, bf16": Case("local", SupervisedRecipe, {**FILLED, "lora": LORA}, MIDDLE),
    "local, full, bf16, 150,000 words": Case(
        "local", SupervisedRecipe, {**FILLED, "batch_size": 2, "max_rows": 8}, {**MIDDLE, "vocab_size": 151_936}
    ),
}
"""What a step takes of the device, against what was told before it began."""

CASES = {**REPEATED, **MEMORY}


def train(folder: Path, case: Case, device: str) -> dict[str, Any]:
    """Train a case to its end on the store in a folder; goes on with what is there."""
    import torch

    fields = {name: value for name, value in case.fields.items() if value is not None}
    if fields.get("teacher") == "TEACHER":
        write_model(folder / "teacher", seed=5)
        fields["teacher"] = str(folder / "teacher")
    if case.model:
        fields["model"] = str(_random_model(folder / "model", case.model))
        fields["dataset"] = str(_filled_rows(folder / str(fields["dataset"]), fields["max_rows"]))
    rail = Rail(blobs=LocalBlobs(folder / "store"), trainer=lambda: BACKENDS[case.backend](device))
    rail.add("mine", case.method, fields)
    launch = rail.launch("mine")
    run = TrainingRun(launch, Told())
    run.planned()
    started = time.perf_counter()
    for epoch in range(1, fields["epochs"] + 1):
        run.ensure(epoch)
        print(json.dumps({"epoch": epoch}), flush=True)
    head = run.head()
    store = CheckpointStore(LocalBlobs(folder / "store"))
    manifests = [store.manifest(entry) for entry in head.entries()]
    return {
        "states": [entry.state_digest for entry in head.entries()],
        "losses": [manifest.metrics["loss"] for manifest in manifests],
        "device": manifests[-1].environment["device"],
        "seconds": time.perf_counter() - started,
        "peak_bytes": torch.cuda.max_memory_allocated() if device != "cpu" else 0,
        "told_peak_bytes": max(manifest.metrics["peak_device_memory_bytes"] for manifest in manifests),
        "estimated_bytes": launch.resolution.memory_bytes,
    }


def _random_model(folder: Path, shape: Mapping[str, int]) -> Path:
    """A Qwen3 of that shape with random weights and the embedded tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    from kitchen_resources.embedded.tokenizer import PAD_ID, TURN_END_ID, VOCAB_SIZE, tokenizer_files

    torch.manual_seed(0)
    values = {"vocab_size": VOCAB_SIZE, **shape}
    config = Qwen3Config(pad_token_id=PAD_ID, eos_token_id=TURN_END_ID, bos_token_id=None, **values)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for name, data in tokenizer_files().items():
        (folder / name).write_bytes(data)
    return folder


def _filled_rows(path: Path, count: int) -> Path:
    """Conversations of about 1,000 tokens each."""
    with path.open("w", encoding="utf-8") as stream:
        for i in range(count):
            turns = [("user", f"{i:0480d}"), ("assistant", f"{7919 * i:0520d}")]
            stream.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}) + "\n")
    return path


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    print(json.dumps(train(place, CASES[sys.argv[2]], sys.argv[3] if len(sys.argv) > 3 else "cuda")), flush=True)
