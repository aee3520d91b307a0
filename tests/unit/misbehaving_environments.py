"""Environments and rewards that do what the policy's text says, good and bad, as code of users does."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kitchen_resources.environments.port import Action, EnvironmentSpec, Message, Problem, RewardSpec, StepResult
from kitchen_resources.environments.registry import register_environment, register_reward


def obedient(*rewards: RewardSpec, **args: Any) -> EnvironmentSpec:
    """The spec of `Obedient`."""
    register_environment("obedient", Obedient)
    register_reward("obeyed", obeyed)
    return EnvironmentSpec("obedient", args, rewards)


SOLVED = {"solved": True, "unsolved": False}


def hang() -> None:
    """Never come back, and hold nothing that could be waited for."""
    threading.Event().wait()


class Obedient:
    """Its episodes remember all they were told, so that a lost step would be seen."""

    version = 3

    def __init__(self, count: int = 3, problem: str | None = None) -> None:
        if count < 0:
            raise ValueError("less than none")
        self._count, self._problem = count, problem

    def problems(self) -> Iterator[Problem]:
        for number in range(self._count):
            yield {"question": f"q{number}"}
        if self._problem == "hang":
            hang()
        if self._problem == "nan":
            yield {"answer": float("nan")}
        if self._problem == "seven":
            yield 7  # type: ignore[misc]

    def group(self, problem: Problem, seeds: Sequence[int]) -> "list[Obedience]":
        if problem["question"] == "group hangs":
            hang()
        if problem["question"] == "group is short":
            return []
        return [Obedience(problem, seed, SOLVED.get(self._problem or "")) for seed in seeds]


class Obedience:
    def __init__(self, problem: Problem, seed: int, solved: bool | None) -> None:
        self._question, self._heard, self._solved = problem["question"], [str(seed)], solved

    def initial_observation(self) -> Sequence[Message]:
        if self._question == f"exit at {self._heard[0]}":
            os._exit(5)
        if self._question == "no text":
            return [{"role": "user", "content": 5}]  # type: ignore[dict-item]
        return [{"role": "user", "content": self._question}]

    def step(self, action: Action) -> StepResult:
        self._heard.append(action.text)
        if action.text in MISDEEDS:
            result: StepResult = MISDEEDS[action.text]()
            return result
        done = action.text == "stop"
        said = " ".join(self._heard)
        return StepResult(reward=float(len(self._heard)), done=done, observation=said, solved=self._solved)


def obeyed(problem: Problem, turns: Sequence[Mapping[str, Any]], *, factor: float = 1.0) -> float:
    """Rewards the number of turns, and does what the last one says."""
    if turns and turns[-1]["text"] in MISDEEDS:
        misdeed: float = MISDEEDS[turns[-1]["text"]]()
        return misdeed
    return factor * len(turns)


def _raise() -> None:
    raise LookupError("on purpose")


def _exit() -> None:
    sys.stderr.write("farewell\n")
    os._exit(3)


def _print() -> StepResult:
    # Whatever way it is written or read, it is not the protocol's.
    print("{}")
    os.write(1, b"{}\n")
    subprocess.run(["echo", "{}"], check=True)
    return StepResult(reward=float(len(sys.stdin.read())), done=False)


def _leave_a_child() -> StepResult:
    child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    return StepResult(reward=0.0, done=False, observation=str(child.pid))


MISDEEDS: dict[str, Any] = {
    "raise": _raise,
    "quit": sys.exit,
    "exit": _exit,
    "hang": hang,
    "print": _print,
    "child": _leave_a_child,
    "pid": lambda: StepResult(reward=0.0, done=False, observation=str(os.getpid())),
    "hash": lambda: StepResult(reward=0.0, done=False, observation=str(hash("text"))),
    "nan": lambda: StepResult(reward=float("nan"), done=True),
    "endless": lambda: StepResult(reward=0.0, done=True, metrics={"length": float("inf")}),
    "pair": lambda: (1.0, True),
    "text": lambda: StepResult(reward="much", done=True),  # type: ignore[arg-type]
    "maybe": lambda: StepResult(reward=1.0, done=1),  # type: ignore[arg-type]
    "number": lambda: StepResult(reward=1.0, done=False, observation=7),  # type: ignore[arg-type]
    "list": lambda: StepResult(reward=1.0, done=True, metrics=[1.0]),  # type: ignore[arg-type]
}
