"""What several processes of one training have to agree on. In a process alone each of these does nothing."""

import os
from typing import Any

from kitchen_resources.errors import BackendError


def require_world_size(processes: int, *, device: str) -> None:
    """Join the other processes, and refuse to go on as fewer than were asked for.

    Raises:
        BackendError: There are more or fewer. Launchers have been seen to start one where two were asked for.
    """
    import torch.distributed as dist

    found = int(os.environ.get("WORLD_SIZE", "1"))
    if found > 1 and not dist.is_initialized():
        dist.init_process_group("gloo" if device == "cpu" else "nccl")
        found = dist.get_world_size()
    if found != processes:
        raise BackendError(
            f"{found} processes train together, and {processes} were asked for",
            where="trainer.backend.trl.processes",
            fix="report this: the launcher didn't start what it was told to",
        )


def world_size() -> int:
    """How many processes train together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    import torch.distributed as dist

    return dist.get_rank() if world_size() > 1 else 0


def from_first(value: Any) -> Any:
    """The value that the first process has, on every process."""
    import torch.distributed as dist

    if world_size() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def gathered(value: Any) -> list[Any]:
    """The value of each process, in the order of their ranks, on every process."""
    import torch.distributed as dist

    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found
