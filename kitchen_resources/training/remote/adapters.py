"""Adapters as services hand them out: two files, of which the config isn't always whole."""

import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from kitchen_resources.errors import BackendError

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def fetch(url: str, timeout_s: float) -> bytes:
    """What lies at a signed URL; no credential is sent there."""
    request = urllib.request.Request(url)
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        data: bytes = response.read()
    return data


def write_adapter(found: Mapping[str, bytes], target: Path, *, where: str) -> None:
    """Write an adapter's two files into a folder.

    Raises:
        BackendError: One of them is missing.
    """
    from kitchen_resources.training.base_models import safetensors_shapes
    from kitchen_resources.training.pytorch.state import canonical_adapter_config

    missing = [name for name in ADAPTER_FILES if name not in found]
    if missing:
        raise BackendError(f"the adapter that it gives has no {missing[0]}", where=where)
    target.mkdir(parents=True, exist_ok=True)
    weights = target / ADAPTER_FILES[0]
    weights.write_bytes(found[ADAPTER_FILES[0]])
    # Servers leave open which modules are adapted; peft then takes some of its own choice, and drops the rest silently.
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in safetensors_shapes(weights) if ".lora_" in name}
    config = {**json.loads(found[ADAPTER_FILES[1]]), "target_modules": sorted(adapted)}
    (target / ADAPTER_FILES[1]).write_bytes(canonical_adapter_config(config))
