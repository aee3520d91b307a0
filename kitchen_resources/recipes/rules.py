"""What a recipe's values must satisfy, each alone and together; all problems are named at once."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.fields import facts_of, fields_with_facts
from kitchen_resources.recipes.recipe import Recipe

Problem = tuple[str, str, str]
"""Field, what is wrong with its value, and what to write instead."""


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
                yield path, f"{bound}, got {value}", f"{path}: {_nearest(facts, value)}"
        for block_path, block in _blocks(path, value):
            yield from _out_of_bounds(block, f"{block_path}.")


def _blocks(path: str, value: Any) -> Iterator[tuple[str, BaseModel]]:
    if isinstance(value, BaseModel):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, BaseModel):
                yield f"{path}.{index}", item


def _nearest(facts: Any, value: float) -> str:
    """A value within the bounds, for the message."""
    if facts.minimum is not None and value < facts.minimum:
        return f"{facts.minimum:g}"
    if facts.maximum is not None and value > facts.maximum:
        return f"{facts.maximum:g}"
    if facts.above is not None and value <= facts.above:
        return f"a number above {facts.above:g}"
    return f"a number below {facts.below:g}" if facts.below is not None else "a finite number"


def _contradictions(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.model:
        yield "model", "no base model is named", "model: a local folder, a hub id, or embedded:tiny"
    if not recipe.dataset:
        yield "dataset", "no data set is named", "dataset: a file, a folder, a hub id, or embedded:NAME"
    if recipe.warmup_ratio is not None and recipe.warmup_steps is not None:
        yield "warmup_ratio", "is given beside warmup_steps", "one of the two"
    if recipe.lr_final > recipe.learning_rate > 0:
        yield "lr_final", f"{recipe.lr_final:g} is above learning_rate {recipe.learning_rate:g}", "lr_final: 0"
    if recipe.quantization != "none" and recipe.lora is None:
        yield "quantization", "a quantized base can only carry a LoRA", "lora: {rank: 16}"
    if recipe.quantization != "none" and recipe.precision == "fp32":
        yield "precision", "a quantized base computes in bf16", "precision: bf16"
    if recipe.export != "merged" and recipe.lora is None:
        yield "export", "full fine-tuning makes no adapter", "export: merged"
    if recipe.lora is not None and not recipe.lora.target_modules:
        yield "lora.target_modules", "is empty, so nothing would be trained", "target_modules: [all-linear]"
    if recipe.continue_from is not None and recipe.definition.base_from:
        yield "continue_from", "can't be used in a recipe that has base_from", "one of the two"
    yield from _selection(recipe)


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
    if recipe.held_out.strip() not in ("", "0", "0.0"):
        metrics += ["held_out/loss", "held_out/perplexity"]
    for evaluation in recipe.evaluations:
        metrics += [f"{evaluation.name}/{evaluation.scorer}", f"{evaluation.name}/{evaluation.scorer}_passed"]
    return metrics


def field_names(recipe_class: type[Recipe]) -> list[str]:
    """All fields of a recipe class that a launch can set."""
    return [name for name, field in recipe_class.model_fields.items() if facts_of(field) is not None]
