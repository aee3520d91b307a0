"""Evaluating a model on this machine with transformers: its loss on rows, and its answers scored."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kitchen_resources.errors import ConfigError, EvaluationError, OutOfMemory
from kitchen_resources.evaluation.port import EvaluatedModel, EvaluationResult, EvaluationTask, Measure, Question
from kitchen_resources.evaluation.scorers import Scorer, find_scorer, wrong_options
from kitchen_resources.formulas.metrics import mean_interval, perplexity, ratio_interval, wilson_interval
from kitchen_resources.formulas.scoring import Score
from kitchen_resources.numerics import preserved_numerics

_SAMPLES = 8

# Logits of a forward pass for the loss, in numbers: 1 GiB in fp32. A batch of 64 rows of 2,048 tokens over a vocabulary
# of 150,000 would take 80 GB.
_LOGITS = 1 << 28


class LocalEvaluator:
    """An `Evaluator` on this machine. Greedy answers; the loss is the mean over learned tokens."""

    name = "local"

    def check(self, scorer: str, arguments: Mapping[str, Any]) -> str | None:
        """See `Evaluator.check`."""
        try:
            return wrong_options(scorer, arguments)
        except ConfigError as error:
            return f"{error.what}; {error.fix}"

    def evaluate(self, model: EvaluatedModel, tasks: Sequence[EvaluationTask]) -> EvaluationResult:
        """See `Evaluator.evaluate`."""
        import torch

        measures: dict[str, Measure] = {}
        samples: list[Mapping[str, Any]] = []
        with preserved_numerics(), torch.no_grad():
            torch.set_num_threads(model.threads)
            loaded, tokenizer = _load(model)
            for task in tasks:
                try:
                    if task.scored is not None:
                        measures.update(_loss(loaded, task))
                    if task.questions:
                        scorer = find_scorer(task.scorer)
                        answers = _answer(loaded, tokenizer, task)
                        scores = _score(scorer, task, answers)
                        measures.update(_score_measures(task, scores))
                        samples += _samples(task, scores, answers)
                except (RuntimeError, MemoryError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    raise OutOfMemory(
                        "ran out of memory", where=f"evaluation {task.name}", fix="lower its batch_size or max_tokens"
                    ) from error
        return EvaluationResult(measures, samples)


class NoopEvaluator:
    """An `Evaluator` that measures nothing, and says so."""

    name = "noop"

    def check(self, scorer: str, arguments: Mapping[str, Any]) -> str | None:
        """See `Evaluator.check`."""
        return None

    def evaluate(self, model: EvaluatedModel, tasks: Sequence[EvaluationTask]) -> EvaluationResult:
        """See `Evaluator.evaluate`."""
        return EvaluationResult({}, [], note="not measured: the noop evaluator is in use")


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether a device or the host has no room; torch has no type of its own for the host."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _load(model: EvaluatedModel) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, GenerationConfig

    from kitchen_resources.training.trl.models import load_causal_lm, quiet_libraries

    loaded = load_causal_lm(model.folder, dtype=model.dtype, attention=model.attention)
    # Transformers fills what `_generate` leaves out from the model's own settings: no_repeat_ngram_size, min_new_tokens …
    loaded.generation_config = GenerationConfig()
    if model.adapter is not None:
        from peft import PeftModel

        with quiet_libraries():
            loaded = PeftModel.from_pretrained(loaded, model.adapter, is_trainable=False)
    tokenizer = AutoTokenizer.from_pretrained(model.tokenizer, trust_remote_code=False, local_files_only=True)
    return loaded.to(model.device).eval(), tokenizer


def _loss(model: Any, task: EvaluationTask) -> dict[str, Measure]:
    """Negative log-likelihood per learned token, in nats, and the perplexity it gives; nothing where no token is learned."""
    import pyarrow.parquet

    assert task.scored is not None
    sums: list[float] = []
    tokens: list[float] = []
    with pyarrow.parquet.ParquetFile(task.scored) as file:
        for batch in file.iter_batches(task.batch_size, columns=["input_ids", "labels"]):
            rows = list(zip(batch["input_ids"].to_pylist(), batch["labels"].to_pylist(), strict=True))
            for total, count in _row_losses(model, rows, task.pad_token_id):
                if not math.isfinite(total):
                    raise EvaluationError(
                        f"the loss of row {len(sums)} is {total}",
                        where=f"evaluation {task.name}",
                        fix="precision: fp32, or look at the model's weights",
                    )
                sums.append(total)
                tokens.append(count)
    scored = [(total, count) for total, count in zip(sums, tokens, strict=True) if count]
    if not scored:
        return {}
    sums, tokens = [total for total, _ in scored], [count for _, count in scored]
    value, n = math.fsum(sums) / math.fsum(tokens), len(scored)
    low, high = ratio_interval(sums, tokens)
    measures = {f"{task.name}/loss": Measure(value, n, low, high)}
    if math.isfinite(perplexity(value)):
        measures[f"{task.name}/perplexity"] = Measure(perplexity(value), n, perplexity(low), perplexity(high))
    return measures


def _row_losses(model: Any, rows: Sequence[tuple[list[int], list[int]]], pad: int) -> Iterator[tuple[float, float]]:
    """Sum of the losses of each row's learned tokens, and their number."""
    longest = max(len(ids) for ids, _ in rows)
    at_once = max(1, _LOGITS // (longest * model.config.get_text_config().vocab_size))
    for start in range(0, len(rows), at_once):
        yield from _forward(model, rows[start : start + at_once], pad)


def _forward(model: Any, rows: Sequence[tuple[list[int], list[int]]], pad: int) -> Iterator[tuple[float, float]]:
    import torch

    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row, _ in rows], device=model.device)
    labels = torch.tensor([label + [-100] * (longest - len(label)) for _, label in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in rows], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    targets = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), targets, ignore_index=-100, reduction="none"
    ).double()
    learned = targets != -100
    yield from zip(losses.sum(1).tolist(), learned.sum(1).double().tolist(), strict=True)


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
    scores: list[Score] = []
    for question, answer in zip(task.questions, answers, strict=True):
        where = f"evaluation {task.name}, {question.where}"
        try:
            score = scorer(answer.strip(), (question.expected or "").strip(), **task.scorer_args)
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
        scores.append(score)
    return scores


def _generate(model: Any, tokenizer: Any, prompts: list[list[int]], task: EvaluationTask) -> list[str]:
    import torch
    from transformers import GenerationConfig

    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[task.pad_token_id] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    # Everything that a model's own generation_config.json could set otherwise is given.
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=task.max_tokens,
        eos_token_id=list(task.stop_token_ids) or None,
        pad_token_id=task.pad_token_id,
        repetition_penalty=1.0,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        stop_strings=list(task.stop_strings) or None,
    )
    extra = {"tokenizer": tokenizer} if task.stop_strings else {}
    output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, **extra)
    return [_cut(tokenizer, row[longest:].tolist(), task) for row in output]


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
        for row, answer, score in list(zip(rows, answers, scores, strict=True))[:_SAMPLES]
    ]
