"""From a recipe's evaluations to tasks: which rows, and what is asked."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.datasets.port import DatasetStore, Example, PreparedDataset
from kitchen_resources.datasets.prepare import fetch_split
from kitchen_resources.datasets.questions import question_of
from kitchen_resources.datasets.rows import normalized_examples
from kitchen_resources.digests import digest_json
from kitchen_resources.errors import ConfigError, DataError
from kitchen_resources.evaluation.port import EvaluationTask, Question
from kitchen_resources.recipes.blocks import EvaluationConfig
from kitchen_resources.recipes.recipe import Recipe

HELD_OUT = "held_out"

EVALUATION_VERSION = 1
"""Raised by hand when the same model and rows would be measured otherwise."""


def evaluation_key(tasks: Sequence[EvaluationTask], evaluator: str) -> str:
    """Key of what is asked and of who answers it, whatever the model."""
    specs = [task.spec() for task in tasks]
    return digest_json({"version": EVALUATION_VERSION, "evaluator": evaluator, "tasks": specs})


def make_tasks(
    recipe: Recipe,
    prepared: PreparedDataset,
    renderer: Any,
    datasets: DatasetStore,
    content: ContentStore,
    folder: Path,
    *,
    conversational: bool,
) -> list[EvaluationTask]:
    """The tasks of a recipe: the loss on its held-out rows, and its own evaluations.

    Args:
        recipe: What is trained.
        prepared: Its data.
        renderer: Tokens of prompts.
        datasets: Where other data sets are.
        content: Where prepared rows are.
        folder: Local folder for fetched files.
        conversational: Whether the model has a chat template.

    Raises:
        ConfigError: An evaluation names held-out rows and there are none, or two have one name.
        DataError: A data set can't be read, or has no row with an answer.
    """
    tasks: list[EvaluationTask] = []
    scored = None
    if prepared.held_out is not None:
        scored = fetch_split(content, prepared.held_out, folder / f"{prepared.held_out.blob}.parquet")
    own = {evaluation.name: evaluation for evaluation in recipe.evaluations}
    if len(own) != len(recipe.evaluations):
        raise ConfigError("two evaluations have one name", where="evaluations", fix="give each its own `name`")
    if scored is not None and not any(e.dataset == HELD_OUT and e.name == HELD_OUT for e in own.values()):
        tasks.append(_loss_task(prepared, renderer, scored))
    for evaluation in recipe.evaluations:
        if evaluation.dataset == HELD_OUT:
            if scored is None or prepared.held_out is None:
                raise ConfigError(
                    "no rows are held out", where=f"evaluations.{evaluation.name}", fix='held_out: "0.1"'
                )
            questions = _held_out_questions(scored, renderer, evaluation)
            digest = prepared.held_out.digest
            loss = scored if evaluation.name == HELD_OUT else None
        else:
            questions, digest = _other_questions(recipe, renderer, datasets, evaluation, conversational)
            loss = None
        if not questions:
            raise DataError(
                "none of its rows has a question, and an answer to compare with",
                where=f"evaluations.{evaluation.name}",
                fix="give it rows whose last message is the assistant's",
            )
        tasks.append(_task(evaluation, digest, questions, loss, renderer))
    return tasks


def _loss_task(prepared: PreparedDataset, renderer: Any, scored: Path) -> EvaluationTask:
    assert prepared.held_out is not None
    evaluation = EvaluationConfig(name=HELD_OUT)
    return _task(evaluation, prepared.held_out.digest, [], scored, renderer)


def _task(
    evaluation: EvaluationConfig, digest: str, questions: list[Question], scored: Path | None, renderer: Any
) -> EvaluationTask:
    return EvaluationTask(
        name=evaluation.name,
        digest=digest,
        questions=questions,
        scored=scored,
        scorer=evaluation.scorer,
        scorer_args=evaluation.scorer_args,
        max_tokens=evaluation.max_tokens,
        batch_size=evaluation.batch_size,
        stop_token_ids=renderer.stop_token_ids,
        stop_strings=renderer.stop_strings,
        pad_token_id=renderer.pad_token_id,
    )


def _held_out_questions(scored: Path, renderer: Any, evaluation: EvaluationConfig) -> list[Question]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(scored, columns=["where", "prompt_ids", "expected"])
    rows = (row for row in table.to_pylist() if row["expected"] is not None and row["prompt_ids"])
    return [
        Question(row["where"], row["prompt_ids"], row["expected"], renderer.tokenizer.decode(row["prompt_ids"]))
        for row in islice(rows, evaluation.samples)
    ]


def _other_questions(
    recipe: Recipe, renderer: Any, datasets: DatasetStore, evaluation: EvaluationConfig, conversational: bool
) -> tuple[list[Question], str]:
    raw = datasets.open(evaluation.dataset, split=evaluation.split)
    questions: list[Question] = []
    for outcome in normalized_examples(raw, evaluation.columns, None, conversational):
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
    return questions, digest_json(
        {"raw": raw.digest, "columns": evaluation.columns, "rendering": renderer.describe()}
    )
