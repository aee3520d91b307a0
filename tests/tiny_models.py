"""Tiny models with sharp random weights, adapters on them, and tasks that ask something of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kitchen_resources import embedded
from kitchen_resources.embedded.tokenizer import PAD_ID, VOCAB_SIZE
from kitchen_resources.evaluation.port import EvaluatedModel, EvaluationTask, Question

Row = tuple[list[int], list[int]]
"""Tokens and labels."""


def write_tiny_model(folder: Path, *, seed: int = 0, scale: float = 6.0) -> Path:
    """The embedded model with its matrices scaled up: its guesses are far from even, and its best one is readable."""
    from safetensors.numpy import load_file, save_file

    embedded.write_model(folder, seed=seed)
    weights = load_file(folder / "model.safetensors")
    scaled = {name: array * scale if array.ndim == 2 else array for name, array in weights.items()}
    head = scaled["lm_head.weight"]
    for token in range(VOCAB_SIZE):
        if not 32 <= token < 127:
            # Half of the logit of a printable byte, so never the highest.
            head[token] = 0.5 * head[32 + token % 95]
    save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_adapter(folder: Path, base: Path, *, rank: int = 4, alpha: int = 8, seed: int = 1) -> Path:
    """A LoRA adapter on a model, with random weights on both sides."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = load_plain(base)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder)
    return folder


def load_plain(folder: Path, dtype: Any = None) -> Any:
    """A model by plain transformers, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32).eval()


def load_plain_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def evaluated(folder: Path, *, adapter: Path | None = None, **changes: Any) -> EvaluatedModel:
    whole: dict[str, Any] = {
        "folder": folder,
        "adapter": adapter,
        "tokenizer": folder,
        "digest": "d" * 64,
        "dtype": "float32",
        "attention": "sdpa",
        "device": "cpu",
        "threads": 1,
    }
    return EvaluatedModel(**{**whole, **changes})


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """Rows in a Parquet file, as prepared data have them."""
    import pyarrow
    import pyarrow.parquet

    ids = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([("input_ids", ids), ("labels", ids)])
    columns = {"input_ids": [tokens for tokens, _ in rows], "labels": [labels for _, labels in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), path)
    return path


def question(prompt: Sequence[int], expected: str | None = "x", where: str = "rows.jsonl:1") -> Question:
    return Question(where, list(prompt), expected, f"prompt of {len(prompt)}")


def task(questions: Sequence[Question] = (), scored: Path | None = None, **changes: Any) -> EvaluationTask:
    whole: dict[str, Any] = {
        "name": "asked",
        "digest": "1" * 64,
        "questions": list(questions),
        "scored": scored,
        "scorer": "exact_match",
        "scorer_args": {},
        "max_tokens": 8,
        "batch_size": 4,
        "stop_token_ids": (),
        "stop_strings": (),
        "pad_token_id": PAD_ID,
    }
    return EvaluationTask(**{**whole, **changes})
