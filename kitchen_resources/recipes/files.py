"""Recipes as YAML files: strict, and every error with file and line."""

import os
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.binding import bind, unknown_field
from kitchen_resources.recipes.fields import facts_of
from kitchen_resources.recipes.names import check_name
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition, Timetable

DEFINITION_KEYS = ("name", "workflow", "description", "schedule", "base_from", "owners", "tags")
"""Keys of a recipe file that are fixed at definition; all others are fields of the recipe."""


def recipe_folder() -> Path | None:
    """The folder of recipe files: `KITCHEN_RECIPES`, by default `./recipes`; None when the default isn't there.

    Raises:
        ConfigError: `KITCHEN_RECIPES` is set and is not a folder.
    """
    named = os.environ.get("KITCHEN_RECIPES")
    folder = Path(named or "recipes")
    if folder.is_dir():
        return folder
    if named:
        raise ConfigError(f"{named!r} is not a folder", where="KITCHEN_RECIPES", fix=f"mkdir -p {named}, or unset it")
    return None


def load_recipes(folder: Path, methods: Mapping[str, type[Recipe]]) -> list[Recipe]:
    """The recipes of a folder's `*.yaml` and `*.yml` files, by file name.

    Args:
        folder: Where to look; subfolders aren't read.
        methods: Recipe class of each workflow.

    Raises:
        ConfigError: A file is malformed, or two define one name.
    """
    recipes: list[Recipe] = []
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".yaml", ".yml")):
        recipe = load_recipe(path, methods)
        for other in recipes:
            if other.definition.name == recipe.definition.name:
                raise ConfigError(
                    f"recipe {recipe.definition.name!r} is also defined in {other.definition.source}",
                    where=recipe.definition.source,
                    fix="rename one of the two (`name: …`)",
                )
        recipes.append(recipe)
    return recipes


def load_recipe(path: Path, methods: Mapping[str, type[Recipe]]) -> Recipe:
    """The recipe that one YAML file defines.

    Raises:
        ConfigError: The file isn't a mapping, repeats a key, or has an unknown key or a value of the wrong type;
            the message starts with file and line.
    """
    values, lines = _read(path)

    def where(field: str) -> str:
        parts = field.split(".")
        while parts and ".".join(parts) not in lines:
            parts.pop()
        line = lines.get(".".join(parts), 1)
        return f"{path}:{line}, {field}" if field else f"{path}:{line}"

    name = str(values.get("name", path.stem))
    check_name(name, where=where("name"))
    recipe_class = _recipe_class(values, methods, where, path)
    known = {key for key, field in recipe_class.model_fields.items() if facts_of(field) is not None}
    for key in values:
        if key not in known and key not in DEFINITION_KEYS:
            raise ConfigError(
                unknown_field(key, [*known, *DEFINITION_KEYS]),
                where=where(key),
                fix="correct or remove it; docs/recipes.md lists every field",
            )
    definition = RecipeDefinition(
        name=name,
        description=_text(values, "description", where),
        schedule=_timetable(values.get("schedule"), where),
        base_from=_text(values, "base_from", where),
        owners=tuple(_texts(values, "owners", where)),
        tags=_tags(values, where),
        source=f"{path}:1",
    )
    return bind(
        recipe_class,
        {key: value for key, value in values.items() if key not in DEFINITION_KEYS},
        definition,
        where=where,
    )


def _recipe_class(
    values: Mapping[str, Any], methods: Mapping[str, type[Recipe]], where: Any, path: Path
) -> type[Recipe]:
    workflow = values.get("workflow")
    if not isinstance(workflow, str) or workflow not in methods:
        said = "no `workflow` is named" if workflow is None else f"there is no workflow {workflow!r}"
        raise ConfigError(said, where=where("workflow"), fix=f"workflow: one of {', '.join(sorted(methods))}")
    return methods[workflow]


def _timetable(value: Any, where: Any) -> Timetable | None:
    if value is None:
        return None
    example = 'schedule: {cron: "0 3 * * *", timezone: Europe/Berlin}'
    if not isinstance(value, Mapping) or not isinstance(value.get("cron"), str) or set(value) - {"cron", "timezone"}:
        raise ConfigError(f"{value!r} is not a schedule", where=where("schedule"), fix=example)
    return Timetable(cron=value["cron"], timezone=str(value.get("timezone", "UTC")))


def _text(values: Mapping[str, Any], key: str, where: Any) -> str:
    value = values.get(key, "")
    if not isinstance(value, str):
        raise ConfigError(f"must be text, got {value!r}", where=where(key), fix=f'{key}: "…"')
    return value


def _texts(values: Mapping[str, Any], key: str, where: Any) -> list[str]:
    value = values.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"must be a list of texts, got {value!r}", where=where(key), fix=f'{key}: ["team:models"]')
    return value


def _tags(values: Mapping[str, Any], where: Any) -> dict[str, str]:
    value = values.get("tags", {})
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise ConfigError(
            f"must map texts to texts, got {value!r}", where=where("tags"), fix='tags: {team: "models"}'
        )
    return dict(value)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 2e-4 is a number, as everyone but YAML 1.1 reads it."""


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
for _first in "-+0123456789.":
    _Loader.yaml_implicit_resolvers.setdefault(_first, []).insert(
        0, ("tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"))
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Values of a YAML mapping, and the line of each of its keys by dotted path."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't be read: {error}", where=str(path), fix="save it as UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(
            f"not valid YAML: {error.problem}",
            where=f"{path}:{line}",
            fix="correct the indentation or quoting",
        ) from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("a recipe is a mapping of fields", where=f"{path}:1", fix="workflow: supervised")
    lines: dict[str, int] = {}
    _index_lines(node, "", lines, path)
    return typing.cast(dict[str, Any], values), lines


def _index_lines(node: yaml.MappingNode, prefix: str, lines: dict[str, int], path: Path) -> None:
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        line = key_node.start_mark.line + 1
        if key in lines:
            raise ConfigError(
                f"{key!r} is given twice, first in line {lines[key]}",
                where=f"{path}:{line}",
                fix="remove one of them",
            )
        lines[key] = line
        if isinstance(value_node, yaml.MappingNode):
            _index_lines(value_node, f"{key}.", lines, path)
        elif isinstance(value_node, yaml.SequenceNode):
            for index, item in enumerate(value_node.value):
                if isinstance(item, yaml.MappingNode):
                    _index_lines(item, f"{key}.{index}.", lines, path)
