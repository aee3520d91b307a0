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
    """

    content: Hashable
    question: str
    answer: str


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
    )
}
"""The procedural data sets, by name."""


def rows(name: str, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """The rows of a procedural data set, one by one.

    Args:
        name: A name in `PROCEDURAL`.
        seed: Other seeds give other rows, in another order; at least 0.

    Returns:
        `{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}`, with no question asked twice.

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
            user = {"role": "user", "content": drawn.question}
            yield {"messages": [user, {"role": "assistant", "content": drawn.answer}]}


def _ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th … for a day of a month."""
    suffix = "th" if 11 <= number <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
