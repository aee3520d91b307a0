"""A game whose first episode of each group goes wrong on its third turn, and a reward that is no number for one problem."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kitchen_resources.environments.port import Action, Message, Problem, StepResult
from kitchen_resources.environments.registry import register_environment, register_reward

TURNS = 3


class Stumble:
    """Three turns, each worth the share of small letters in it; a stumbling one never gets to the end."""

    def __init__(self, problem: Problem, stumbles: str) -> None:
        self._problem = problem
        self._stumbles = stumbles
        self._left = TURNS

    def initial_observation(self) -> Sequence[Message]:
        return [{"role": "user", "content": str(self._problem["question"])}]

    def step(self, action: Action) -> StepResult:
        self._left -= 1
        if self._left == 0 and self._stumbles == "raise":
            raise LookupError("lost the thread")
        if self._left == 0 and self._stumbles == "hang":
            threading.Event().wait()
        small = sum("a" <= character <= "z" for character in action.text)
        return StepResult(small / max(len(action.text), 1), done=self._left == 0, observation="on", solved=False)


class StumbleBuilder:
    """Four problems.

    Args:
        how: What happens on the third turn of a group's first episode: raise, hang, or nothing.
        all_of_them: Of all episodes, and not only of the first.
        once: A file; nothing goes wrong before it is there.
    """

    version = 1

    def __init__(self, how: str = "", all_of_them: bool = False, once: str = "") -> None:
        self._how = how
        self._all = all_of_them
        self._once = once

    def problems(self) -> Iterator[Problem]:
        yield from ({"question": f"write {index}"} for index in range(4))

    def group(self, problem: Problem, seeds: Sequence[int]) -> Sequence[Stumble]:
        how = self._how if not self._once or Path(self._once).exists() else ""
        return [Stumble(problem, how if self._all or index == 0 else "") for index, _ in enumerate(seeds)]


def void(problem: Problem, turns: Sequence[Mapping[str, Any]], *, of: str = "write 0") -> float:
    """Not a number for one of the problems, and nothing for the others."""
    return float("nan") if problem["question"] == of else 0.0


def register() -> None:
    """Make them known as `stumble` and `void`; may be called twice."""
    register_environment("stumble", StumbleBuilder)
    register_reward("void", void)
