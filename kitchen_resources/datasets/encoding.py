"""Text to tokens with their places, and spans of text to loss weights of tokens."""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import le
from typing import TYPE_CHECKING

from kitchen_resources.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text that is trained with one weight.

    Attributes:
        start: First character.
        end: One past the last character.
        weight: Loss weight of its tokens.
        owner: What it belongs to, for messages: "message 2 (assistant)".
    """

    start: int
    end: int
    weight: float
    owner: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens and where in the text they come from.

    The bytes of one character can be several tokens; each of them then has that character's place.

    Attributes:
        text: The text.
        ids: Token ids.
        starts: First character of each token, never falling.
        ends: One past the last character of each token.
    """

    text: str
    ids: list[int]
    starts: list[int]
    ends: list[int]

    def first(self, wanted: Collection[int], start: int, end: int) -> int | None:
        """Index of the first token in [start, end) of the text with a wanted id; None when there is none."""
        for index in range(bisect_left(self.starts, start), len(self.ids)):
            if self.ends[index] > end:
                return None
            if self.ids[index] in wanted:
                return index
        return None

    def across(self, border: int) -> int | None:
        """Index of a token with characters on both sides of a border; None when no token crosses it."""
        index = bisect_left(self.starts, border) - 1
        while index >= 0 and self.ends[index] > self.starts[index] and self.ends[index] >= border:
            if self.ends[index] > border:
                return index
            index -= 1
        return None


def encode(tokenizer: "PreTrainedTokenizerBase", text: str, *, special_tokens: bool = False) -> Encoded:
    """Tokenize a text whole, never cut and never padded.

    Args:
        tokenizer: A fast tokenizer.
        text: The text. Special tokens written in it become special tokens.
        special_tokens: Whether the tokenizer adds its own around it.

    Raises:
        DataError: The tokenizer reorders the text, so that no token has a place in it.
    """
    output = tokenizer(
        text,
        add_special_tokens=special_tokens,
        split_special_tokens=False,
        truncation=False,
        padding=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    places = output["offset_mapping"]
    starts = [place[0] for place in places]
    if not all(map(le, starts, starts[1:])):
        raise DataError("the tokenizer reorders the text, so what is trained can't be told", fix="use another model")
    return Encoded(text, output["input_ids"], starts, [place[1] for place in places])


def token_weights(encoded: Encoded, spans: Sequence[Span]) -> list[float]:
    """One loss weight per token: that of the span it lies in, else 0. The first token is never predicted: 0.

    Args:
        encoded: The tokens.
        spans: In order, not overlapping. Spans that touch and have one weight count as one.

    Raises:
        DataError: A token lies only partly in a span, or takes no character at the border of one, so that it
            can't be told whether inference gives it or the model writes it.
    """
    weights = [0.0] * len(encoded.ids)
    for span in _joined(spans):
        first = bisect_left(encoded.starts, span.start)
        for border in (span.start, span.end):
            crossing = encoded.across(border)
            if crossing is not None:
                raise _straddles(encoded, crossing, border, span)
        for index in range(first, len(weights)):
            start, end = encoded.starts[index], encoded.ends[index]
            if start >= span.end:
                break
            if start == end == span.start > 0:
                raise _straddles(encoded, index, start, span)
            weights[index] = span.weight
    if weights:
        weights[0] = 0.0
    return weights


def _joined(spans: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for span in spans:
        if span.start == span.end:
            continue
        if joined and joined[-1].end == span.start and joined[-1].weight == span.weight:
            before = joined.pop()
            span = Span(before.start, span.end, span.weight, before.owner)
        joined.append(span)
    return joined


def _straddles(encoded: Encoded, index: int, border: int, span: Span) -> DataError:
    around = encoded.text[encoded.starts[index] : encoded.ends[index]]
    where = "begins" if border == span.start else "ends"
    return DataError(
        f"{span.owner}: its trained text {where} inside the token {around!r}, which holds text of both sides",
        fix="remove white space at the ends of the message, or train_on: all_tokens",
    )
