"""Weights, optimiser, schedule and random state as safetensors and JSON, and back, keeping every bit. No pickle."""

import json
import random
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import TrainingDiverged

OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER_VALUES = "optimizer.json"
SCHEDULE = "schedule.json"
RNG_TENSORS = "rng.safetensors"
RNG_VALUES = "rng.json"
FULL_WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

TRAINING_STATE = (OPTIMIZER_TENSORS, OPTIMIZER_VALUES, SCHEDULE, RNG_TENSORS, RNG_VALUES)


def is_training_state(name: str) -> bool:
    """Whether a checkpoint's file holds optimiser, schedule or random numbers, of whichever process."""
    return name in TRAINING_STATE or name.startswith("rng-")


def write_training_state(folder: Path, optimizer_state: Mapping[str, Any], scheduler: Any) -> None:
    """Write the state of optimiser, schedule and random numbers as they are now."""
    write_optimizer(folder, optimizer_state)
    (folder / SCHEDULE).write_bytes(canonical_json(_json_value(scheduler.state_dict())))
    write_rng(folder, rng_state())


def write_weights(
    folder: Path, model: Any, weights_of: Mapping[str, Any] | None = None
) -> tuple[list[str], list[str]]:
    """Write the trained weights, and what describes them.

    Args:
        folder: Where to.
        model: The model.
        weights_of: Its trained weights by name, where the model holds only a part of them.

    Returns:
        Names of the files with weights, and of those beside them.

    Raises:
        TrainingDiverged: A weight is not finite.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        return _write_adapter(folder, model, weights_of), []
    before = {path.name for path in folder.iterdir()}
    _require_finite(weights_of or dict(model.named_parameters()))
    model.save_pretrained(folder, state_dict=weights_of)
    written = sorted(path.name for path in folder.iterdir() if path.name not in before)
    weights = [name for name in written if name.endswith((".safetensors", ".safetensors.index.json"))]
    return weights, [name for name in written if name not in weights]


def load_weights(folder: Path, model: Any) -> None:
    """Put a checkpoint's weights into a model of the same shape, in place."""
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS))
        return
    shards = sorted(folder.glob("model*.safetensors"))
    weights = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    model.load_state_dict(weights, strict=False)
    model.tie_weights()


def _write_adapter(folder: Path, model: Any, weights_of: Mapping[str, Any] | None) -> list[str]:
    """The adapter's weights, and its config in our own hand: peft writes sets in hash order, and the base's path."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    found = get_peft_model_state_dict(model, state_dict=weights_of)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    _require_finite(weights)
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (folder / ADAPTER_CONFIG).write_bytes(canonical_adapter_config(model.peft_config["default"].to_dict()))
    return [ADAPTER_WEIGHTS, ADAPTER_CONFIG]


def canonical_adapter_config(config: Mapping[str, Any]) -> bytes:
    """An adapter's config as stored: the same bytes for the same adapter, wherever its base lies."""
    return canonical_json({**_json_value(config), "base_model_name_or_path": None, "inference_mode": True})


def _require_finite(weights: Mapping[str, Any]) -> None:
    import torch

    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingDiverged(
                f"weight {name} is not finite", where="checkpoint", fix="lower learning_rate, or set max_grad_norm"
            )


def write_optimizer(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the state of an optimiser."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                values.setdefault(str(index), {})[name] = value
    save_file(tensors, folder / OPTIMIZER_TENSORS)
    record = {"values": values, "param_groups": _json_value(state["param_groups"])}
    (folder / OPTIMIZER_VALUES).write_bytes(canonical_json(record))


def read_optimizer(folder: Path) -> dict[str, Any]:
    """What `write_optimizer` wrote, as `load_state_dict` takes it."""
    from safetensors.torch import load_file

    record = read_json(folder / OPTIMIZER_VALUES)
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in record["values"].items()}
    for name, tensor in load_file(folder / OPTIMIZER_TENSORS).items():
        index, _, entry = name.partition(".")
        state.setdefault(int(index), {})[entry] = tensor
    groups = [
        {**group, "betas": tuple(group["betas"])} if "betas" in group else group for group in record["param_groups"]
    ]
    return {"state": dict(sorted(state.items())), "param_groups": groups}


def rng_state() -> tuple[dict[str, Any], dict[str, Any]]:
    """The random states of this process, as tensors and JSON values."""
    import numpy
    import torch

    version, words, gauss = random.getstate()
    numbers = numpy.random.get_state(legacy=False)
    assert isinstance(numbers, dict)
    tensors = {
        "torch": torch.random.get_rng_state(),
        "numpy": torch.from_numpy(numbers["state"]["key"].astype("int64")),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.random.get_rng_state()
    values = {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "name": numbers["bit_generator"],
            "position": int(numbers["state"]["pos"]),
            "has_gauss": int(numbers["has_gauss"]),
            "cached": float(numbers["gauss"]),
        },
    }
    return tensors, values


def write_rng(folder: Path, state: tuple[dict[str, Any], dict[str, Any]], rank: int = 0) -> None:
    """Write what `rng_state` gave, as that of one of several processes."""
    from safetensors.torch import save_file

    tensors, values = state
    save_file(tensors, folder / _of_rank(RNG_TENSORS, rank))
    (folder / _of_rank(RNG_VALUES, rank)).write_bytes(canonical_json(values))


def _of_rank(name: str, rank: int) -> str:
    return name.replace("rng", f"rng-{rank}") if rank else name


def read_rng(folder: Path, rank: int = 0) -> dict[str, Any]:
    """The random states of a checkpoint, as transformers keeps them; of one of several processes."""
    from safetensors.torch import load_file

    tensors = load_file(folder / _of_rank(RNG_TENSORS, rank))
    values = read_json(folder / _of_rank(RNG_VALUES, rank))
    python, numbers = values["python"], values["numpy"]
    keys = tensors["numpy"].numpy().astype("uint32")
    state: dict[str, Any] = {
        "python": (python["version"], tuple(python["words"]), python["gauss"]),
        "numpy": (numbers["name"], keys, numbers["position"], numbers["has_gauss"], numbers["cached"]),
        "cpu": tensors["torch"],
    }
    if "cuda" in tensors:
        state["cuda"] = tensors["cuda"]
    return state


def _json_value(value: Any) -> Any:
    """A value as JSON has it: sets sorted, tuples as lists, enumerations by value, keys as text."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_json_value(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file."""
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value
