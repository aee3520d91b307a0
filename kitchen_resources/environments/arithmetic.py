"""Sums of whole numbers: the smallest environment that a model can learn on."""

import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial

from kitchen_resources.environments.port import Action, Problem, StepResult
from kitchen_resources.environments.problems import answer_of, conversation_of
from kitchen_resources.environments.single_turn import SingleTurn, verdict
from kitchen_resources.errors import ConfigError, DataError

_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_NUMBER = re.compile(r"[+-]?\d+(?:,\d{3})*(?:\.\d+)?")


class Arithmetic:
    """Asks `17 + 25` and rewards the number 42, in one turn.

    The answer is the last number of the text. The reward is 1 for the right one, less `format_coef` when the turn was
    cut or holds no number. Problems may also come from a data set with a question and a number as answer.

    Args:
        operations: Of `+`, `-` and `*`.
        maximum: Largest operand; the smallest is 0.
        count: Number of own problems, no two the same.
        seed: Other seeds give other problems.
        format_coef: What a text without the form of an answer costs.

    Raises:
        ConfigError: An operation is unknown, or there aren't so many problems.
    """

    version = 1

    def __init__(
        self,
        operations: Sequence[str] = ("+", "-"),
        maximum: int = 99,
        count: int = 1000,
        seed: int = 0,
        format_coef: float = 0.1,
    ) -> None:
        wrong = [operation for operation in operations if operation not in _OPERATIONS]
        if wrong or not operations:
            raise ConfigError(
                f"{wrong or operations} are no operations",
                where="environment.args.operations",
                fix='write operations: ["+", "-", "*"]',
            )
        there_are = len(set(operations)) * (maximum + 1) ** 2 if maximum >= 0 else 0
        if not 1 <= count <= there_are:
            raise ConfigError(
                f"{count} problems can't be had of the {there_are} there are up to {maximum}",
                where="environment.args.count",
                fix="lower count, or raise maximum",
            )
        self._operations, self._maximum, self._count, self._seed = list(operations), maximum, count, seed
        self._format_coef = format_coef

    def problems(self) -> Iterator[Problem]:
        """See `EnvironmentGroupBuilder.problems`."""
        generator = random.Random(self._seed)
        seen: set[str] = set()
        while len(seen) < self._count:
            operation = self._operations[generator.randrange(len(self._operations))]
            left, right = (generator.randrange(self._maximum + 1) for _ in range(2))
            question = f"{left} {operation} {right}"
            if question not in seen:
                seen.add(question)
                yield {"question": question, "answer": str(_OPERATIONS[operation](left, right))}

    def group(self, problem: Problem, seeds: Sequence[int]) -> Sequence[SingleTurn]:
        """See `EnvironmentGroupBuilder.group`."""
        conversation, answer = conversation_of(problem), _last_number(answer_of(problem))
        if answer is None:
            raise DataError(
                f"{answer_of(problem)!r} is not a number", where="problem.answer", fix="write it as 1234.5"
            )
        return [SingleTurn(conversation, partial(self._judge, answer)) for _ in seeds]

    def _judge(self, answer: Decimal, action: Action) -> StepResult:
        number = _last_number(action.text)
        return verdict(
            correct=number == answer,
            well_formed=action.ended and number is not None,
            format_coef=self._format_coef,
        )


def _last_number(text: str) -> Decimal | None:
    numbers: list[str] = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
