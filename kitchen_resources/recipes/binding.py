"""Binding values to a recipe: a generated subclass whose class defaults are those values.

Dagster builds what a launch leaves out from the class, not from the bound object: `learning_rate=7e-4` bound and
`epochs: 5` launched trained at the class's own rate, and a bound LoRA block was reset to null (measured on 1.13.27).
With the values as class defaults, and nested blocks as generated subclasses too, a launch keeps every sibling.
"""

import difflib
import types
import typing
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dagster as dg
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.fields import facts_of
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition

Where = Callable[[str], str]
"""Gives the place of a dotted field path, for messages."""

_BOUND: "weakref.WeakSet[type[BaseModel]]" = weakref.WeakSet()
"""The classes that `bind` has made."""

_REMOVE = "correct or remove it; docs/recipes.md lists every field"
_WRONG_TYPE = "give each field a value of its type; docs/recipes.md lists every field"


def bind(
    recipe_class: type[Recipe],
    values: Mapping[str, Any],
    definition: RecipeDefinition,
    *,
    where: Where | None = None,
) -> Recipe:
    """A recipe that has `values`, and keeps them under any partial override at launch.

    Types are as strict as Dagster's at launch: `epochs: "3"` and `epochs: true` are refused here too.

    Args:
        recipe_class: The method's recipe class, or a subclass of it.
        values: Fields by name; nested blocks as mappings, which may be partial. A share in `held_out` may be a number.
        definition: Name and what else is fixed at definition.
        where: Place of a field, for messages; by default the recipe's name and the field.

    Raises:
        ConfigError: A field is unknown or a value has the wrong type.
    """
    place = where or (lambda path: f"recipe {definition.name}, {path}")
    _require_declared(recipe_class)
    bound_class = _subclass(recipe_class, with_text_share(values), place, "", extra={"definition": definition})
    _BOUND.add(bound_class)
    try:
        return typing.cast(Recipe, bound_class())
    except ValidationError as error:
        raise type_error(error, place) from error


def rebind(recipe: Recipe, *, name: str | None = None) -> Recipe:
    """The same recipe as one that keeps its values under partial overrides, whatever way it was made."""
    if name in (None, recipe.definition.name) and is_bound(recipe):
        return recipe
    values = {
        key: value.model_dump() if isinstance(value, BaseModel) else value
        for key, value in ((key, getattr(recipe, key)) for key in recipe.model_fields_set)
    }
    definition = recipe.definition if name is None else replace(recipe.definition, name=name)
    return bind(type(recipe), values, definition)


def is_bound(recipe: Recipe) -> bool:
    """Whether all values of a recipe are its class's own, as `bind` makes it."""
    return type(recipe) in _BOUND and not recipe.model_fields_set


