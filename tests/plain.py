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


class PlainTrainer:
    """The plain script, which imports its libraries once and trains each run in a process of its own.

    Args:
        log: File for what it prints.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("w") as output:
            self._script = subprocess.Popen(
                [sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True
            )

    def train(
        self,
        folder: Path,
        *,
        model: Path,
        parquet: Path,
        arguments: dict[str, Any],
        method: str = "supervised",
        lora: Any = None,
        **besides: Any,
    ) -> str:
        """Train; returns the digest of the weights.

        Args:
            folder: A new folder, for the model.
            model: Folder of the base model.
            parquet: Prepared rows.
            arguments: Fields of TRL's config class.
            method: Which of the scripts.
            lora: Fields of LoraConfig, or None.
            besides: What the script needs besides.
        """
        given = {"method": method, "model": model, "parquet": parquet, "output": folder, "arguments": arguments}
        path = folder.with_suffix(".json")
        path.write_text(json.dumps({**given, "lora": lora, "threads": 1, **besides}, default=str))
        print(path, file=self._script.stdin, flush=True)
        assert self._script.stdout.readline() == "0\n", self._log.read_text()[-3000:]
        return weights_digest(folder)

    def close(self) -> None:
        """End the script."""
        self._script.communicate()
        assert self._script.returncode == 0
