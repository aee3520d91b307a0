"""Weights that are sharded among the processes (FSDP2): the file that says how, whole states out of them, and back.

A checkpoint holds whole tensors: the same files whoever trained it, evaluated and exported like any other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kitchen_resources.errors import ConfigError
from kitchen_resources.training.trl.processes import rank

_WHERE = "trainer.backend.trl.fsdp"
_CHECKPOINTED = "_checkpoint_wrapped_module."
"""What activation checkpointing puts into the names of weights."""


def read_fsdp_config(path: Path) -> dict[str, Any]:
    """The settings in a file: transformers' `fsdp_config` as JSON, or a config of accelerate's as YAML.

    Raises:
        ConfigError: There is none, it is none, or it asks for what isn't offered.
    """
    import yaml

    where = f"{_WHERE} {path}"
    try:
        # Every JSON document is one of YAML.
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"can't be read: {str(error).splitlines()[0]}", where=where, fix="name a file of JSON or YAML"
        ) from error
    if isinstance(found, dict) and {"zero_optimization", "deepspeed_config"} & set(found):
        raise ConfigError(
            "is a config of DeepSpeed, whose state no checkpoint of a run can hold",
            where=where,
            fix="shard with FSDP: a file with {}, or transformers' fsdp_config",
        )
    if isinstance(found, dict) and "distributed_type" in found:
        found = found.get("fsdp_config")
    if not isinstance(found, dict):
        raise ConfigError("holds no settings of FSDP", where=where, fix="an object, {} for the defaults")
    settings = {str(name).removeprefix("fsdp_"): value for name, value in found.items()}
    if str(settings.setdefault("version", 2)) != "2":
        raise ConfigError(
            "asks for the first version of FSDP, whose weights have no shapes of their own",
            where=where,
            fix="version: 2",
        )
    if settings.get("xla"):
        raise ConfigError("asks for XLA, which isn't offered", where=where, fix="xla: false")
    return settings


def is_sharded(model: Any) -> bool:
    """Whether a model's weights are shared out."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def whole_weights(model: Any) -> dict[str, Any]:
    """The trained weights by name, whole, in the first process's memory. All processes have to call it.

    Weights that are tied have the name of the first of them.
    """
    return {
        name.replace(_CHECKPOINTED, ""): _whole(weight)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def whole_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """An optimiser's state with whole tensors, in the first process's memory. All processes have to call it."""
    state = optimizer.state_dict()
    return {
        **state,
        "state": {
            index: {name: _whole(value) for name, value in entries.items()}
            for index, entries in state["state"].items()
        },
    }


def load_whole_optimizer_state(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Put whole tensors back into an optimiser, each process its own part of them."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    shared: dict[int, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        weight = weights[index]
        shared[index] = {
            name: distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
            if isinstance(weight, DTensor) and getattr(value, "shape", None) == weight.shape and weight.ndim
            else value
            for name, value in entries.items()
        }
    optimizer.load_state_dict({**state, "state": shared})


def _whole(value: Any) -> Any:
    """A tensor's parts put together; on other processes than the first they are let go at once."""
    from torch.distributed.tensor import DTensor

    if not isinstance(value, DTensor):
        return value
    whole: Any = value.full_tensor().detach()
    return whole.cpu() if rank() == 0 else None
