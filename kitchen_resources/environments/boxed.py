r"""Mathematics: questions whose answer goes into a \boxed{}, verified by math-verify."""

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from kitchen_resources.environments.port import Action, Problem, StepResult
from kitchen_resources.environments.problems import answer_of, conversation_of
from kitchen_resources.environments.questions import questions
from kitchen_resources.environments.single_turn import SingleTurn, verdict
from kitchen_resources.errors import CapabilityError

_BOX = r"\boxed"

Verify = Callable[[str, str], bool]
"""(right answer, given answer) -> whether they are the same."""


class BoxedMath:
    r"""Asks for an answer in a \boxed{}, and rewards the right one, in one turn.

    The reward is 1 for the right answer, less `format_coef` when the turn was cut or has no box. As graders of the MATH
    data set do, and math-verify too, the last box counts: what a policy finds first, it may correct.

    Args:
        count: Number of own problems, no two the same: fractions, linear equations, powers, percentages.
        seed: Other seeds give other problems.
        format_coef: What a text without the form of an answer costs.
        suffix: Added to each question.

    Raises:
        CapabilityError: math-verify isn't installed.
        ConfigError: The count is out of bounds.
    """

    version = 1
    packages = ("math-verify", "latex2sympy2_extended")

    def __init__(
        self,
        count: int = 1000,
        seed: int = 0,
        format_coef: float = 0.1,
        suffix: str = r" Write your answer in \boxed{} format.",
    ) -> None:
        self._questions = partial(questions, count, seed=seed)
        # A wrong count is refused here, and not when the first problem is drawn.
        self._questions()
        self._format_coef, self._suffix = format_coef, suffix
        self._verify = _verifier()

    def problems(self) -> Iterator[Problem]:
        """See `EnvironmentGroupBuilder.problems`."""
        return self._questions()

    def group(self, problem: Problem, seeds: Sequence[int]) -> Sequence[SingleTurn]:
        """See `EnvironmentGroupBuilder.group`."""
        conversation, answer = conversation_of(problem, suffix=self._suffix), answer_of(problem)
        # The MATH data set gives whole solutions, whose answer is boxed.
        judge = partial(self._judge, last_box(answer) or answer)
        return [SingleTurn(conversation, judge) for _ in seeds]

    def _judge(self, answer: str, action: Action) -> StepResult:
        given = last_box(action.text)
        return verdict(
            correct=given is not None and self._verify(answer, given),
            well_formed=action.ended and given is not None,
            format_coef=self._format_coef,
        )


def last_box(text: str) -> str | None:
    r"""What is in the last \boxed{…} that is closed, or None. Braces nest to any depth; `\{` and `\}` are no braces."""
    start = text.rfind(_BOX)
    while start >= 0:
        content = _braced(text[start + len(_BOX) :].lstrip())
        if content is not None:
            return content.strip()
        start = text.rfind(_BOX, 0, start)
    return None


def _braced(text: str) -> str | None:
    if not text.startswith("{"):
        return None
    depth, position = 0, 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[1:position]
        position += 1
    return None


def _verifier() -> Verify:
    try:
        math_verify: Any = importlib.import_module("math_verify")
    except ImportError as error:
        raise CapabilityError(
            "the environment `math` needs the package math-verify",
            where="environment.name",
            fix='pip install "crucible-kitchen[environments]"',
        ) from error
    # They warn once that their own time limit is off, which works by signals and in the main thread only: the worker's
    # holds for all user code.
    for module in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(module).setLevel(logging.ERROR)
    kinds = [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()]

    def parsed(answer: str) -> list[Any]:
        found: list[Any] = math_verify.parse(f"{_BOX}{{{answer}}}", kinds, parsing_timeout=None)
        return found

    def verify(right: str, given: str) -> bool:
        # Answers in words are no mathematics, and most right answers are written as expected.
        return right == given or bool(math_verify.verify(parsed(right), parsed(given), timeout_seconds=None))

    return verify
