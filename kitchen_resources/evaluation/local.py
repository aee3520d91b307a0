"""Evaluating a model on this machine with transformers; and the task of every recipe, scored answers."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kitchen_resources.errors import ConfigError, EvaluationError, OutOfMemory
from kitchen_resources.evaluation.likelihood import loss_measures
from kitchen_resources.evaluation.port import (
    EvaluatedModel,
    EvaluationResult,
    EvaluationTask,
    LoadedModel,
    Measure,
    Question,
    Task,
)
from kitchen_resources.evaluation.sampling import generate
from kitchen_resources.evaluation.scorers import Scorer, asks_question, find_scorer, wrong_options
from kitchen_resources.formulas.metrics import mean_interval, wilson_interval
from kitchen_resources.formulas.scoring import Score
from kitchen_resources.numerics import preserved_numerics

SAMPLES = 8
"""Rows of a task that are shown."""


class LocalEvaluator:
    """An `Evaluator` on this machine: it loads the model once, and lets each task measure it."""

    name = "local"

    def check(self, scorer: str, arguments: Mapping[str, Any]) -> str | None:
        """See `Evaluator.check`."""
        try:
            return wrong_options(scorer, arguments)
        except ConfigError as error:
            return f"{error.what}; {error.fix}"

    def evaluate(self, model: EvaluatedModel, tasks: Sequence[Task]) -> EvaluationResult:
        """See `Evaluator.evaluate`."""
        import torch

        measures: dict[str, Measure] = {}
        samples: list[Mapping[str, Any]] = []
        with preserved_numerics(), torch.no_grad():
            torch.set_num_threads(model.threads)
            loaded = LoadedModel(model, load_model(model), _load_tokenizer(model))
            for task in tasks:
                try:
                    found = task.measure(loaded)
                except (RuntimeError, MemoryError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    raise OutOfMemory(
                        "ran out of memory", where=f"evaluation {task.name}", fix="lower its batch_size or max_tokens"
                    ) from error
                measures.update(found.measures)
                samples += found.samples
        return EvaluationResult(measures, samples)


class NoopEvaluator:
    """An `Evaluator` that measures nothing, and says so."""

    name = "noop"

    def check(self, scorer: str, arguments: Mapping[str, Any]) -> str | None:
        """See `Evaluator.check`."""
        return None

    def evaluate(self, model: EvaluatedModel, tasks: Sequence[Task]) -> EvaluationResult:
        """See `Evaluator.evaluate`."""
        return EvaluationResult({}, [], note="not measured: the noop evaluator is in use")


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether a device or the host has no room; torch has no type of its own for the host."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def load_model(model: EvaluatedModel) -> Any:
    """A model in evaluation mode, with its adapter, on its device."""
    from transformers import GenerationConfig

    from kitchen_resources.training.pytorch.models import load_causal_lm, quiet_libraries

    loaded = load_causal_lm(model.folder, dtype=model.dtype, attention=model.attention)
    # Transformers fills what `_generate` leaves out from the model's own settings: no_repeat_ngram_size, min_new_tokens …
    loaded.generation_config = GenerationConfig()
    if model.adapter is not None:
        from peft import PeftModel

        with quiet_libraries():
            loaded = PeftModel.from_pretrained(loaded, model.adapter, is_trainable=False)
    return loaded.to(model.device).eval()


def _load_tokenizer(model: EvaluatedModel) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.tokenizer, trust_remote_code=False, local_files_only=True)


def measure_rows(model: LoadedModel, task: EvaluationTask) -> EvaluationResult:
    """See `EvaluationTask.measure`."""
    measures = loss_measures(model.model, task) if task.scored is not None else {}
    if not task.questions:
        return EvaluationResult(measures, [])
    scorer = find_scorer(task.scorer)
    answers = _answer(model.model, model.tokenizer, task)
    scores = _score(scorer, task, answers)
    return EvaluationResult({**measures, **_score_measures(task, scores)}, _samples(task, scores, answers))


def _answer(model: Any, tokenizer: Any, task: EvaluationTask) -> list[str]:
    """Greedy answers, in the order of the questions."""
    order = sorted(range(len(task.questions)), key=lambda index: len(task.questions[index].prompt_ids))
    answers = [""] * len(order)
    for start in range(0, len(order), task.batch_size):
        indices = order[start : start + task.batch_size]
        prompts = [list(task.questions[index].prompt_ids) for index in indices]
        for index, answer in zip(indices, _generate(model, tokenizer, prompts, task), strict=True):
            answers[index] = answer
    return answers


def _score(scorer: Scorer, task: EvaluationTask, answers: Sequence[str]) -> list[Score]:
    """The score of each answer; whatever is wrong names the row."""
    rows = list(zip(task.questions, answers, strict=True))
    at_once = getattr(scorer, "concurrency", 1)
    if at_once == 1:
        return [_score_row(scorer, task, question, answer) for question, answer in rows]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda row: _score_row(scorer, task, *row), rows))


def _score_row(scorer: Scorer, task: EvaluationTask, question: Question, answer: str) -> Score:
    where = f"evaluation {task.name}, {question.where}"
    asked = {"question": question.prompt} if asks_question(scorer) else {}
    try:
        score = scorer(answer.strip(), (question.expected or "").strip(), **asked, **task.scorer_args)
    except ConfigError:
        # The options are wrong, and not the row.
        raise
    except EvaluationError as error:
        raise EvaluationError(error.what, where=where, fix=error.fix) from error
    except Exception as error:
        raise EvaluationError(
            f"the scorer {task.scorer} failed: {error!r}", where=where, fix="correct the scorer or the row"
        ) from error
    if not isinstance(score, Score) or not math.isfinite(score.score):
        raise EvaluationError(
            f"the scorer {task.scorer} returned {score!r}",
            where=where,
            fix="return kitchen_resources.formulas.scoring.Score(score, passed), with a finite score",
        )
    return score


def _generate(model: Any, tokenizer: Any, prompts: list[list[int]], task: EvaluationTask) -> list[str]:
    output = generate(
        model,
        prompts,
        max_tokens=task.max_tokens,
        stop_token_ids=task.stop_token_ids,
        pad_token_id=task.pad_token_id,
        stop_strings=task.stop_strings,
        **({"tokenizer": tokenizer} if task.stop_strings else {}),
    )
    return [_cut(tokenizer, tokens, task) for tokens in output]


def _cut(tokenizer: Any, tokens: list[int], task: EvaluationTask) -> str:
    """The text of an answer, up to where it ends."""
    ends = [tokens.index(stop) for stop in task.stop_token_ids if stop in tokens]
    kept = tokens[: min(ends)] if ends else tokens
    text: str = tokenizer.decode(kept, skip_special_tokens=True)
    for stop in task.stop_strings:
        text = text.split(stop, 1)[0]
    return text


def _score_measures(task: EvaluationTask, scores: Sequence[Score]) -> dict[str, Measure]:
    """The mean score, and the share that passed where that is another number."""
    values = [score.score for score in scores]
    passed = sum(score.passed for score in scores)
    n = len(scores)
    low, high = wilson_interval(passed, n)
    share = Measure(passed / n, n, low, high)
    if all(value == float(score.passed) for value, score in zip(values, scores, strict=True)):
        return {f"{task.name}/{task.scorer}": share}
    low, high = mean_interval(values)
    return {
        f"{task.name}/{task.scorer}": Measure(math.fsum(values) / n, n, low, high),
        f"{task.name}/{task.scorer}_passed": share,
    }


def _samples(task: EvaluationTask, scores: Sequence[Score], answers: Sequence[str]) -> list[dict[str, Any]]:
    rows: Sequence[Question] = task.questions
    return [
        {
            "evaluation": task.name,
            "where": row.where,
            "prompt": row.prompt,
            "expected": row.expected,
            "answer": answer,
            "score": score.score,
        }
        for row, answer, score in list(zip(rows, answers, scores, strict=True))[:SAMPLES]
    ]
