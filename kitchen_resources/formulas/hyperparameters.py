"""First guesses of learning rate and batch size, from a model's name alone.

They are starting points for people and for `suggest`, never read behind a recipe's back.
"""

import math
import re

from kitchen_resources.errors import ConfigError

# Hidden sizes as the models' own config.json states them, by series and by billions of parameters in the name
# (None: the name states none). First matching series that knows the size wins.
_SERIES: tuple[tuple[str, dict[float | None, int]], ...] = (
    (r"llama-?4", {17: 5120}),
    (r"llama-?3(\.[123])?", {1: 2048, 3: 3072, 8: 4096, 11: 4096, 70: 8192, 90: 8192, 405: 16384}),
    (r"llama-?2", {7: 4096, 13: 5120, 70: 8192}),
    (r"codellama", {7: 4096, 13: 5120, 34: 8192, 70: 8192}),
    (r"tinyllama", {1.1: 2048}),
    (r"llama", {7: 4096, 13: 5120, 30: 6656, 65: 8192}),
    (r"distill-qwen", {1.5: 1536, 7: 3584, 14: 5120, 32: 5120}),
    (r"qwen3-coder", {30: 2048, 480: 6144}),
    (r"qwen3-next", {80: 2048}),
    (
        r"qwen3",
        {0.6: 1024, 1.7: 2048, 2: 2048, 4: 2560, 8: 4096, 14: 5120, 30: 2048, 32: 5120, 235: 4096},
    ),
    (r"qwen2\.5", {0.5: 896, 1.5: 1536, 3: 2048, 7: 3584, 14: 5120, 32: 5120, 72: 8192}),
    (r"qwen2", {0.5: 896, 1.5: 1536, 2: 1536, 7: 3584, 57: 3584, 72: 8192}),
    (r"qwen1\.5", {0.5: 1024, 1.8: 2048, 4: 2560, 7: 4096, 14: 5120, 32: 5120, 72: 8192, 110: 8192}),
    (r"qwq", {32: 5120}),
    (r"mixtral", {7: 4096, 22: 6144}),
    (r"mistral-nemo", {None: 5120, 12: 5120}),
    (r"mistral-large-instruct-24\d\d", {None: 12288}),
    (r"mistral-small-instruct-2409", {None: 6144}),
    (r"mistral", {7: 4096, 24: 5120}),
    (r"codestral", {22: 6144}),
    (r"deepseek-(v3(\.\d)?|r1)", {None: 7168, 671: 7168}),
    (r"deepseek-(coder-)?v2-lite", {None: 2048, 16: 2048}),
    (r"deepseek-(coder-)?v2(\.5)?", {None: 5120, 236: 5120}),
    (r"deepseek-llm", {7: 4096, 67: 8192}),
    (r"deepseek-coder", {1.3: 2048, 6.7: 4096, 33: 7168}),
    (r"kimi-k2(\.\d)?", {None: 7168}),
    (r"kimi-linear", {48: 2304}),
    (r"moonlight", {16: 2048}),
)
# For every other model: the hidden size that is usual at so many billions of parameters.
_USUAL: dict[float, int] = {
    0.5: 1024, 1: 2048, 1.5: 2048, 3: 3072, 4: 3072, 7: 4096, 8: 4096, 13: 5120, 14: 5120,
    32: 5120, 34: 5120, 70: 8192, 72: 8192, 405: 16384,
}  # fmt: skip
_UNKNOWN = 4096

# A size is a token of its own: `8b`, `0.5b`, `135m`, and the 7b of `8x7b`. The active `a3b` of `30b-a3b`
# isn't one.
_SIZE = re.compile(r"(?<![a-z0-9.])(?:\d+x)?(\d+(?:\.\d+)?|\.\d+)(b|m)(?![a-z0-9])")

# How fast the best learning rate falls with width, and the order in which families are looked for in a name:
# the architecture of `DeepSeek-R1-Distill-Llama-8B` is llama's.
_EXPONENTS: dict[str, float] = {
    "llama": 0.781, "qwen": 0.0775, "mistral": 0.5, "mixtral": 0.5, "deepseek": 0.5, "kimi": 0.0775,
}  # fmt: skip
_OTHER_EXPONENT = 0.5


