"""From a model's folder to a client."""

from pathlib import Path
from typing import Any

from kitchen_resources.numerics import preserved_numerics
from kitchen_resources.training.local.client import LocalSettings, LocalTrainingClient
from kitchen_resources.training.pytorch.models import load_causal_lm, quiet_libraries


def open_client(
    folder: Path,
    settings: LocalSettings,
    *,
    dtype: str = "float32",
    attention: str | None = None,
    quantization: str = "none",
    lora: Any = None,
    gradient_checkpointing: bool = False,
    device: str = "cpu",
) -> LocalTrainingClient:
    """A client at the weights of a model.

    Args:
        folder: Config and safetensors.
        settings: How the client works.
        dtype: Type that the weights are held in.
        attention: Kernel, or None for the model's default.
        quantization: `8bit` or `4bit` for a frozen base in fewer bits, else `none`.
        lora: peft's config of an adapter, whose first weights follow from the seed; None to train the whole model.
        gradient_checkpointing: Whether activations are worked out again rather than kept.
        device: Where it runs.
    """
    import torch

    model = load_causal_lm(folder, dtype=dtype, attention=attention, quantization=quantization)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if lora is not None:
        from peft import get_peft_model

        with preserved_numerics(), quiet_libraries():
            torch.manual_seed(settings.seed)
            model = get_peft_model(model, lora)
        if gradient_checkpointing:
            model.enable_input_require_grads()
    return LocalTrainingClient(model.to(device).train(), settings)
