"""Questions of school mathematics, drawn at random, with their exact answers in LaTeX."""

import random
from collections.abc import Iterator
from fractions import Fraction

from kitchen_resources.environments.port import Problem
from kitchen_resources.errors import ConfigError

_MOST = 100_000


def questions(count: int, *, seed: int) -> Iterator[Problem]:
    r"""Fractions to add and multiply, linear equations, powers, and percentages: no two the same.

    Args:
        count: How many, at most 100,000 of the several 100,000 there are.
        seed: Other seeds give other questions.

    Returns:
        {"question": "What is 3/4 + 5/6?", "answer": "\\frac{19}{12}"}

    Raises:
        ConfigError: The count is out of bounds.
    """
    if not 1 <= count <= _MOST:
        raise ConfigError(
            f"{count} is not from 1 to {_MOST}", where="environment.args.count", fix="write count: 1000"
        )
    return _distinct(count, random.Random(seed))


def _distinct(count: int, generator: random.Random) -> Iterator[Problem]:
    seen: set[str] = set()
    while len(seen) < count:
        draw = _KINDS[generator.randrange(len(_KINDS))]
        question, answer = draw(generator)
        if question not in seen:
            seen.add(question)
            yield {"question": question, "answer": latex(answer)}


def latex(number: Fraction) -> str:
    r"""A fraction in lowest terms: `3`, `-\frac{1}{2}`."""
    sign = "-" if number < 0 else ""
    whole = f"{sign}{abs(number.numerator)}"
    return whole if number.denominator == 1 else f"{sign}\\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"


def _fractions(generator: random.Random) -> tuple[str, Fraction]:
    left, right = (Fraction(1 + generator.randrange(19), 2 + generator.randrange(18)) for _ in range(2))
    if generator.randrange(2):
        return f"What is {left} + {right}?", left + right
    return f"What is ({left}) * ({right})?", left * right


def _equation(generator: random.Random) -> tuple[str, Fraction]:
    factor, constant, total = (1 + generator.randrange(bound) for bound in (19, 49, 99))
    return f"Solve {factor + 1}x + {constant} = {total} for x.", Fraction(total - constant, factor + 1)


def _power(generator: random.Random) -> tuple[str, Fraction]:
    base, exponent, added = 2 + generator.randrange(18), 2 + generator.randrange(3), generator.randrange(100)
    return f"What is {base}^{exponent} + {added}?", Fraction(base**exponent + added)


def _percentage(generator: random.Random) -> tuple[str, Fraction]:
    percent, whole = 1 + generator.randrange(99), 10 * (1 + generator.randrange(99))
    return f"What is {percent}% of {whole}?", Fraction(percent * whole, 100)


_KINDS = (_fractions, _equation, _power, _percentage)
