"""From a recipe's evaluations to tasks: which rows, and what is asked."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from kitchen_resources.datasets.port import Example
from kitchen_resources.datasets.prepare import fetch_split
from kitchen_resources.datasets.questions import question_of
from kitchen_resources.datasets.rows import normalized_examples
from kitchen_resources.digests import digest_json
from kitchen_resources.errors import ConfigError, DataError
from kitchen_resources.evaluation.harness import harness_task
from kitchen_resources.evaluation.held_out import (
    HELD_OUT,
    METHODS_WITHOUT_ANSWERS,
    METHODS_WITHOUT_LABELS,
    HeldOutRows,
    measures_of_method,
    row_task,
)
from kitchen_resources.evaluation.port import EvaluationTask, Question, Task
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.blocks import HARNESS, EvaluationConfig
from kitchen_resources.recipes.preference import PreferenceRecipe

EVALUATION_VERSION = 1
"""Raised by hand when the same model and rows would be measured otherwise."""


def evaluation_key(tasks: Sequence[Task], evaluator: str) -> str:
    """Key of what is asked and of who answers it, whatever the model."""
    specs = [task.spec() for task in tasks]
    return digest_json({"version": EVALUATION_VERSION, "evaluator": evaluator, "tasks": specs})


def make_tasks(launch: Launch, folder: Path) -> list[Task]:
    """The tasks of a launch: what its method measures of the held-out rows, and the recipe's own evaluations.

    Args:
        launch: What is trained, and on what.
        folder: Local folder for fetched files.

    Raises:
        ConfigError: An evaluation names held-out rows and there are none, or none with answers; or two have one name.
        DataError: A data set can't be read, or has no row with an answer.
    """
    evaluations = launch.recipe.evaluations
    if len({evaluation.name for evaluation in evaluations}) != len(evaluations):
        raise ConfigError("two evaluations have one name", where="evaluations", fix="give each its own `name`")
    held_out = _held_out_rows(launch, folder)
    tasks: list[Task] = [] if held_out is None else measures_of_method(launch, held_out)
    for evaluation in evaluations:
        if evaluation.scorer == HARNESS:
            limit, size = evaluation.samples, evaluation.batch_size
            tasks.append(harness_task(evaluation.name, evaluation.scorer_args, limit=limit, batch_size=size))
        elif evaluation.dataset != HELD_OUT:
            tasks.append(_task_on_other_rows(launch, evaluation))
        elif held_out is None:
            raise ConfigError("no rows are held out", where=f"evaluations.{evaluation.name}", fix='held_out: "0.1"')
        elif launch.recipe.method not in METHODS_WITHOUT_ANSWERS:
            tasks.append(_task_on_held_out_rows(launch, evaluation, held_out))
        elif evaluation.name != HELD_OUT:
            raise ConfigError(
                f"the held-out rows of {launch.recipe.method} have no answers to compare with",
                where=f"evaluations.{evaluation.name}",
                fix="name a data set with answers",
            )
    return tasks


def _held_out_rows(launch: Launch, folder: Path) -> HeldOutRows | None:
    split = launch.prepared.held_out
    if split is None:
        return None
    evaluations = launch.recipe.evaluations
    own = (each for each in evaluations if each.name == each.dataset == HELD_OUT and each.scorer != HARNESS)
    path = fetch_split(launch.content, split, folder / f"{split.blob}.parquet")
    return HeldOutRows(split, path, next(own, None))


def _task_on_held_out_rows(launch: Launch, evaluation: EvaluationConfig, rows: HeldOutRows) -> EvaluationTask:
    decode = launch.rendering.renderer.tokenizer.decode
    asked = (row for row in _answered(rows, launch.recipe.method) if row[2] is not None and row[1])
    questions = [
        Question(where, prompt_ids, expected, decode(prompt_ids))
        for where, prompt_ids, expected in islice(asked, evaluation.samples)
    ]
    _require_questions(evaluation, questions)
    has_loss = evaluation.name == HELD_OUT and launch.recipe.method not in METHODS_WITHOUT_LABELS
    scored = rows.path if has_loss else None
    return row_task(launch, evaluation, rows.split.digest, questions, scored)


def _answered(rows: HeldOutRows, method: str) -> Iterator[tuple[str, list[int], str | None]]:
    """Place, prompt and right answer of held-out rows; of a pair the chosen one."""
    import pyarrow.parquet

    if method != PreferenceRecipe.method:
        table = pyarrow.parquet.read_table(rows.path, columns=["where", "prompt_ids", "expected"])
        yield from ((row["where"], row["prompt_ids"], row["expected"]) for row in table.to_pylist())
        return
    for row in pyarrow.parquet.read_table(rows.path, columns=["where", "prompt_ids", "example"]).to_pylist():
        chosen = json.loads(row["example"])["chosen"]
        yield row["where"], row["prompt_ids"], chosen if isinstance(chosen, str) else chosen[-1].get("content")


def _task_on_other_rows(launch: Launch, evaluation: EvaluationConfig) -> EvaluationTask:
    renderer: Any = launch.rendering.renderer
    raw = launch.ports.datasets.open(evaluation.dataset, split=evaluation.split)
    questions: list[Question] = []
    for outcome in normalized_examples(raw, evaluation.columns, None, launch.rendering.conversational):
        if not isinstance(outcome, Example):
            row, reason = outcome
            raise DataError(
                f"row {row.row_id} ({row.where}): {reason}", where=f"evaluations.{evaluation.name}", fix="correct it"
            )
        prompt_ids, expected = question_of(outcome, renderer)
        if expected is not None and prompt_ids:
            questions.append(Question(outcome.where, prompt_ids, expected, renderer.tokenizer.decode(prompt_ids)))
        if evaluation.samples is not None and len(questions) == evaluation.samples:
            break
    _require_questions(evaluation, questions)
    digest = digest_json({"raw": raw.digest, "columns": evaluation.columns, "rendering": renderer.describe()})
    return row_task(launch, evaluation, digest, questions, None)


def _require_questions(evaluation: EvaluationConfig, questions: Sequence[Question]) -> None:
    if not questions:
        raise DataError(
            "none of its rows has a question, and an answer to compare with",
            where=f"evaluations.{evaluation.name}",
            fix="give it rows whose last message is the assistant's",
        )
