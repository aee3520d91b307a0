"""Kinds of prepared rows, one a way to learn: their columns, and how an example becomes one.

What all kinds share is in `rows.RowWriter`: row ids, findings, the file, the digest over what each row gives it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kitchen_resources.datasets.pairs import RenderedPair, render_pair
from kitchen_resources.datasets.port import Example
from kitchen_resources.datasets.questions import question_of
from kitchen_resources.datasets.report import PairLengths, RowReport
from kitchen_resources.recipes.recipe import Recipe

_SHOWN = 2000
"""Characters of a sample's text."""


@dataclass(frozen=True)
class PreparedRow:
    """An example as it will be written, and what is to say of it.

    Attributes:
        columns: Beside row_id, where and example.
        tokens: Tokens that are kept.
        trained_tokens: Tokens of them that have a loss.
        digested: What the digest of the split is over.
        length: Tokens of its longest sequence, before it is cut.
        sample: Makes what the report shows of it, beside its id.
        cut_tokens: Tokens beyond `max_length`.
        truncated: Why it is cut, or "".
        untrained: Why nothing is learned of it, or ""; then it isn't written.
        fractional: Whether it has loss weights other than 0 and 1.
    """

    columns: Mapping[str, Any]
    tokens: int
    trained_tokens: int
    digested: bytes
    length: int
    sample: Callable[[], dict[str, Any]]
    cut_tokens: int = 0
    truncated: str = ""
    untrained: str = ""
    fractional: bool = False


class RowKind(Protocol):
    """How the examples of a method become prepared rows. One instance writes one split."""

    def schema(self) -> Any:
        """The Arrow schema of the split's file."""
        ...

    def render(self, example: Example) -> PreparedRow:
        """The prepared row of an example.

        Raises:
            ConfigError: The recipe's model and its rows don't go together.
            DataError: This example can't be rendered; it becomes a finding.
        """
        ...


class LearnedRows:
    """Rows that are learned by the weights of their tokens: input_ids, and labels that are -100 where nothing is.

    `weights` too where they may be fractional; and of held-out rows, and where the student answers by itself, prompt_ids
    and expected (null where a row has no answer to compare).
    """

    def __init__(self, recipe: Recipe, renderer: Any, report: RowReport, *, trained: bool) -> None:
        self._recipe = recipe
        self._renderer = renderer
        self._weighted = getattr(recipe, "train_on", "") == "customized"
        self._asks = getattr(recipe, "mode", "") == "on_policy"
        self._with_questions = self._asks or not trained

    def schema(self) -> Any:
        """See `RowKind.schema`."""
        import pyarrow

        ids = pyarrow.list_(pyarrow.int32())
        after = [("weights", pyarrow.list_(pyarrow.float32()))] if self._weighted else []
        if self._with_questions:
            after += [("prompt_ids", ids), ("expected", pyarrow.string())]
        return _schema([("input_ids", ids), ("labels", ids)], after)

    def render(self, example: Example) -> PreparedRow:
        """See `RowKind.render`."""
        rendered = self._rendered(example)
        question = question_of(example, self._renderer) if self._with_questions else ([], None)
        longest = self._recipe.max_length
        length = len(rendered.input_ids)
        ids, weights = rendered.input_ids[:longest], rendered.weights[:longest]
        columns: dict[str, Any] = {
            "input_ids": ids,
            "labels": [token if weight else -100 for token, weight in zip(ids, weights, strict=True)],
        }
        if self._weighted:
            columns["weights"] = weights
        if self._with_questions:
            columns["prompt_ids"], columns["expected"] = question
        return PreparedRow(
            columns=columns,
            tokens=len(ids),
            trained_tokens=sum(1 for weight in weights if weight),
            digested=_counted(ids) + _bytes(weights, "<f4") + (_counted(question[0]) if self._asks else b""),
            length=length,
            sample=lambda: {
                "text": rendered.text[:_SHOWN],
                "learned": rendered.trained_text(self._renderer.tokenizer)[:_SHOWN],
            },
            cut_tokens=length - len(ids),
            truncated=f"{length} tokens, max_length is {longest}" if length > longest else "",
            untrained=self._why_untrained(rendered, weights, question[0]),
            fractional=self._weighted and any(weight not in (0.0, 1.0) for weight in weights),
        )

    def _rendered(self, example: Example) -> Any:
        if example.shape == "messages":
            return self._renderer.conversation(list(example.messages), tools=list(example.tools) or None)
        if example.shape == "prompt_completion":
            return self._renderer.completion(example.prompt, example.completion)
        return self._renderer.text(example.text)

    def _why_untrained(self, rendered: Any, weights: Sequence[float], prompt: Sequence[int]) -> str:
        if self._asks and not prompt:
            return "it asks nothing that the student could answer"
        if any(weights):
            return ""
        if any(rendered.weights):
            return f"all that would be learned lies beyond max_length {self._recipe.max_length}"
        return f"train_on {getattr(self._recipe, 'train_on', '')} picks no token of it"


