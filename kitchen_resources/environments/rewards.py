"""Rewards beside an environment's own, of a whole episode."""

import re
from collections.abc import Sequence

from kitchen_resources.environments.port import Problem, Turn
from kitchen_resources.environments.problems import answer_of
from kitchen_resources.errors import ConfigError


def matches_format(problem: Problem, turns: Sequence[Turn], *, pattern: str) -> float:
    """1 when the pattern matches the whole text of the last turn, else 0.

    Args:
        problem: Not read.
        turns: The episode.
        pattern: A regular expression of Python's `re`, whose `.` matches line breaks too.

    Raises:
        ConfigError: The pattern can't be read.
    """
    try:
        wanted = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(
            f"pattern {pattern!r} can't be read: {error}", where="rewards.args.pattern", fix="write a Python pattern"
        ) from error
    return float(wanted.fullmatch(_last(turns)) is not None)


def ended(problem: Problem, turns: Sequence[Turn]) -> float:
    """1 when the policy ended every turn itself, 0 when one was cut at `max_tokens`."""
    return float(bool(turns) and all(turn["ended"] for turn in turns))


def length_penalty(
    problem: Problem,
    turns: Sequence[Turn],
    *,
    minimum: int = 0,
    maximum: int | None = None,
    penalty: float = 0.1,
) -> float:
    """0 within the bounds, and below it in proportion to what is missing or too much.

    It is -penalty * (minimum - length) / minimum, or -penalty * (length - maximum) / maximum.

    Args:
        problem: Not read.
        turns: The episode; its length is that of all that the policy wrote, in characters.
        minimum: Shortest length without penalty.
        maximum: Longest length without penalty; None for any.
        penalty: What an empty text costs, or one of twice the maximum.

    Raises:
        ConfigError: The bounds are not from 0 up and in order.
    """
    if minimum < 0 or (maximum is not None and maximum < max(minimum, 1)):
        raise ConfigError(
            f"minimum {minimum} and maximum {maximum} are no bounds of a length",
            where="rewards.args",
            fix="write args: {minimum: 10, maximum: 100}",
        )
    length = sum(len(turn["text"]) for turn in turns)
    if length < minimum:
        return -penalty * (minimum - length) / minimum
    if maximum is not None and length > maximum:
        return -penalty * (length - maximum) / maximum
    return 0.0


def exact_match(problem: Problem, turns: Sequence[Turn]) -> float:
    """1 when the last turn is the problem's answer, but for white space around it, else 0.

    Raises:
        DataError: The problem has no answer.
    """
    return float(_last(turns).strip() == answer_of(problem))


def contains(problem: Problem, turns: Sequence[Turn]) -> float:
    """1 when the problem's answer is somewhere in the last turn, whatever the case, else 0.

    Raises:
        DataError: The problem has no answer.
    """
    return float(answer_of(problem).casefold() in _last(turns).casefold())


def _last(turns: Sequence[Turn]) -> str:
    return turns[-1]["text"] if turns else ""
