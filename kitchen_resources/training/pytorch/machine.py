"""What this machine is: device, threads, precision, and the library versions that move bits."""

import importlib.metadata
import platform
from typing import Any

import psutil

from kitchen_resources.errors import CapabilityError
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.port import Resolution

# Below this size a second thread costs more than it brings: 12 ms a step on one thread, no less on two, and on
# busy cores far more.
SMALL_MODEL = 10_000_000

_LIBRARIES = ("torch", "trl", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")


def choose_device(asked: str) -> str:
    """`cpu` or `cuda:0`.

    Raises:
        CapabilityError: A GPU is asked for and there is none.
    """
    import torch

    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise CapabilityError(
            "torch sees no GPU",
            where="trainer.backend.trl.device",
            fix="device: cpu, or install a CUDA build of torch",
        )
    return "cuda:0"


def device_elsewhere(asked: str) -> str:
    """`cpu` or `cuda:0`, of a machine that can't be looked at from here."""
    return "cpu" if asked == "cpu" else "cuda:0"


def to_run_here(resolution: Resolution) -> tuple[str, str]:
    """Device and attention kernel for what this machine does of a run, such as evaluating it."""
    attention = str(resolution.values["attention"])
    if not resolution.elsewhere:
        return resolution.device, attention
    # What is installed there needn't be here.
    return choose_device("auto"), "sdpa" if attention.startswith("flash") else attention


def choose_threads(asked: int | None, parameters: int) -> int:
    """CPU threads of the training process: as asked, else one for a small model and the physical cores for others."""
    if asked is not None:
        return asked
    if parameters < SMALL_MODEL:
        return 1
    return psutil.cpu_count(logical=False) or 1


def choose_precision(recipe: Recipe, device: str, *, elsewhere: bool = False) -> str:
    """`fp32` or `bf16`; a GPU elsewhere is taken to have bf16.

    Raises:
        CapabilityError: bf16 is asked for on a GPU that lacks it.
    """
    import torch

    has_bf16 = device == "cpu" or elsewhere or torch.cuda.is_bf16_supported()
    if recipe.precision == "bf16" and not has_bf16:
        raise CapabilityError("this GPU has no bf16", where="precision", fix="precision: fp32")
    if recipe.precision == "auto":
        return "bf16" if device != "cpu" and has_bf16 else "fp32"
    return recipe.precision


def choose_attention(recipe: Recipe, model_config: Any, device: str, *, elsewhere: bool = False) -> str:
    """The attention kernel by name; what is installed elsewhere isn't known here.

    Raises:
        CapabilityError: A flash kernel is asked for that isn't installed.
    """
    if recipe.deterministic and device != "cpu":
        return "eager"
    if recipe.attention == "auto":
        import transformers

        name = (model_config.architectures or [""])[0]
        model_class = getattr(transformers, name, None)
        return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
    if recipe.attention.startswith("flash_attention") and not elsewhere:
        package = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}[recipe.attention]
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise CapabilityError(
                f"needs the package {package}, which isn't installed",
                where=f"attention: {recipe.attention}",
                fix=f"pip install {package}, or attention: sdpa",
            ) from error
    return recipe.attention


def environment(device: str, threads: int, *, elsewhere: str = "") -> dict[str, Any]:
    """What can move bits between two machines though the recipe is the same."""
    import torch

    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    if elsewhere:
        kind = "a GPU" if device != "cpu" else "a CPU"
        return {**found, "device": f"{kind} of {elsewhere}", "threads": threads}
    return {
        **found,
        "python": platform.python_version(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(0) if device != "cpu" else platform.machine(),
        "threads": threads,
    }
