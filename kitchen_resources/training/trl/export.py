"""From a checkpoint to a folder that plain transformers, or peft, loads."""

import json
import shutil
from pathlib import Path
from typing import Any

from kitchen_resources.training.base_models import TOKENIZER_NAMES
from kitchen_resources.training.port import LocalCheckpoint, TrainingJob
from kitchen_resources.training.trl.models import load_causal_lm
from kitchen_resources.training.trl.state import ADAPTER_CONFIG, ADAPTER_WEIGHTS


def export_model(job: TrainingJob, checkpoint: LocalCheckpoint, target: Path, *, merged: bool) -> None:
    """Write the model of a checkpoint.

    Args:
        job: The run.
        checkpoint: Its checkpoint.
        target: Folder to make.
        merged: Whole weights; else the LoRA adapter alone.
    """
    if job.base.folder is None:
        raise ValueError("a simulated model has no weights to export")
    target.mkdir(parents=True)
    if not merged:
        _write_adapter(job, checkpoint, target)
    elif (checkpoint.folder / ADAPTER_WEIGHTS).exists():
        _write_merged(job, checkpoint, target)
    else:
        for path in sorted(checkpoint.folder.glob("model*.safetensors*")):
            shutil.copyfile(path, target / path.name)
        shutil.copyfile(checkpoint.folder / "config.json", target / "config.json")
    _write_tokenizer(job, target)
    if merged:
        _write_generation_config(job, target)


def _write_merged(job: TrainingJob, checkpoint: LocalCheckpoint, target: Path) -> None:
    import torch
    from peft import PeftModel

    assert job.base.folder is not None
    # Merged in fp32: in bf16 the sum would round away part of a small update.
    base = load_causal_lm(job.base.folder, dtype="float32", attention=None)
    model = PeftModel.from_pretrained(base, checkpoint.folder, is_trainable=False).merge_and_unload()
    if job.resolution.values["weight_dtype"] == "bfloat16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(target)


def _write_adapter(job: TrainingJob, checkpoint: LocalCheckpoint, target: Path) -> None:
    shutil.copyfile(checkpoint.folder / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS)
    config = json.loads((checkpoint.folder / ADAPTER_CONFIG).read_bytes())
    config["base_model_name_or_path"] = job.base.reference
    (target / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_tokenizer(job: TrainingJob, target: Path) -> None:
    """The base's tokenizer files as they are, and the chat template that the rows were rendered with."""
    assert job.base.folder is not None
    for name in job.base.files:
        if name in TOKENIZER_NAMES or name.endswith(".model"):
            shutil.copyfile(job.base.folder / name, target / name)
    template = job.data.extra.get("chat_template")
    if isinstance(template, str):
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_generation_config(job: TrainingJob, target: Path) -> None:
    """The base's generation settings, ending also where the model was trained to end."""
    assert job.base.folder is not None
    path = job.base.folder / "generation_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = config.get("eos_token_id")
    ends = [] if known is None else known if isinstance(known, list) else [known]
    ends = [*ends, *(token for token in job.data.stop_token_ids if token not in ends)]
    config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    config.setdefault("pad_token_id", job.data.pad_token_id)
    (target / "generation_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
