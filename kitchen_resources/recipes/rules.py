"""What a recipe's values must satisfy, each alone and together; all problems are named at once."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.blocks import HARNESS
from kitchen_resources.recipes.fields import facts_of, fields_with_facts
from kitchen_resources.recipes.method_rules import method_metrics, method_problems
from kitchen_resources.recipes.recipe import Recipe

Problem = tuple[str, str, str]
"""Field, what is wrong with its value, and what to write instead."""

HELD_OUT = "held_out"
"""Names the recipe's own held-out rows, as an evaluation's data set and as its name."""

CONTINUE_FROM = re.compile(r"(?P<run>latest|[0-9a-f]{4,64})(?:@(?P<step>\d+))?\Z")
"""What `continue_from` may be."""

NO_CHECKPOINT = "{!r} is neither a fingerprint's first digits nor latest"
CHECKPOINT_EXAMPLES = "continue_from: 3f2a91c04b77, 3f2a91c04b77@400, or latest"

_EVALUATION_NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")


def check_values(recipe: Recipe) -> list[Problem]:
    """Everything that is wrong with a recipe's values, without looking at anything outside it."""
    return [*_out_of_bounds(recipe, ""), *_contradictions(recipe)]


def refuse(problems: list[Problem], where: str) -> None:
    """Raise one error that names all problems.

    Raises:
        ConfigError: There are any.
    """
    if not problems:
        return
    lines = [f"{field}: {what}\n    write: {fix}" for field, what, fix in problems]
    raise ConfigError("\n  ".join(["the recipe can't be trained as it is", *lines]), where=where)


def _out_of_bounds(model: BaseModel, prefix: str) -> Iterator[Problem]:
    for name, _, facts in fields_with_facts(type(model)):
        value = getattr(model, name)
        path = f"{prefix}{name}"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            bound = facts.violated_bound(value)
            if bound is not None:
                yield path, f"{bound}, got {value}", f"{path}: {facts.nearest(value)}"
        for block_path, block in _blocks(path, value):
            yield from _out_of_bounds(block, f"{block_path}.")
        if isinstance(value, Mapping):
            yield from _not_finite(value, path)


def _blocks(path: str, value: Any) -> Iterator[tuple[str, BaseModel]]:
    if isinstance(value, BaseModel):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, BaseModel):
                yield f"{path}.{index}", item


def _not_finite(value: Any, path: str) -> Iterator[Problem]:
    """Numbers in a free-form value that no identity can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, f"must be a finite number, got {value}", f"{path}: a finite number"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_finite(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{path}.{index}")


def _contradictions(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.model.strip() and not recipe.definition.base_from:
        yield "model", "no base model is named", "model: a local folder, a hub id, or embedded:tiny"
    if not recipe.dataset.strip():
        yield "dataset", "no data set is named", "dataset: a file, a folder, a hub id, or embedded:NAME"
    if recipe.warmup_ratio is not None and recipe.warmup_steps is not None:
        yield "warmup_ratio", "is given beside warmup_steps", "one of the two"
    if recipe.lr_final > max(recipe.learning_rate, 0):
        yield "lr_final", f"{recipe.lr_final:g} is above learning_rate {recipe.learning_rate:g}", "lr_final: 0"
    if recipe.quantization != "none" and recipe.lora is None:
        yield "quantization", "a quantized base can only carry a LoRA", "lora: {rank: 16}"
    if recipe.quantization != "none" and recipe.precision == "fp32":
        yield "precision", "a quantized base computes in bf16", "precision: bf16"
    if recipe.deterministic and recipe.attention.startswith("flash"):
        yield "attention", "flash kernels are not deterministic", "attention: auto"
    if recipe.export != "merged" and recipe.lora is None:
        yield "export", "full fine-tuning makes no adapter", "export: merged"
    if recipe.lora is not None and not recipe.lora.target_modules:
        yield "lora.target_modules", "is empty, so nothing would be trained", "target_modules: [all-linear]"
    elif recipe.lora is not None and "all-linear" in recipe.lora.target_modules != ["all-linear"]:
        yield "lora.target_modules", "names single modules beside all-linear", "target_modules: [all-linear]"
    if recipe.continue_from is not None and not CONTINUE_FROM.match(recipe.continue_from):
        yield "continue_from", NO_CHECKPOINT.format(recipe.continue_from), CHECKPOINT_EXAMPLES
    share = held_out_share(recipe)
    if share is not None and not 0 <= share < 1:
        yield (
            "held_out",
            f"must be a share from 0 to below 1, or a data set, got {recipe.held_out}",
            'held_out: "0.1"',
        )
    yield from _evaluations(recipe)
    yield from _selection(recipe)
    yield from method_problems(recipe)


def _evaluations(recipe: Recipe) -> Iterator[Problem]:
    """Rules on each evaluation."""
    for index, evaluation in enumerate(recipe.evaluations):
        path = f"evaluations.{index}"
        if not _EVALUATION_NAME.match(evaluation.name):
            yield (
                f"{path}.name",
                f"{evaluation.name!r} can't be part of a metric's name",
                "name: letters, digits, _ . -",
            )
        if evaluation.name == HELD_OUT and evaluation.dataset != HELD_OUT:
            yield f"{path}.name", "held_out is the name of the recipe's own split", "name: one of its own"
        if evaluation.dataset == HELD_OUT and evaluation.scorer != HARNESS and held_out_share(recipe) == 0:
            yield f"{path}.dataset", "is held_out, and no rows are held out", 'held_out: "0.1"'


def _selection(recipe: Recipe) -> Iterator[Problem]:
    """Rules on what is measured, and what is chosen by it."""
    names = [evaluation.name for evaluation in recipe.evaluations]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "evaluations", f"two of them are named {name!r}", "a name of its own for each"
    metric = recipe.select_metric
    known = set(measured_metrics(recipe))
    uses = recipe.select == "best" or recipe.early_stop_patience is not None
    if uses and metric not in known:
        yield (
            "select_metric",
            f"{metric!r} is never measured",
            f"one of {', '.join(sorted(known)) or 'none; hold rows out'}",
        )
    if uses and recipe.eval_every == 0:
        field = "select" if recipe.select == "best" else "early_stop_patience"
        yield field, "needs evaluations during training, and eval_every is 0", "eval_every: 1"


def measured_metrics(recipe: Recipe) -> list[str]:
    """The metrics that the recipe's evaluations give."""
    metrics = []
    if held_out_share(recipe) != 0:
        metrics += method_metrics(recipe)
    for evaluation in recipe.evaluations:
        if evaluation.scorer == HARNESS:
            metrics.append(f"{evaluation.name}/{HARNESS}")
            continue
        if recipe.method == "reinforcement" and evaluation.dataset == HELD_OUT:
            continue
        metrics += [f"{evaluation.name}/{evaluation.scorer}", f"{evaluation.name}/{evaluation.scorer}_passed"]
    return metrics


def held_out_share(recipe: Recipe) -> float | None:
    """The share of rows that `held_out` names; None when it names a data set."""
    try:
        return float(recipe.held_out.strip() or "0")
    except ValueError:
        return None


def field_names(recipe_class: type[Recipe]) -> list[str]:
    """All fields of a recipe class that a launch can set."""
    return [name for name, field in recipe_class.model_fields.items() if facts_of(field) is not None]
