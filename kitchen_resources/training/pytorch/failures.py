"""What torch raises, as errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from kitchen_resources.errors import BackendError, KitchenError, OutOfMemory
from kitchen_resources.training.port import TrainingJob

# What torch says on a CPU; there it has no class of its own for it.
_OUT_OF_HOST_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc")


@contextmanager
def errors_named(job: TrainingJob, epoch: int) -> Iterator[None]:
    """Turn what the libraries raise into errors that say what to do."""
    where = f"epoch {epoch}"
    try:
        yield
    except KitchenError:
        raise
    except (RuntimeError, ValueError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _out_of_memory(job, where, error) from error
        raise BackendError(f"{type(error).__name__}: {error}", where=where) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host has no room; torch has no type of its own for the host."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_HOST_MEMORY)


def _out_of_memory(job: TrainingJob, where: str, error: BaseException) -> OutOfMemory:
    recipe = job.recipe
    tips = [f"lower batch_size ({recipe.batch_size}) and raise gradient_accumulation_steps by as much"]
    tips.append(f"lower max_length ({recipe.max_length})")
    if not recipe.gradient_checkpointing:
        tips.append("set gradient_checkpointing: true")
    if recipe.lora is None:
        tips.append("train a LoRA (lora: {rank: 16})")
    first_line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return OutOfMemory(
        f"{job.resolution.device} ran out of memory: {first_line}",
        where=where,
        fix="; or ".join(tips) + "; what is published stays, and the run goes on from there",
    )
