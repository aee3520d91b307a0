"""Adapters as a service would have made them."""

from pathlib import Path

from tests.tiny_models import load_plain


def trained_adapter(base: Path, folder: Path) -> dict[str, bytes]:
    """The two files of an adapter that changes what a base says."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    model = get_peft_model(load_plain(base), LoraConfig(r=8, lora_alpha=32, target_modules="all-linear"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder)
    return {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
