"""Recipes as YAML files: strict, and every error with file and line."""

import difflib
import math
import os
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic import ValidationError

from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.binding import bind, type_error, unknown_field
from kitchen_resources.recipes.blocks import PromotionRule
from kitchen_resources.recipes.fields import facts_of
from kitchen_resources.recipes.names import check_name
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition, Timetable
from kitchen_resources.recipes.rules import measured_metrics
from kitchen_resources.recipes.yaml_lines import read_mapping
from kitchen_resources.training.loops.stages import check_batch_stages
from kitchen_resources.training.own_code import check_reference

DEFINITION_KEYS = (
    *("name", "workflow", "extends", "description", "schedule", "new_data", "promotion", "base_from", "teacher_from"),
    *("upstream_missing", "loss", "batch_stages", "required_ports", "optional_ports", "owners", "tags"),
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


def load_recipes(folder: Path, methods: Mapping[str, type[Recipe]], beside: Sequence[Recipe] = ()) -> list[Recipe]:
    """The recipes of a folder's `*.yaml` and `*.yml` files, by file name.

    Args:
        folder: Where to look; subfolders aren't read.
        methods: Recipe class of each workflow.
        beside: Recipes of other folders, which these may extend.

    Raises:
        ConfigError: A file is malformed, two define one name, or one extends what isn't there or itself.
    """
    files: dict[str, RecipeFile] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".yaml", ".yml")):
        file = RecipeFile.read(path)
        for other in files.values():
            if other.name == file.name:
                raise ConfigError(
                    f"recipe {file.name!r} is also defined in {other.path}:1",
                    where=f"{path}:1",
                    fix="rename one of the two (`name: …`)",
                )
        files[file.name] = file
    known = {recipe.definition.name: recipe for recipe in beside}
    made: dict[str, Recipe] = {}

    def make(file: RecipeFile, above: tuple[str, ...]) -> Recipe:
        if file.name not in made:
            extended = file.extends
            if extended in files:
                path = (*above, file.name)
                if extended in path:
                    chain = " extends ".join((*path[path.index(extended) :], extended))
                    raise ConfigError(f"extends itself: {chain}", where=file.where("extends"), fix="remove it")
                known[extended] = make(files[extended], path)
            made[file.name] = file.recipe(methods, {**known, **made}, files)
        return made[file.name]

    return [make(file, ()) for file in files.values()]


def load_recipe(path: Path, methods: Mapping[str, type[Recipe]], beside: Sequence[Recipe] = ()) -> Recipe:
    """The recipe that one YAML file defines.

    Args:
        path: The file.
        methods: Recipe class of each workflow.
        beside: Recipes that it may extend.

    Raises:
        ConfigError: The file isn't a mapping, repeats a key, or has an unknown key or a value of the wrong type;
            the message starts with file and line.
    """
    return RecipeFile.read(path).recipe(methods, {recipe.definition.name: recipe for recipe in beside})


