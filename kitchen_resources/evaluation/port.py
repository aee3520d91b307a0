"""The evaluation port: what is asked of a model, and the answer with its uncertainty."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate, as local folders.

    Attributes:
        folder: Config and weights; of the base when there is an adapter.
        adapter: Folder of a LoRA adapter on it, or None.
        tokenizer: Folder of the tokenizer.
        digest: What identifies its weights.
        dtype: Name of the torch type to hold the weights in.
        attention: Kernel that it was trained with.
        device: Where to run it.
        threads: CPU threads to use.
    """

    folder: Path
    adapter: Path | None
    tokenizer: Path
    digest: str
    dtype: str
    attention: str
    device: str
    threads: int


@dataclass(frozen=True)
class LoadedModel:
    """A model that is being evaluated, in memory.

    Attributes:
        source: What it was loaded from; what else a task loads goes to the same device, in the same type.
        model: The model, in evaluation mode and with its adapter.
        tokenizer: Its tokenizer.
    """

    source: EvaluatedModel
    model: Any
    tokenizer: Any


class Task(Protocol):
    """What is asked of a model: the rows, the measures on them, and how they are taken.

    Attributes:
        name: Prefix of its metrics.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    def spec(self) -> dict[str, Any]:
        """What is asked, without the model and without what moves no number: results of one spec can be compared."""
        ...

    def measure(self, model: LoadedModel) -> "EvaluationResult":
        """Ask a model. No gradients are on, and the process's random numbers are put back afterwards.

        Raises:
            ConfigError: A scorer isn't known, or can't take its options.
            EvaluationError: What was measured can't be reported; the message names the row or the episode.
        """
        ...


@dataclass(frozen=True)
class Question:
    """One row to evaluate: what the model reads, and what it should answer.

    Attributes:
        where: Its place, for people.
        prompt_ids: Tokens to go on from; empty when there is nothing to answer.
        expected: The answer, or None.
        prompt: What the tokens say, for people.
    """

    where: str
    prompt_ids: Sequence[int]
    expected: str | None
    prompt: str


@dataclass(frozen=True)
class EvaluationTask:
    """The loss on rows, and greedy answers that are scored.

    Attributes:
        name: Prefix of its metrics.
        digest: Digest of its rows.
        questions: Rows to answer and score; empty when only the loss is asked.
        scored: Parquet file whose `input_ids` and `labels` give the loss, or None.
        scorer: Registered name.
        scorer_args: Options of the scorer.
        max_tokens: Longest answer.
        batch_size: Rows at a time.
        stop_token_ids: Where an answer ends.
        stop_strings: Texts at which it ends, in a template that has no token for it.
        pad_token_id: Filler of short rows.
    """

    name: str
    digest: str
    questions: Sequence[Question]
    scored: Path | None
    scorer: str
    scorer_args: Mapping[str, Any]
    max_tokens: int
    batch_size: int
    stop_token_ids: Sequence[int]
    stop_strings: Sequence[str]
    pad_token_id: int

    def spec(self) -> dict[str, Any]:
        """See `Task.spec`."""
        return {
            "name": self.name,
            "rows": self.digest,
            "questions": len(self.questions),
            "loss": self.scored is not None,
            "scorer": self.scorer,
            "scorer_args": dict(self.scorer_args),
            "max_tokens": self.max_tokens,
        }

    def measure(self, model: LoadedModel) -> "EvaluationResult":
        """See `Task.measure`."""
        from kitchen_resources.evaluation.local import measure_rows

        return measure_rows(model, self)


@dataclass(frozen=True)
class Measure:
    """A measured value.

    Attributes:
        value: The mean over the rows.
        n: Number of rows.
        low: Lower end of the 95 % interval; NaN when there are too few rows for one.
        high: Upper end.
    """

    value: float
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found. A metric that wasn't measured isn't in it: not measured is never zero.

    Attributes:
        measures: By `<evaluation>/<metric>`.
        samples: A few rows: evaluation, where, prompt, expected, answer, score; of a pair also rejected.
        note: Why there are no measures, or "".
    """

    measures: Mapping[str, Measure]
    samples: Sequence[Mapping[str, Any]]
    note: str = ""

    def metrics(self) -> dict[str, float]:
        """The values alone."""
        return {name: measure.value for name, measure in self.measures.items()}

    def as_json(self) -> dict[str, Any]:
        """As stored; an interval that isn't known is null."""
        return {
            "measures": {
                name: {"value": m.value, "n": m.n, "low": _number(m.low), "high": _number(m.high)}
                for name, m in self.measures.items()
            },
            "samples": [dict(sample) for sample in self.samples],
            "note": self.note,
        }


def result_from_json(value: Mapping[str, Any]) -> EvaluationResult:
    """A stored result."""
    nan = float("nan")
    measures = {
        name: Measure(
            m["value"], m["n"], nan if m["low"] is None else m["low"], nan if m["high"] is None else m["high"]
        )
        for name, m in value["measures"].items()
    }
    return EvaluationResult(measures, value["samples"], value["note"])


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


@runtime_checkable
class Evaluator(Protocol):
    """Answers evaluation tasks with a model.

    Attributes:
        name: Name of the adapter. What two adapters found of one model is kept apart.
    """

    name: str

    def check(self, scorer: str, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with a scorer's name or options, or None."""
        ...

    def evaluate(self, model: EvaluatedModel, tasks: Sequence[Task]) -> EvaluationResult:
        """Evaluate a model. Random numbers and threads of the process are as before when it returns.

        Raises:
            ConfigError: A scorer isn't known, or can't take its options.
            EvaluationError: A scorer fails on a row, which is named; a loss isn't finite; too many episodes fail.
            OutOfMemory: With what to lower.
        """
        ...