def with_text_share(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with a share in `held_out` as text: Dagster config has no plain unions, and people write a number."""
    share = values.get("held_out")
    if isinstance(share, (int, float)) and not isinstance(share, bool):
        return {**values, "held_out": str(share)}
    return dict(values)


def type_error(error: ValidationError, where: Where) -> ConfigError:
    """A pydantic error as a ConfigError that names every field it is about."""
    lines = []
    fix = _WRONG_TYPE
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"] if part != "[key]")
        lines.append(f"{where(path)}: {item['msg']}, got {item['input']!r}")
        if item["type"] == "string_type" and isinstance(item["input"], (int, float)):
            fix = "write it in quotes, so that YAML reads it as text"
        elif item["type"] in ("int_type", "float_type") and isinstance(item["input"], str):
            fix = "write it as a number, without quotes: 3, or 2.0e-4"
    return ConfigError("\n".join(lines), fix=fix)


def unknown_field(name: Any, known: typing.Iterable[str]) -> str:
    """What to say about a field that doesn't exist."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown field {name!r}{hint}"


def _require_declared(recipe_class: type[Recipe]) -> None:
    """Refuse a recipe class with a field that doesn't say what it moves: identities would silently lack it."""
    for name, field in recipe_class.model_fields.items():
        if facts_of(field) is None:
            raise ConfigError(
                "doesn't say what it moves",
                where=f"{recipe_class.__name__}.{name}",
                fix=f'{name}: … = recipe_field(default, "what it is", moves="weights")',
            )


def _subclass(
    base: type[BaseModel],
    values: Mapping[str, Any],
    where: Where,
    prefix: str,
    extra: Mapping[str, Any] | None = None,
) -> type[BaseModel]:
    namespace: dict[str, Any] = {
        "__annotations__": {},
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        **(extra or {}),
    }
    for name, value in values.items():
        path = f"{prefix}{name}"
        _require_known(base, name, where, path)
        field = base.model_fields[name]
        annotation, default = _default(field.annotation, value, where, path)
        namespace["__annotations__"][name] = annotation
        namespace[name] = Field(
            default=default,
            description=field.description,
            json_schema_extra=field.json_schema_extra,
            validate_default=True,
        )
    return typing.cast(
        type[BaseModel], types.new_class(base.__name__, (base,), exec_body=lambda body: body.update(namespace))
    )


def _default(annotation: Any, value: Any, where: Where, path: str) -> tuple[Any, Any]:
    """Annotation and class default that make Dagster merge a partial override into `value`."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    block = _block_class(annotation)
    if block is not None and isinstance(value, (list, tuple)) and typing.get_origin(annotation) is list:
        return annotation, [_item(block, item, where, f"{path}.{index}") for index, item in enumerate(value)]
    if block is None or value is None or typing.get_origin(annotation) is list:
        return annotation, _checked(annotation, value, where, path)
    _require_mapping(value, where, path)
    block_class = _subclass(block, value, where, f"{path}.")
    if _is_optional(annotation):
        # A dict and not an instance: Dagster refuses an instance as the default of an optional block.
        return typing.Optional[block_class], {}
    try:
        return block_class, block_class()
    except ValidationError as error:
        raise type_error(error, lambda inner: where(f"{path}.{inner}")) from error


def _item(block: type[dg.Config], item: Any, where: Where, path: str) -> dict[str, Any]:
    """A block in a list, whole: a launch replaces lists as they are, so there are no siblings to keep."""
    values = item.model_dump() if isinstance(item, BaseModel) else item
    _require_mapping(values, where, path)
    for name, value in values.items():
        _require_known(block, name, where, f"{path}.{name}")
        _checked(block.model_fields[name].annotation, value, where, f"{path}.{name}")
    return block(**values).model_dump()


def _require_known(block: type[BaseModel], name: Any, where: Where, path: str) -> None:
    if name not in block.model_fields:
        raise ConfigError(unknown_field(name, block.model_fields), where=where(path), fix=_REMOVE)


def _require_mapping(value: Any, where: Where, path: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"must be a block of fields, got {value!r}",
            where=where(path),
            fix="write its fields below it, indented",
        )


def _checked(annotation: Any, value: Any, where: Where, path: str) -> Any:
    """The value as its type, checked here because Dagster's own word on a wrong class default names no field."""
    plain = _plain(value)
    try:
        checked = TypeAdapter(annotation).validate_python(plain, strict=True)
    except ValidationError as error:
        raise type_error(error, lambda inner: where(f"{path}.{inner}" if inner else path)) from error
    for key, item in checked.items() if isinstance(checked, Mapping) else ():
        if item is None:
            # Dagster's maps hold no null, and its word on one is about its own internals.
            raise ConfigError("can't be null", where=where(f"{path}.{key}"), fix="leave it out")
    _require_json(checked, where, path)
    return checked


def _require_json(value: Any, where: Where, path: str) -> None:
    """Refuse what a free-form value can hold and config can't: a date, a set, a key that isn't text."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _require_json(item, where, f"{path}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for index, item in enumerate(value):
            _require_json(item, where, f"{path}.{index}")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise ConfigError(
            f"must be a number, text, list or mapping, got {value!r}",
            where=where(path),
            fix="write it in quotes, so that YAML reads it as text",
        )


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _block_class(annotation: Any) -> type[dg.Config] | None:
    """The block class that an annotation holds, directly, optionally or in a list."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, dg.Config):
            return candidate
    return None


def _is_optional(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    return origin in (typing.Union, types.UnionType) and type(None) in typing.get_args(annotation)
