"""A little game for tests: the more small letters a turn has, the better; then it is told how long it was."""

from collections.abc import Iterator, Sequence

from kitchen_resources.environments.port import Action, Message, Problem, StepResult
from kitchen_resources.environments.registry import register_environment


class Letters:
    """One game of `turns` turns."""

    def __init__(self, problem: Problem, turns: int) -> None:
        self._problem = problem
        self._left = turns

    def initial_observation(self) -> Sequence[Message]:
        return [{"role": "user", "content": str(self._problem["question"])}]

    def step(self, action: Action) -> StepResult:
        self._left -= 1
        small = sum("a" <= character <= "z" for character in action.text)
        return StepResult(
            small / max(len(action.text), 1),
            done=self._left == 0,
            observation=str(len(action.text)),
            solved=small == len(action.text),
        )


class LettersBuilder:
    """Makes games; `count` of them by itself."""

    version = 1

    def __init__(self, turns: int = 1, count: int = 40) -> None:
        self._turns = turns
        self._count = count

    def problems(self) -> Iterator[Problem]:
        yield from ({"question": f"write {index}"} for index in range(self._count))

    def group(self, problem: Problem, seeds: Sequence[int]) -> Sequence[Letters]:
        return [Letters(problem, self._turns) for _ in seeds]


def register() -> None:
    """Make the game known as `letters`; may be called twice."""
    register_environment("letters", LettersBuilder)
