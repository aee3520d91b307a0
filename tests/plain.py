"""Running the plain TRL script, and digests of the weights that it and the kitchen make."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open

SCRIPT = Path(__file__).with_name("plain_trl.py")


def weights_digest(folder: Path) -> str:
    """sha256 over all tensors of a folder's safetensors files: names, types, shapes, bytes."""
    hasher = hashlib.sha256()
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith(("model", "adapter_model")):
            with safe_open(path, framework="numpy") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    assert tensors, f"no weights in {folder}"
    for name in sorted(tensors):
        array = tensors[name]
        hasher.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return hasher.hexdigest()


def train_plainly(
    folder: Path, *, model: str, parquet: Path, sft: dict[str, Any], lora: dict[str, Any] | None = None
) -> str:
    """Train by the plain script in a process of its own; returns the digest of the weights."""
    arguments = folder / "plain.json"
    output = folder / "plain"
    arguments.write_text(
        json.dumps(
            {"model": model, "parquet": str(parquet), "output": str(output), "sft": sft, "lora": lora, "threads": 1}
        )
    )
    done = subprocess.run([sys.executable, str(SCRIPT), str(arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return weights_digest(output)
