"""Suggestions from a model's name: the table, the size rules and the formulas."""

from collections.abc import Callable

import pytest

from kitchen_resources.errors import ConfigError
from kitchen_resources.formulas.hyperparameters import hidden_size, suggest_batch_size, suggest_learning_rate


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("meta-llama/Llama-3.2-1B", 2048),
        ("meta-llama/Llama-3.2-3B", 3072),
        ("meta-llama/Llama-3.1-8B", 4096),
        ("meta-llama/Meta-Llama-3-70B-Instruct", 8192),
        ("meta-llama/Llama-3.1-405B-Instruct", 16384),
        ("meta-llama/Llama-2-13b-chat-hf", 5120),
        ("meta-llama/Llama-4-Scout-17B-16E", 5120),
        ("codellama/CodeLlama-34b-hf", 8192),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 2048),
        ("Qwen/Qwen3-8B", 4096),
        ("Qwen/Qwen3-0.6B", 1024),
        ("Qwen/Qwen3-4B-Instruct-2507", 2560),
        ("Qwen/Qwen3-30B-A3B", 2048),
        ("Qwen/Qwen3-235B-A22B", 4096),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", 6144),
        ("Qwen/Qwen2.5-0.5B", 896),
        ("Qwen/Qwen2.5-7B-Instruct-1M", 3584),
        ("Qwen/Qwen2-1.5B", 1536),
        ("Qwen/Qwen1.5-0.5B", 1024),
        ("Qwen/QwQ-32B", 5120),
        ("mistralai/Mistral-7B-v0.1", 4096),
        ("mistralai/Mistral-Nemo-Base-2407", 5120),
        ("mistralai/Mistral-Small-Instruct-2409", 6144),
        ("mistralai/Mistral-Large-Instruct-2407", 12288),
        ("mistralai/Mixtral-8x7B-v0.1", 4096),
        ("mistralai/Mixtral-8x22B-v0.1", 6144),
        ("deepseek-ai/DeepSeek-V3", 7168),
        ("deepseek-ai/DeepSeek-R1", 7168),
        ("deepseek-ai/DeepSeek-V2-Lite", 2048),
        ("deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct", 2048),
        ("deepseek-ai/deepseek-llm-67b-base", 8192),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 3584),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 4096),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", 4096),
        ("moonshotai/Kimi-K2.5", 7168),
        ("moonshotai/Kimi-Linear-48B-A3B-Instruct", 2304),
    ],
)
def test_known_series(model: str, expected: int) -> None:
    assert hidden_size(model) == expected
    assert hidden_size(model.lower()) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("some-org/llama-3.1-8b-custom", 4096),
        ("unknown/model-70b", 8192),
        ("unknown/model-72b", 8192),
        ("-34b", 5120),
        ("-32b", 5120),
        ("-14b", 5120),
        ("-13b", 5120),
        ("-8b", 4096),
        ("-7b", 4096),
        ("-4b", 3072),
        ("-3b", 3072),
        ("-1.5b", 2048),
        ("-1b", 2048),
        ("-0.5b", 1024),
        ("-.5b", 1024),
        ("-350m", 1024),
        ("unknown", 4096),
        ("model-v3.2", 4096),
        ("acme/big-405b", 16384),  # not a 5b
        ("acme/mix-30b-a3b", 5120),  # not a 3b
        ("acme/mix-11b", 5120),  # not a 1b: 13b is the nearest size
        ("acme/mix-a3b-30b", 5120),
        ("acme/mix-8x7b", 4096),
        ("acme/qwen30-4b", 3072),  # not of the series qwen3
        ("Qwen/Qwen3.5-27B", 5120),
        ("acme-70b/tiny-1b", 2048),  # the last part of the path goes first
        ("./runs/qwen3_4b/epoch-3/", 2560),
    ],
)
def test_other_names_answer_by_size(model: str, expected: int) -> None:
    assert hidden_size(model) == expected


@pytest.mark.parametrize(
    ("model", "rate", "lora_rows", "full_rows"),
    [
        ("meta-llama/Llama-3.2-1B", 4.908239409722158e-4, 128, 32),
        ("meta-llama/Llama-3.2-3B", 3.5760078614950245e-4, 64, 16),
        ("meta-llama/Llama-3.1-8B", 2.856415043086949e-4, 64, 16),
        ("Qwen/Qwen3-8B", 4.7297908091376354e-4, 64, 16),
        ("mistralai/Mistral-7B-v0.1", 3.4938562148434214e-4, 64, 16),
    ],
)
def test_suggestions(model: str, rate: float, lora_rows: int, full_rows: int) -> None:
    assert suggest_learning_rate(model) == pytest.approx(rate, rel=1e-14)
    assert suggest_learning_rate(model, lora=False) == pytest.approx(rate / 10, rel=1e-14)
    assert suggest_learning_rate(model, base=1e-4) == pytest.approx(2 * rate, rel=1e-14)
    assert suggest_batch_size(model, lora=True) == lora_rows
    assert suggest_batch_size(model, lora=False) == full_rows


@pytest.mark.parametrize(
    ("model", "exponent"),
    [
        ("acme/llama-x-8b", 0.781),
        ("acme/qwen-x-8b", 0.0775),
        ("acme/Kimi-x-8b", 0.0775),
        ("acme/mistral-x-8b", 0.5),
        ("acme/mixtral-x-8x7b", 0.5),
        ("acme/deepseek-x-8b", 0.5),
        ("acme/other-8b", 0.5),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 0.781),
        ("/models/llama/qwen3-8b", 0.0775),
    ],
)
def test_the_family_sets_the_exponent(model: str, exponent: float) -> None:
    assert suggest_learning_rate(model) == pytest.approx(5e-4 * (2000 / 4096) ** exponent, rel=1e-14)


@pytest.mark.parametrize(
    ("model", "arguments", "expected"),
    [
        ("-14b", {"lora": False}, 8),
        ("-70b", {"lora": False}, 4),
        ("-70b", {"lora": True}, 16),
        ("-8b", {"lora": False, "max_length": 4096}, 8),
        ("-8b", {"lora": False, "gpu_memory_gb": 80}, 53),  # 53.3
        ("-70b", {"lora": False, "max_length": 3277}, 2),  # 2.4998
        ("-70b", {"lora": False, "gpu_memory_gb": 15}, 3),  # 2.5: half up
        ("-70b", {"lora": False, "max_length": 131072}, 1),  # 0.06: at least one
    ],
)
def test_batch_size_follows_memory_and_length(model: str, arguments: dict[str, float], expected: int) -> None:
    assert suggest_batch_size(model, **arguments) == expected  # type: ignore[arg-type]


def test_bad_arguments_are_refused_by_name() -> None:
    calls: dict[str, Callable[[], object]] = {
        "model": lambda: hidden_size("  "),
        "base": lambda: suggest_learning_rate("-8b", base=0.0),
        "max_length": lambda: suggest_batch_size("-8b", lora=True, max_length=0),
        "gpu_memory_gb": lambda: suggest_batch_size("-8b", lora=True, gpu_memory_gb=float("inf")),
    }
    for where, call in calls.items():
        with pytest.raises(ConfigError) as refused:
            call()
        assert refused.value.where == where
