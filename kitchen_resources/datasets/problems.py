"""Problems of an environment as rows: those that it makes itself, and what it makes of the rows of a data set."""

import json
from collections.abc import Iterator
from itertools import islice

from kitchen_resources.datasets.port import Example, RawDataset, RawRow
from kitchen_resources.digests import digest_json
from kitchen_resources.environments.options import identity_of
from kitchen_resources.environments.pool import EnvironmentPool
from kitchen_resources.environments.port import EnvironmentFailure
from kitchen_resources.errors import ConfigError, DataError
from kitchen_resources.recipes.reinforcement import OWN_PROBLEMS, ReinforcementRecipe

_CHUNK = 1000
_MOST = 100_000
"""Problems that are taken of an environment at most, which may make them without end."""


def environment_pool(recipe: ReinforcementRecipe) -> EnvironmentPool:
    """The worker processes in which a recipe's environment runs."""
    return EnvironmentPool(
        recipe.environment_spec(),
        workers=recipe.environment.workers,
        time_limit_s=recipe.environment.time_limit_s,
    )


def own_problems(recipe: ReinforcementRecipe) -> RawDataset:
    """The problems that an environment makes itself, as a data set.

    Raises:
        ConfigError: It makes none.
        DataError: It fails to.
    """
    name = recipe.environment.name
    if recipe.max_rows is not None and recipe.max_rows > _MOST:
        raise ConfigError(
            f"{recipe.max_rows} problems are more than the {_MOST} that are taken of an environment",
            where="max_rows",
            fix=f"max_rows: {_MOST}, or write them to a file and name it as dataset",
        )
    with environment_pool(recipe) as pool:
        problems = [dict(problem) for problem in pool.problems(recipe.max_rows or _MOST)]
    if not problems:
        raise ConfigError(
            f"the environment {name} makes no problems itself",
            where="dataset",
            fix="dataset: a file, folder or hub id",
        )
    digest = digest_json({"environment": identity_of(recipe.environment_spec()), "problems": problems})

    def read() -> Iterator[RawRow]:
        for row_id, problem in enumerate(problems):
            yield RawRow(row_id, f"{name}[{row_id}]", problem)

    return RawDataset(OWN_PROBLEMS, "environment", digest, {}, "", "", read)


def observed_examples(
    raw: RawDataset, recipe: ReinforcementRecipe, max_rows: int | None
) -> Iterator[Example | tuple[RawRow, str]]:
    """The rows of a data set as problems with the conversation that each starts with, in order.

    A row that the environment can't take is given with the reason.

    Raises:
        DataError: `columns` names a column that isn't there.
    """
    rows = islice(raw.rows(), max_rows)
    with environment_pool(recipe) as pool:
        while chunk := list(islice(rows, _CHUNK)):
            problems = [_problem(row, recipe, raw.reference) for row in chunk]
            taken = [problem for problem in problems if not isinstance(problem, str)]
            starts = iter(pool.observe([json.loads(json.dumps(problem)) for problem in taken]))
            for row, problem in zip(chunk, problems, strict=True):
                yield (row, problem) if isinstance(problem, str) else _example(row, problem, next(starts))


def _problem(row: RawRow, recipe: ReinforcementRecipe, reference: str) -> dict[str, object] | str:
    """A row as a problem; or why it is none."""
    value = dict(row.value)
    for ours, theirs in recipe.columns.items():
        if theirs not in value:
            raise DataError(
                f"`columns` names {theirs!r} for {ours!r}, and row {row.row_id} has {', '.join(sorted(value))}",
                where=f"dataset {reference}",
                fix=f"columns: {{{ours}: one of those}}",
            )
        value[ours] = value.pop(theirs) if theirs not in recipe.columns else value[theirs]
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"holds what is not a JSON value: {error}"
    return value


def _example(row: RawRow, problem: dict[str, object], start: object) -> Example | tuple[RawRow, str]:
    if isinstance(start, EnvironmentFailure):
        return row, f"the environment can't take it: {start.message}"
    assert isinstance(start, list)
    text = json.dumps(problem, sort_keys=True, ensure_ascii=False)
    return Example(row.row_id, row.where, "problem", messages=tuple(start), problem=text)
