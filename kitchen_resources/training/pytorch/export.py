"""From a checkpoint to a folder that plain transformers, or peft, loads."""

import json
import shutil
from pathlib import Path
from typing import Any

from kitchen_resources.errors import CheckpointError
from kitchen_resources.training.base_models import TOKENIZER_NAMES
from kitchen_resources.training.port import BaseModel, LocalCheckpoint, Serving
from kitchen_resources.training.pytorch.models import load_causal_lm, quiet_libraries
from kitchen_resources.training.pytorch.state import ADAPTER_CONFIG, ADAPTER_WEIGHTS


def export_model(
    base: BaseModel, serving: Serving, checkpoint: LocalCheckpoint, target: Path, *, merged: bool
) -> None:
    """Write the model of a checkpoint.

    Args:
        base: The base that it was trained from.
        serving: What a served model needs besides its weights.
        checkpoint: The checkpoint.
        target: Folder to make.
        merged: Whole weights; else the LoRA adapter alone.

    Raises:
        CheckpointError: There is no base or no adapter to write.
    """
    is_adapter = (checkpoint.folder / ADAPTER_WEIGHTS).exists()
    where = f"checkpoint at step {checkpoint.global_step}"
    if base.folder is None:
        raise CheckpointError("is simulated and has no weights", where=where, fix="train it with a real backend")
    if not merged and not is_adapter:
        raise CheckpointError("holds the whole model and no adapter", where=where, fix="export it merged")
    target.mkdir(parents=True)
    if not merged:
        _write_adapter(base, checkpoint, target)
    elif is_adapter:
        _write_merged(base.folder, serving, checkpoint, target)
    else:
        for path in sorted(checkpoint.folder.glob("model*.safetensors*")):
            shutil.copyfile(path, target / path.name)
        shutil.copyfile(checkpoint.folder / "config.json", target / "config.json")
    _write_tokenizer(base, base.folder, serving, target)
    if merged:
        _write_generation_config(base.folder, serving, target)


def _write_merged(folder: Path, serving: Serving, checkpoint: LocalCheckpoint, target: Path) -> None:
    import torch
    from peft import PeftModel

    # Merged in fp32: in bf16 the sum would round away part of a small update.
    base = load_causal_lm(folder, dtype="float32", attention=None)
    with quiet_libraries():
        model = PeftModel.from_pretrained(base, checkpoint.folder, is_trainable=False).merge_and_unload()
    if serving.weight_dtype == "bfloat16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(target)


def _write_adapter(base: BaseModel, checkpoint: LocalCheckpoint, target: Path) -> None:
    shutil.copyfile(checkpoint.folder / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS)
    config = json.loads((checkpoint.folder / ADAPTER_CONFIG).read_bytes())
    config["base_model_name_or_path"] = base.reference
    (target / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_tokenizer(base: BaseModel, folder: Path, serving: Serving, target: Path) -> None:
    """The base's tokenizer files as they are, and the chat template that the rows were rendered with."""
    for name in base.files:
        if name in TOKENIZER_NAMES or name.endswith(".model"):
            shutil.copyfile(folder / name, target / name)
    if serving.chat_template is not None:
        (target / "chat_template.jinja").write_text(serving.chat_template, encoding="utf-8")


def _write_generation_config(folder: Path, serving: Serving, target: Path) -> None:
    """The base's generation settings, ending also where the model was trained to end."""
    path = folder / "generation_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = config.get("eos_token_id")
    ends = [] if known is None else known if isinstance(known, list) else [known]
    ends = [*ends, *(token for token in serving.stop_token_ids if token not in ends)]
    config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    config.setdefault("pad_token_id", serving.pad_token_id)
    (target / "generation_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
