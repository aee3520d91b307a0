"""From prepared rows to data: targets shifted by one, weights on what is trained. The one place of normalisation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kitchen_resources.training.loops.frame import Row
from kitchen_resources.training.port import Datum, ModelInput

IGNORED = -100
"""Label of a token that isn't trained."""


def shifted(tokens: Sequence[int], trained: Sequence[bool]) -> Datum:
    """A sequence as an example of itself: each position predicts the next token, and weighs 1 where that is trained."""
    return Datum(
        ModelInput(list(tokens[:-1])),
        {"target_tokens": list(tokens[1:]), "weights": [float(flag) for flag in trained[1:]]},
    )


def labelled(row: Row) -> Iterator[Datum]:
    """The sequences of a row with labels; a pack holds several, which don't see each other."""
    lengths = row["seq_lengths"] if "seq_lengths" in row else [len(row["input_ids"])]
    start = 0
    for length in lengths:
        tokens, labels = (row[name][start : start + length] for name in ("input_ids", "labels"))
        if length > 1:
            yield shifted(tokens, [label != IGNORED for label in labels])
        start += length


def completion(prompt: Sequence[int], answer: Sequence[int]) -> Datum:
    """A prompt with an answer that is trained."""
    return shifted([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))


def trained_tokens(data: Sequence[Datum]) -> int:
    """How many targets are trained."""
    return sum(weight != 0 for datum in data for weight in datum.loss_fn_inputs["weights"])


def per_token(data: Sequence[Datum], name: str = "weights") -> list[Datum]:
    """The data with a loss that is the mean per trained token of all of them: weights, or advantages, over their number."""
    tokens = max(1, trained_tokens(data))
    return [
        replace(
            datum,
            loss_fn_inputs={
                **datum.loss_fn_inputs,
                name: [value / tokens for value in datum.loss_fn_inputs[name]],
            },
        )
        for datum in data
    ]
