"""Loading models for training and evaluation: local folders, safetensors, no remote code."""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kitchen_resources.errors import CapabilityError, ConfigError
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.port import Resolution


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep away a warning that the pinned peft causes in the pinned transformers, and that nobody here can mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def load_causal_lm(folder: Path, *, dtype: str, attention: str | None, quantization: str = "none") -> Any:
    """A causal language model from a local folder.

    Args:
        folder: Config and safetensors.
        dtype: Name of the torch type that its weights are held in.
        attention: Kernel, or None for the model's default.
        quantization: `8bit` or `4bit` for a frozen base in fewer bits, else `none`.

    Raises:
        ConfigError: The folder lacks some of the model's weights; transformers would make them up from the process's
            random numbers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if quantization != "none":
        options["quantization_config"] = _quantization(quantization)
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ConfigError(
            f"lacks {len(missing)} of the model's weights, such as {missing[0]}",
            where=f"model {folder}",
            fix="download or save it again; a model of another task can't be trained as a causal language model",
        )
    return model


def weight_dtype(recipe: Recipe, precision: str) -> str:
    """The type that weights are held in: full fine-tuning keeps fp32 weights beside bf16 arithmetic; a frozen base is bf16."""
    return "bfloat16" if precision == "bf16" and recipe.lora is not None else "float32"


def lora_config(recipe: Recipe) -> Any:
    """The config that peft takes, of a recipe's LoRA block."""
    from peft import LoraConfig as PeftLoraConfig

    lora = recipe.lora
    if lora is None:
        return None
    modules = list(lora.target_modules)
    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules="all-linear" if modules == ["all-linear"] else sorted(modules),
        task_type="CAUSAL_LM",
    )


def load_for_training(folder: Path, recipe: Recipe, resolution: Resolution) -> Any:
    """The base model as training starts from it; LoRA is added by the trainer, after it has seeded."""
    model = load_causal_lm(
        folder,
        dtype=resolution.values["weight_dtype"],
        attention=resolution.values["attention"],
        quantization=recipe.quantization,
    )
    return model


def require_quantization(bits: str) -> None:
    """Refuse a quantized base where its library is missing.

    Raises:
        CapabilityError: With the line that installs it.
    """
    if bits != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise CapabilityError(
            "needs bitsandbytes, which isn't installed",
            where=f"quantization: {bits}",
            fix='pip install "crucible-kitchen[quantization]"',
        )


def _quantization(bits: str) -> Any:
    require_quantization(bits)
    import torch
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