def hidden_size(model: str) -> int:
    """The hidden size (width of the residual stream) that a model's name tells.

    Known series answer from a table. Any other name answers by its size: the usual hidden size of the nearest
    listed number of parameters, by ratio. A name without a size answers 4096. Where the model's config.json
    can be read, its `hidden_size` is the better source.

    Sizes are whole tokens of the name, so `Qwen3-30B-A3B` is a 30B model (2048, from its config) and a 405B
    model is not a 5B one (16384). Reading the end of the number alone would give 3072 and 4096.

    Args:
        model: A hub id or a path; upper and lower case are one, and the last part of the path goes first.

    Raises:
        ConfigError: The name is empty.
    """
    for name in _names(model):
        size = _billions(name)
        for series, sizes in _SERIES:
            if size in sizes and re.search(rf"(?<![a-z])(?:{series})(?![0-9]|\.[0-9])", name):
                return sizes[size]
        if size is not None:
            nearest = min(_USUAL, key=lambda usual: abs(math.log(size / usual)))
            return _USUAL[nearest]
    return _UNKNOWN


def suggest_learning_rate(model: str, *, lora: bool = True, base: float = 5e-5) -> float:
    """A first guess of the peak learning rate: `base * (10 if lora) * (2000 / hidden) ** e`.

    The exponent `e` is 0.781 for llama, 0.0775 for qwen and kimi, 0.5 for every other family. The formula is
    the one of the tinker cookbook before it turned to measured values, as is the 10 (see "LoRA Without
    Regret").

    Args:
        model: As in `hidden_size`.
        lora: Whether an adapter is trained; full fine-tuning wants a tenth.
        base: The rate of full fine-tuning at hidden size 2000.

    Raises:
        ConfigError: The name is empty, or `base` is not above 0.
    """
    _check_positive(base, "base", "5.0e-5")
    width = (2000.0 / hidden_size(model)) ** _exponent(model)
    return base * (10.0 if lora else 1.0) * float(width)


def suggest_batch_size(model: str, *, lora: bool, max_length: int = 2048, gpu_memory_gb: float = 24) -> int:
    """A first guess of the rows that one GPU holds, rounded half up and at least 1.

    At 24 GB, 2048 tokens and full fine-tuning: 32, 16, 8 rows up to hidden size 2048, 4096, 5120, and 4
    above. LoRA holds four times as many; memory and length enter in proportion.

    Args:
        model: As in `hidden_size`.
        lora: Whether an adapter is trained.
        max_length: Tokens of the longest row.
        gpu_memory_gb: Memory of the GPU in GB.

    Raises:
        ConfigError: The name is empty, or a number is not above 0.
    """
    _check_positive(max_length, "max_length", "2048")
    _check_positive(gpu_memory_gb, "gpu_memory_gb", "24")
    width = hidden_size(model)
    rows = next((rows for limit, rows in ((2048, 32), (4096, 16), (5120, 8)) if width <= limit), 4)
    fitting = rows * (4 if lora else 1) * (2048 / max_length) * (gpu_memory_gb / 24)
    return max(1, math.floor(fitting + 0.5))


def _names(model: str) -> tuple[str, str]:
    whole = model.strip().rstrip("/").lower().replace("_", "-")
    if not whole:
        raise ConfigError("the model's name is empty", where="model", fix="write model: <hub id or folder>")
    return whole.rsplit("/", 1)[-1], whole


def _billions(name: str) -> float | None:
    match = _SIZE.search(name)
    if match is None or float(match[1]) == 0.0:
        return None
    return float(match[1]) / (1.0 if match[2] == "b" else 1000.0)


def _exponent(model: str) -> float:
    for name in _names(model):
        for family, exponent in _EXPONENTS.items():
            if family in name:
                return exponent
    return _OTHER_EXPONENT


def _check_positive(value: float, name: str, example: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{value} is not a finite number above 0", where=name, fix=f"write {name}: {example}")
