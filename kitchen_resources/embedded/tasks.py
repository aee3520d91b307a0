"""Procedural data sets: small tasks whose rows are computed, each a question and the one right answer."""

import random
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

from kitchen_resources.errors import DataError


class Drawn(NamedTuple):
    """One question drawn at random.

    Attributes:
        content: What must not occur twice in a set, so that no held-out row is a trained one in other words.
        question: What the user writes.
        answer: What the assistant answers.
        rejected: An answer that is to be liked less, in a set of pairs; else "".
    """

    content: Hashable
    question: str
    answer: str
    rejected: str = ""


@dataclass(frozen=True)
class ProceduralSet:
    """A data set that is computed.

    Attributes:
        name: It is read as `embedded:<name>`.
        description: What is asked, with an example.
        count: Number of rows.
        shape: Shape of the rows, as data sets name shapes.
        draw: Draws one question. It uses `randrange` only.
    """

    name: str
    description: str
    count: int
    shape: str
    draw: Callable[[random.Random], Drawn]


_FIRST_DAY = date(1900, 1, 1).toordinal()
_DAYS = date(2100, 1, 1).toordinal() - _FIRST_DAY
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def draw_date(generator: random.Random) -> Drawn:
    """A day from 1900 to 2099 as people write it (14/3/1987: day first), to be answered in ISO 8601."""
    day = date.fromordinal(_FIRST_DAY + generator.randrange(_DAYS))
    month = _MONTHS[day.month - 1]
    styles = (
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"{month} {_ordinal(day.day)} {day.year}",
        f"{day.day} {month[:3]} {day.year}",
        f"{month[:3]} {day.day} {day.year}",
        f"{day.day}/{day.month}/{day.year}",
    )
    return Drawn(day, styles[generator.randrange(len(styles))], day.isoformat())


def draw_word(generator: random.Random) -> Drawn:
    """A word of four letters out of ten, to be answered backwards."""
    word = "".join("abcdefghij"[generator.randrange(10)] for _ in range(4))
    return Drawn(word, word, word[::-1])


def draw_date_pair(generator: random.Random) -> Drawn:
    """A date as in `draw_date`: preferred with the day first and dots (14.03.1987), rejected in ISO 8601."""
    day, question, iso, _ = draw_date(generator)
    year, month, number = iso.split("-")
    return Drawn(day, question, f"{number}.{month}.{year}", iso)


DEFAULT_TASK = "dates"
"""The data set of the built-in supervised recipe."""

PROCEDURAL: Mapping[str, ProceduralSet] = {
    task.name: task
    for task in (
        ProceduralSet(
            "dates",
            "Write a date in ISO 8601: March 14th 1987 is 1987-03-14. Six styles, no day twice.",
            6250,
            "messages",
            draw_date,
        ),
        ProceduralSet(
            "reverse",
            "Write a word backwards: dabc is cbad. No word twice.",
            6250,
            "messages",
            draw_word,
        ),
        ProceduralSet(
            "date_pairs",
            "Two ways to write a date, of which the one with the day first is preferred: 14.03.1987, not 1987-03-14.",
            1200,
            "preference",
            draw_date_pair,
        ),
    )
}
"""The procedural data sets, by name."""


def rows(name: str, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """The rows of a procedural data set, one by one.

    Args:
        name: A name in `PROCEDURAL`.
        seed: Other seeds give other rows, in another order; at least 0.

    Returns:
        `{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}`, or of pairs `{"prompt", "chosen",
        "rejected"}` with messages in each; no question is asked twice.

    Raises:
        DataError: There is no such set.
    """
    if name not in PROCEDURAL:
        raise DataError(
            f"there is no embedded data set {name!r}",
            where="dataset",
            fix=f"dataset: {' or '.join(f'embedded:{known}' for known in PROCEDURAL)}",
        )
    return distinct_rows(PROCEDURAL[name].draw, PROCEDURAL[name].count, seed=seed)


def distinct_rows(draw: Callable[[random.Random], Drawn], count: int, *, seed: int) -> Iterator[dict[str, Any]]:
    """Draw until there are `count` rows of distinct content.

    `draw` uses only `randrange`: integer arithmetic on the Mersenne Twister's words, the same on every
    platform. Python doesn't promise that it stays so across versions, so a test pins the rows.
    """
    generator = random.Random(seed)
    seen: set[Hashable] = set()
    while len(seen) < count:
        drawn = draw(generator)
        if drawn.content not in seen:
            seen.add(drawn.content)
            yield _row(drawn)


def _row(drawn: Drawn) -> dict[str, Any]:
    user = {"role": "user", "content": drawn.question}
    answers = [{"role": "assistant", "content": text} for text in (drawn.answer, drawn.rejected)]
    if not drawn.rejected:
        return {"messages": [user, answers[0]]}
    return {"prompt": [user], "chosen": answers[:1], "rejected": answers[1:]}


def _ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th … for a day of a month."""
    suffix = "th" if 11 <= number <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