@dataclass(frozen=True)
class RecipeFile:
    """A recipe file as it is written.

    Attributes:
        path: The file.
        name: Name of the recipe, by default the file's.
        extends: Name of the recipe whose values it has where it says nothing else, or "".
        values: Its keys.
        lines: The line of each key and list item, by dotted path.
    """

    path: Path
    name: str
    extends: str
    values: Mapping[str, Any]
    lines: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> "RecipeFile":
        """Read a file.

        Raises:
            ConfigError: It isn't a mapping, repeats a key, or its name can't be one.
        """
        values, lines = read_mapping(path)
        file = cls(path, str(values.get("name", path.stem)), "", values, lines)
        check_name(file.name, where=file.where("name"))
        return replace(file, extends=_text(values, "extends", file.where))

    def where(self, field: str) -> str:
        """The place of a field, by dotted path; what the file doesn't name is at its `extends`, or its first line."""
        parts = field.split(".")
        while parts and ".".join(parts) not in self.lines:
            parts.pop()
        line = self.lines.get(".".join(parts), self.lines.get("extends", 1))
        return f"{self.path}:{line}, {field}" if field else f"{self.path}:{line}"

    def recipe(
        self, methods: Mapping[str, type[Recipe]], known: Mapping[str, Recipe], names: Collection[str] = ()
    ) -> Recipe:
        """The recipe that it defines.

        Args:
            methods: Recipe class of each workflow.
            known: The recipe that it extends, among others, by name.
            names: Further names that it could have meant.

        Raises:
            ConfigError: It has an unknown key or a value of the wrong type, or extends what isn't there.
        """
        values, where = self.values, self.where
        extended = self._extended(known, names)
        inherited = extended.definition if extended else RecipeDefinition()
        # The class of a recipe has its values as defaults, and a subclass of it those that are not given.
        recipe_class = type(extended) if extended else _recipe_class(values, methods, where)
        fields = {key for key, field in recipe_class.model_fields.items() if facts_of(field) is not None}
        for key in values:
            if key not in fields and key not in DEFINITION_KEYS:
                raise ConfigError(
                    unknown_field(key, [*fields, *DEFINITION_KEYS]),
                    where=where(key),
                    fix="correct or remove it; docs/recipes.md lists every field",
                )
        readers: Mapping[str, Callable[[], Any]] = {
            "promotion": lambda: _promotion(
                values["promotion"], where, recipe_class.promoted_by, inherited.promotion
            ),
            "base_from": lambda: _text(values, "base_from", where),
            "teacher_from": lambda: _teacher_from(values, recipe_class, where),
            "loss": lambda: _loss(values, recipe_class, where),
            "batch_stages": lambda: check_batch_stages(values["batch_stages"], recipe_class.method, where=where),
            "upstream_missing": lambda: _upstream_missing(values, where),
            "required_ports": lambda: _ports(values, "required_ports", where),
            "optional_ports": lambda: _ports(values, "optional_ports", where),
            "owners": lambda: _owners(values, where),
            "tags": lambda: {**inherited.tags, **_tags(values, where)},
        }
        definition = replace(
            inherited,
            **{key: read() for key, read in readers.items() if key in values},
            # What says when to launch is of the recipe that says it: a family of recipes isn't launched as one.
            name=self.name,
            workflow=extended.workflow if extended else str(values["workflow"]),
            description=_text(values, "description", where),
            schedule=_timetable(values.get("schedule"), where),
            new_data=_new_data(values, where),
            source=f"{self.path}:1",
        )
        recipe = bind(
            recipe_class,
            {key: value for key, value in values.items() if key not in DEFINITION_KEYS},
            definition,
            where=where,
        )
        if recipe.definition.promotion is not None:
            _require_measured(recipe, where)
        if recipe.definition.new_data is not None and not recipe.dataset:
            raise ConfigError("the recipe names no data set to look at", where=where("new_data"), fix="dataset: …")
        return recipe

    def _extended(self, known: Mapping[str, Recipe], names: Collection[str]) -> Recipe | None:
        if not self.extends:
            return None
        found = known.get(self.extends)
        if found is None:
            there = sorted({*known, *names} - {self.name})
            close = difflib.get_close_matches(self.extends, there, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"there is no recipe {self.extends!r} to extend{hint}",
                where=self.where("extends"),
                fix=f"one of {', '.join(there)}" if there else "remove it",
            )
        workflow = self.values.get("workflow", found.workflow)
        if workflow != found.workflow:
            raise ConfigError(
                f"is {workflow!r}, and {self.extends} is trained by {found.workflow!r}",
                where=self.where("workflow"),
                fix=f"remove it, or extend a recipe of {workflow!r}",
            )
        return found


def _recipe_class(values: Mapping[str, Any], methods: Mapping[str, type[Recipe]], where: Any) -> type[Recipe]:
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


def _new_data(values: Mapping[str, Any], where: Any) -> float | None:
    """How often to look for new data, in seconds; None for never."""
    value = values.get("new_data")
    if value is None:
        return None
    example = "new_data: {every_minutes: 10}"
    if not isinstance(value, Mapping) or set(value) != {"every_minutes"}:
        raise ConfigError(f"{value!r} doesn't say how often to look", where=where("new_data"), fix=example)
    minutes = value["every_minutes"]
    if isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or not 0 < minutes < math.inf:
        raise ConfigError(f"must be above 0, got {minutes!r}", where=where("new_data.every_minutes"), fix=example)
    return float(minutes) * 60.0


def _ports(values: Mapping[str, Any], key: str, where: Any) -> tuple[str, ...]:
    value = values[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(
            f"must be a list of resource keys, got {value!r}", where=where(key), fix=f"{key}: [trainer]"
        )
    return tuple(dict.fromkeys(value))


def _promotion(value: Any, where: Any, metric: str, inherited: PromotionRule | None) -> PromotionRule | None:
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
        before = inherited.model_dump(exclude_unset=True) if inherited else {}
        rule = PromotionRule(**{"metric": metric, **before, **value})
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
    return check_reference(_text(values, "loss", where), "loss", where=where("loss"))


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