class ProblemRows:
    """Problems of an environment: prompt_ids, and the problem as JSON.

    Nothing of them is learned as it stands. A prompt longer than `max_length` isn't cut, which would ask something else:
    its problem is left out.
    """

    def __init__(self, recipe: Recipe, renderer: Any, report: RowReport, *, trained: bool) -> None:
        self._longest = recipe.max_length
        self._renderer = renderer
        # Refuses a template whose turns end by no token, before anything is sampled.
        renderer.dialogue()

    def schema(self) -> Any:
        """See `RowKind.schema`."""
        import pyarrow

        return _schema([("prompt_ids", pyarrow.list_(pyarrow.int32())), ("problem", pyarrow.string())])

    def render(self, example: Example) -> PreparedRow:
        """See `RowKind.render`."""
        messages = list(example.messages)
        if self._renderer.conversational:
            ids = self._renderer.generation_prompt(messages)
        else:
            ids = self._renderer.raw_prompt("".join(str(message["content"]) for message in messages))
        long = len(ids) > self._longest
        return PreparedRow(
            columns={"prompt_ids": ids, "problem": example.problem},
            tokens=len(ids),
            trained_tokens=0,
            digested=_counted(ids) + _counted(list(example.problem.encode())),
            length=len(ids),
            sample=lambda: {"prompt": _text(self._renderer, ids), "problem": example.problem[:_SHOWN]},
            truncated=f"a prompt of {len(ids)} tokens, max_length is {self._longest}; left out" if long else "",
            untrained="its prompt is longer than max_length" if long else "",
        )


class PreferenceRows:
    """Pairs: prompt_ids, chosen_ids and rejected_ids, as `pairs.render_pair` makes them.

    `max_length` bounds the prompt with either answer. An answer is cut at its end; a pair is not trained on when the
    cut, or the template, leaves nothing of an answer or makes both the same.
    """

    def __init__(self, recipe: Recipe, renderer: Any, report: RowReport, *, trained: bool) -> None:
        self._longest = recipe.max_length
        self._renderer = renderer
        self._report = report
        self._trained = trained
        self._lengths = PairLengths()

    def schema(self) -> Any:
        """See `RowKind.schema`."""
        import pyarrow

        ids = pyarrow.list_(pyarrow.int32())
        return _schema([("prompt_ids", ids), ("chosen_ids", ids), ("rejected_ids", ids)])

    def render(self, example: Example) -> PreparedRow:
        """See `RowKind.render`."""
        pair = render_pair(example, self._renderer)
        prompt = pair.prompt_ids
        room = max(self._longest - len(prompt), 0)
        chosen, rejected = pair.chosen_ids[:room], pair.rejected_ids[:room]
        cut = len(pair.chosen_ids) + len(pair.rejected_ids) - len(chosen) - len(rejected)
        # Without a prompt nothing predicts an answer's first token.
        trained_tokens = [max(len(answer) - (not prompt), 0) for answer in (chosen, rejected)]
        untrained = (
            self._why_untrained(pair, chosen, rejected) if chosen == rejected or not all(trained_tokens) else ""
        )
        if self._trained and not untrained:
            self._lengths.add(len(chosen), len(rejected))
            self._report.pairs = self._lengths.measures()
        return PreparedRow(
            columns={"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected},
            tokens=len(prompt) + len(chosen) + len(rejected),
            trained_tokens=sum(trained_tokens),
            digested=_counted(prompt) + _counted(chosen) + _counted(rejected),
            length=len(prompt) + max(len(pair.chosen_ids), len(pair.rejected_ids)),
            sample=lambda: {
                "prompt": self._text(prompt),
                "chosen": self._text(chosen),
                "rejected": self._text(rejected),
            },
            cut_tokens=cut,
            truncated=self._why_truncated(pair) if cut else "",
            untrained=untrained,
        )

    def _why_truncated(self, pair: RenderedPair) -> str:
        answers = (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids))
        lengths = {name: len(pair.prompt_ids) + len(ids) for name, ids in answers}
        said = " and ".join(f"{name} {length}" for name, length in lengths.items() if length > self._longest)
        return f"{said} tokens with the prompt, max_length is {self._longest}"

    def _why_untrained(self, pair: RenderedPair, chosen: Sequence[int], rejected: Sequence[int]) -> str:
        if not chosen or not rejected:
            return f"its prompt of {len(pair.prompt_ids)} tokens fills max_length {self._longest}"
        if pair.chosen_ids == pair.rejected_ids:
            return "chosen and rejected are the same tokens"
        if chosen == rejected:
            return f"chosen and rejected are the same up to max_length {self._longest}"
        return "an answer of one token after no prompt, which nothing predicts"

    def _text(self, ids: Sequence[int]) -> str:
        return _text(self._renderer, ids)


_KINDS: Mapping[str, Callable[..., RowKind]] = {"preference": PreferenceRows, "reinforcement": ProblemRows}
"""Kind of the methods whose rows are not learned by the weights of their tokens."""


def row_kind(recipe: Recipe, renderer: Any, report: RowReport, *, trained: bool) -> RowKind:
    """The kind of rows that a recipe's method trains on, for one split.

    Args:
        recipe: What to train.
        renderer: See `rendering.Renderer`.
        report: Where a kind puts what it measures of its rows as a whole.
        trained: Whether the split is trained on, and not held out.
    """
    return _KINDS.get(recipe.method, LearnedRows)(recipe, renderer, report, trained=trained)


def _text(renderer: Any, ids: Sequence[int]) -> str:
    decoded = renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(decoded)[:_SHOWN]


def _schema(columns: Sequence[tuple[str, Any]], after: Sequence[tuple[str, Any]] = ()) -> Any:
    import pyarrow

    place = [("row_id", pyarrow.int64()), ("where", pyarrow.string())]
    return pyarrow.schema([*place, *columns, ("example", pyarrow.string()), *after])


def _counted(ids: Sequence[int]) -> bytes:
    """Token ids with their number before them, so that no two sequences of lists have the same bytes."""
    return len(ids).to_bytes(8, "little") + _bytes(ids, "<i4")


def _bytes(values: Sequence[float], dtype: str) -> bytes:
    import numpy

    return numpy.asarray(values, dtype).tobytes()
