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


def train_plainly(folder: Path, *runs: dict[str, Any]) -> list[str]:
    """Train by the plain script, each run in a process of its own.

    Args:
        folder: Where arguments and models are written.
        runs: Arguments of the script for each run: model, parquet, sft, and lora or None.

    Returns:
        The digest of each run's weights.
    """
    paths, outputs = [], []
    for number, run in enumerate(runs, 1):
        outputs.append(folder / f"plain-{number}")
        paths.append(folder / f"plain-{number}.json")
        paths[-1].write_text(json.dumps({**run, "output": str(outputs[-1]), "threads": 1}, default=str))
    words = [sys.executable, str(SCRIPT), *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [weights_digest(output) for output in outputs]
