"""Recipes as YAML files: strict, and every error with file and line."""

import math
import os
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import yaml
from pydantic import ValidationError

from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.binding import bind, type_error, unknown_field
from kitchen_resources.recipes.blocks import PromotionRule
from kitchen_resources.recipes.fields import facts_of
from kitchen_resources.recipes.names import check_name
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition, Timetable
from kitchen_resources.recipes.rules import measured_metrics
from kitchen_resources.training.custom_loss import check_reference

DEFINITION_KEYS = (
    *("name", "workflow", "description", "schedule", "promotion", "base_from", "teacher_from", "upstream_missing"),
    *("loss", "owners", "tags"),
)
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
        promotion=_promotion(values.get("promotion"), where, recipe_class.promoted_by),
        base_from=_text(values, "base_from", where),
        teacher_from=_teacher_from(values, recipe_class, where),
        loss=_loss(values, recipe_class, where),
        upstream_missing=_upstream_missing(values, where),
        owners=_owners(values, where),
        tags=_tags(values, where),
        source=f"{path}:1",
    )
    recipe = bind(
        recipe_class,
        {key: value for key, value in values.items() if key not in DEFINITION_KEYS},
        definition,
        where=where,
    )
    if "promotion" in values:
        _require_measured(recipe, where)
    return recipe


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
    timetable = Timetable(cron=value["cron"], timezone=str(value.get("timezone", "UTC")))
    try:
        # Dagster's own check, which it would make without file and line when the location loads.
        dg.ScheduleDefinition(
            name="recipe", job_name="recipe", cron_schedule=timetable.cron, execution_timezone=timetable.timezone
        )
    except dg.DagsterInvalidDefinitionError as error:
        raise ConfigError(
            f"cron {timetable.cron!r} in timezone {timetable.timezone!r} is not a schedule",
            where=where("schedule"),
            fix=example,
        ) from error
    return timetable


def _promotion(value: Any, where: Any, metric: str) -> PromotionRule | None:
    if value is None:
        return None
    example = "promotion: {metric: held_out/loss, better_than: base}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{value!r} is not a rule", where=where("promotion"), fix=example)
    for name in value:
        if name not in PromotionRule.model_fields:
            raise ConfigError(
                unknown_field(str(name), PromotionRule.model_fields), where=where(f"promotion.{name}"), fix=example
            )
    try:
        rule = PromotionRule(**{"metric": metric, **value})
    except ValidationError as error:
        raise type_error(error, lambda inner: where(f"promotion.{inner}")) from error
    if rule.minimum is not None and not math.isfinite(rule.minimum):
        raise ConfigError("must be a finite number", where=where("promotion.minimum"), fix=example)
    return rule


def _require_measured(recipe: Recipe, where: Any) -> None:
    """Refuse a rule for promotion that no version could ever pass. A launch may measure more."""
    metric, measured = recipe.promotion.metric, measured_metrics(recipe)
    if metric not in measured:
        raise ConfigError(
            f"{metric!r} is not measured by this recipe",
            where=where("promotion.metric"),
            fix=f"one of {', '.join(measured)}" if measured else "set held_out, or an evaluation",
        )


def _text(values: Mapping[str, Any], key: str, where: Any) -> str:
    value = values.get(key, "")
    if not isinstance(value, str):
        raise ConfigError(f"must be text, got {value!r}", where=where(key), fix=f'{key}: "…"')
    return value


def _teacher_from(values: Mapping[str, Any], recipe_class: type[Recipe], where: Any) -> str:
    if "teacher_from" in values and "teacher" not in recipe_class.model_fields:
        raise ConfigError(
            f"{recipe_class.method} has no teacher",
            where=where("teacher_from"),
            fix="remove it, or workflow: distillation",
        )
    return _text(values, "teacher_from", where)


def _loss(values: Mapping[str, Any], recipe_class: type[Recipe], where: Any) -> str:
    if "loss" in values and recipe_class.method != "supervised":
        raise ConfigError(
            f"{recipe_class.method} has its own loss", where=where("loss"), fix="remove it, or workflow: supervised"
        )
    return check_reference(_text(values, "loss", where), where=where("loss"))


def _upstream_missing(values: Mapping[str, Any], where: Any) -> Literal["refuse", "train"]:
    value = values.get("upstream_missing", "refuse")
    if value not in ("refuse", "train"):
        raise ConfigError(
            f"{value!r} is neither refuse nor train", where=where("upstream_missing"), fix="upstream_missing: refuse"
        )
    return typing.cast(Literal["refuse", "train"], value)


def _owners(values: Mapping[str, Any], where: Any) -> tuple[str, ...]:
    value = values.get("owners", [])
    example = 'owners: ["team:models"], or mail addresses'
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"must be a list of texts, got {value!r}", where=where("owners"), fix=example)
    try:
        dg.AssetSpec("recipe", owners=value)
    except dg.DagsterInvalidDefinitionError as error:
        raise ConfigError(
            f"{value!r} has an owner that is neither a team nor a mail address", where=where("owners"), fix=example
        ) from error
    return tuple(value)


def _tags(values: Mapping[str, Any], where: Any) -> dict[str, str]:
    value = values.get("tags", {})
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise ConfigError(
            f"must map texts to texts, got {value!r}", where=where("tags"), fix='tags: {team: "models"}'
        )
    return dict(value)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 2e-4 is a number, as everyone but YAML 1.1 reads it, and 2024-01-01 is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _first in "-+0123456789.":
    _Loader.yaml_implicit_resolvers.setdefault(_first, []).insert(
        0, ("tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"))
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Values of a YAML mapping, and the line of each of its keys and list items by dotted path."""
    lines: dict[str, int] = {}
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError("a recipe is a mapping of fields", where=f"{path}:1", fix="workflow: supervised")
        # Before the values are made, which merges `<<` into the nodes.
        _index_lines(node, "", lines, path, (node,))
        values = loader.construct_document(node)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't be read: {error}", where=str(path), fix="save it as UTF-8 text") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(
            f"not valid YAML: {said}",
            where=f"{path}:{mark.line + 1 if mark else 1}",
            fix="correct the indentation or quoting",
        ) from error
    return typing.cast(dict[str, Any], values), lines


def _index_lines(
    node: yaml.MappingNode, prefix: str, lines: dict[str, int], path: Path, within: tuple[yaml.Node, ...]
) -> None:
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        line = key_node.start_mark.line + 1
        if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise ConfigError(
                f"{key_node.value!r} is read as something else than text",
                where=f"{path}:{line}",
                fix="write the key in quotes",
            )
        if key in lines:
            raise ConfigError(
                f"{key!r} is given twice, first in line {lines[key]}",
                where=f"{path}:{line}",
                fix="remove one of them",
            )
        lines[key] = line
        _index_value(value_node, key, lines, path, within)


def _index_value(node: yaml.Node, key: str, lines: dict[str, int], path: Path, within: tuple[yaml.Node, ...]) -> None:
    if node in within:
        raise ConfigError(f"{key!r} contains itself", where=f"{path}:{lines[key]}", fix="remove the alias (*)")
    if isinstance(node, yaml.MappingNode):
        _index_lines(node, f"{key}.", lines, path, (*within, node))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[f"{key}.{index}"] = item.start_mark.line + 1
            _index_value(item, f"{key}.{index}", lines, path, (*within, node))
