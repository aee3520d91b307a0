"""docs/recipes.md: the fields of the recipes."""

import inspect
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kitchen_resources.recipes.blocks import EvaluationConfig, LoraConfig, RowLimits
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.fields import FieldFacts, fields_with_facts
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import (
    EnvironmentConfig,
    GenerationConfig,
    ReinforcementRecipe,
    RewardConfig,
)
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.trl import distillation, preference, reinforcement, supervised
from kitchen_resources.training.trl.arguments import OWNED, OWNED_FIELDS

_TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
_BLOCKS: dict[type[BaseModel], str] = {
    LoraConfig: "lora",
    EvaluationConfig: "evaluations[]",
    RowLimits: "row_limits",
    EnvironmentConfig: "environment",
    RewardConfig: "rewards[]",
    GenerationConfig: "generation",
}
_METHODS: dict[type[Recipe], Any] = {
    SupervisedRecipe: supervised,
    PreferenceRecipe: preference,
    ReinforcementRecipe: reinforcement,
    DistillationRecipe: distillation,
}
"""Recipe class of each method, and the module that trains it on TRL."""


def render(template: str) -> str:
    """The whole page, from its template."""
    return template.replace("{{ fields }}", "\n\n".join(_field_tables())).replace("{{ owned }}", _owned_tables())


def _field_tables() -> Iterator[str]:
    yield f"### Fields of every recipe\n\n{_table(Recipe)}"
    for recipe in _METHODS:
        own = [name for name in recipe.model_fields if recipe.model_fields[name] is not Recipe.model_fields.get(name)]
        changed = [name for name in own if not _same(recipe.model_fields[name], Recipe.model_fields.get(name))]
        yield f"### The {recipe.method} recipe\n\n{inspect.getdoc(recipe)}\n\n{_table(recipe, changed)}"
    for block, path in _BLOCKS.items():
        yield f"### The block `{path}`\n\n{inspect.getdoc(block)}\n\n{_table(block)}"


def _same(field: FieldInfo, other: FieldInfo | None) -> bool:
    return other is not None and (field.default, field.description) == (other.default, other.description)


def _table(model: type[BaseModel], names: Collection[str] | None = None) -> str:
    rows = ["| field | type | default | bounds | moves | |", "|---|---|---|---|---|---|"]
    for name, field, facts in fields_with_facts(model):
        if names is not None and name not in names:
            continue
        moves = "" if facts.moves == "nothing" else facts.moves
        cells = [
            f"`{name}`",
            _type(field.annotation),
            _default(field),
            _bounds(facts),
            moves,
            field.description or "",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return f"{_type(inner)}, or null"
    if origin is Literal:
        return " ".join(f"`{word}`" for word in arguments)
    if origin is list:
        return (
            f"list of {_TYPES[arguments[0]]}s"
            if arguments[0] in _TYPES
            else f"list of blocks, `{_BLOCKS[arguments[0]]}`"
        )
    if origin is dict:
        return "map of texts" if arguments[1] is str else "map"
    return f"block `{_BLOCKS[annotation]}`" if annotation in _BLOCKS else _TYPES[annotation]


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, BaseModel):
        return "see below"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, str):
        return f'`"{value}"`' if not value or value[0].isdigit() else f"`{value}`"
    return f"`{str(value).replace(chr(39), '')}`" if isinstance(value, (list, dict)) else str(value)


def _number(value: float) -> str:
    """As YAML 1.1 reads it too: 2.0e-05 and not 2e-05."""
    text = repr(value)
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent)}" if e else text


def _bounds(facts: FieldFacts) -> str:
    low = f"at least {facts.minimum}" if facts.minimum is not None else ""
    low = f"above {facts.above}" if facts.above is not None else low
    high = f"at most {facts.maximum}" if facts.maximum is not None else ""
    high = f"below {facts.below}" if facts.below is not None else high
    return ", ".join(bound for bound in (low, high) if bound)


def _owned_tables() -> str:
    found = [_owned_table(OWNED_FIELDS, OWNED)]
    for recipe, module in _METHODS.items():
        if module.OWNED or module.OWNED_FIELDS:
            found.append(f"And in a recipe of {recipe.method}:\n\n{_owned_table(module.OWNED_FIELDS, module.OWNED)}")
    return "\n\n".join(found)


def _owned_table(fields: Mapping[str, str], owned: Mapping[str, str]) -> str:
    by_word: dict[str, list[str]] = {}
    for name, field in fields.items():
        by_word.setdefault(f"write `{field}`", []).append(name)
    for name, reason in owned.items():
        by_word.setdefault(reason, []).append(name)
    rows = ["| argument of the trainer | what to write, or why not |", "|---|---|"]
    for said, names in by_word.items():
        rows.append(f"| {', '.join(f'`{name}`' for name in names)} | {said} |")
    return "\n".join(rows)
