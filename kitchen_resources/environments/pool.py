"""The pool of workers in which environments and rewards run.

User code may raise, hang, crash its process or print; none of it stops a run, and none of it is seen by another
sample. Results come by group and sample and never by arrival, so that they don't depend on the number of workers.
"""

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, TypeVar

from kitchen_resources.environments.groups import SeatedGroup
from kitchen_resources.environments.inline import Inline
from kitchen_resources.environments.options import is_json
from kitchen_resources.environments.port import (
    Action,
    EnvironmentFailure,
    EnvironmentSpec,
    Message,
    Problem,
    StepResult,
    Turn,
)
from kitchen_resources.environments.process import WorkerProcess
from kitchen_resources.environments.references import reference_of
from kitchen_resources.environments.registry import find_environment, find_reward
from kitchen_resources.environments.seats import Seat, Seats, Worker
from kitchen_resources.environments.serving import Wire
from kitchen_resources.errors import ConfigError, DataError

Sampled = tuple[Hashable, int]
"""An episode: the key of its group, and its index there."""

_Result = TypeVar("_Result")

# Parts of one request: few enough that no worker is left with much more than the others, and that a lost one's are
# soon asked again.
_AT_ONCE = 16


class Opening(NamedTuple):
    """A group to start: its key, its problem, and one seed an episode."""

    key: Hashable
    problem: Problem
    seeds: Sequence[int]


class Episode(NamedTuple):
    """A finished episode, for the named rewards."""

    problem: Problem
    turns: Sequence[Turn]


class EnvironmentPool:
    """Runs an environment and its rewards in worker processes, which start when they are first needed.

    Args:
        spec: The environment and its rewards by registered name, with their options.
        workers: Number of processes. Results don't depend on it.
        time_limit_s: Seconds that one step of one episode may take, or one reward, or one problem.
        trusted: Run it in this process instead: no start of workers, no time limit, and a crash ends the run.

    Raises:
        ConfigError: There is no such environment or reward, a reward is named twice, or a number is out of bounds.
    """

    def __init__(self, spec: EnvironmentSpec, *, workers: int, time_limit_s: float, trusted: bool = False) -> None:
        if workers < 1:
            raise ConfigError(f"{workers} workers can't run anything", where="workers", fix="write workers: 2")
        if not time_limit_s > 0:
            raise ConfigError(f"{time_limit_s} is no time", where="time_limit_s", fix="write time_limit_s: 30.0")
        self.spec = spec
        self._setup = _setup(spec)
        self._time_limit_s = time_limit_s
        self._trusted = trusted
        self._seats = Seats(self._hire, 1 if trusted else workers)
        self._groups: dict[Hashable, SeatedGroup] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> "EnvironmentPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start a worker now, so that wrong options are refused before anything else is done.

        Raises:
            KitchenError: User code can't be imported, or refuses its options.
        """
        self._seats.all[0].worker()

    def problems(self, limit: int) -> list[Problem]:
        """The environment's own problems, at most `limit` of them.

        Raises:
            DataError: The environment failed to give them.
        """
        *problems, last = self._seats.all[0].worker().ask({"op": "problems", "limit": limit}, None)
        if "failure" in last:
            raise DataError(
                f"it failed to give its problem {len(problems) + 1}: {last['failure']['message']}",
                where=f"environment {self.spec.name}",
                fix="correct its options, or problems() of its builder",
            )
        return [answer["problem"] for answer in problems]

    def observe(self, problems: Sequence[Problem]) -> list[list[Message] | EnvironmentFailure]:
        """The conversation that each problem starts with.

        Returns:
            For each problem its messages, or why the environment can't take it.
        """
        answers = self._ask_all("observe", [dict(problem) for problem in problems])
        return [_failure(answer) or answer["messages"] for answer in answers]

    def open(self, openings: Iterable[tuple[Hashable, Problem, Sequence[int]]]) -> dict[Sampled, EnvironmentFailure]:
        """Start groups of episodes; `step` goes on with them, and `release` forgets them.

        Returns:
            The samples that failed at once.

        Raises:
            ValueError: A key is in use.
        """
        opened = {}
        for key, problem, seeds in openings:
            if key in self._groups:
                raise ValueError(f"there is a group {key!r} already")
            number = next(self._numbers)
            seat = self._seats.all[number % len(self._seats.all)]
            self._groups[key] = opened[key] = SeatedGroup(number, problem, seeds, seat)
        self._on_seats(opened.values(), SeatedGroup.open)
        failures = ((key, group.failures) for key, group in opened.items())
        return {(key, sample): failed[sample] for key, failed in failures for sample in sorted(failed)}

    def step(self, actions: Mapping[Sampled, Action]) -> dict[Sampled, StepResult | EnvironmentFailure]:
        """Take one action in each of some episodes.

        Returns:
            For each episode what its action led to, by group in the order of opening, then by sample. One that failed
            before isn't stepped, and fails again.

        Raises:
            KeyError: A group isn't open.
            ValueError: An episode is over already.
        """
        asked: dict[SeatedGroup, dict[int, Action]] = {}
        keys = {self._groups[key]: key for key, _ in actions}
        for (key, sample), action in actions.items():
            asked.setdefault(self._groups[key], {})[sample] = action
        results = self._on_seats(asked, lambda group: group.step(asked[group]))
        ordered = sorted(results, key=lambda group: group.number)
        return {(keys[group], sample): result for group in ordered for sample, result in results[group].items()}

    def release(self, keys: Iterable[Hashable]) -> None:
        """Forget groups; their keys may be used again."""
        self._on_seats([self._groups.pop(key) for key in keys if key in self._groups], SeatedGroup.release)

    def score(
        self, episodes: Sequence[tuple[Problem, Sequence[Turn]]]
    ) -> list[dict[str, float | EnvironmentFailure]]:
        """The named rewards of finished episodes.

        Returns:
            For each episode its rewards by name, without their weights; a failure where the function failed.
        """
        names = [reward.name for reward in self.spec.rewards]
        parts = [
            {"reward": index, "problem": dict(problem), "turns": list(turns)}
            for problem, turns in episodes
            for index in range(len(names))
        ]
        answers = iter(self._ask_all("score", parts))
        scored = ({name: next(answers) for name in names} for _ in episodes)
        return [{name: _failure(answer) or answer["value"] for name, answer in each.items()} for each in scored]

    def close(self) -> None:
        """End all workers. Nothing that they started is left."""
        self._seats.close()

    def _hire(self) -> Worker:
        return Inline(self._setup) if self._trusted else WorkerProcess(self._setup, self._time_limit_s)

    def _ask_all(self, op: str, parts: Sequence[Wire]) -> list[Wire]:
        chunks = [parts[first : first + _AT_ONCE] for first in range(0, len(parts), _AT_ONCE)]
        answers: list[list[Wire]] = [[] for _ in chunks]

        def ask(seat: Seat, number: int) -> None:
            answers[number] = seat.ask_all(op, chunks[number])

        tasks: dict[Seat, list[Callable[[], None]]] = {}
        for number in range(len(chunks)):
            seat = self._seats.all[number % len(self._seats.all)]
            tasks.setdefault(seat, []).append(functools.partial(ask, seat, number))
        self._seats.work(tasks)
        return [answer for chunk in answers for answer in chunk]

    def _on_seats(
        self, groups: Iterable[SeatedGroup], do: Callable[[SeatedGroup], _Result]
    ) -> dict[SeatedGroup, _Result]:
        """Do something with groups: one after the other on each seat, and on all seats at once."""
        results: dict[SeatedGroup, _Result] = {}

        def note(group: SeatedGroup) -> None:
            results[group] = do(group)

        tasks: dict[Seat, list[Callable[[], None]]] = {}
        for group in groups:
            tasks.setdefault(group.seat, []).append(functools.partial(note, group))
        self._seats.work(tasks)
        return results


def _setup(spec: EnvironmentSpec) -> Wire:
    """What a worker makes the environment and its rewards of."""
    names = [reward.name for reward in spec.rewards]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"the reward {twice[0]!r} is named twice", where="rewards", fix="keep one of the two")
    for where, args in (("environment.args", spec.args), *(("rewards.args", reward.args) for reward in spec.rewards)):
        if not is_json(dict(args)):
            raise ConfigError(
                f"{args} are no JSON values", where=where, fix="write texts, numbers, lists and mappings"
            )
    functions = [reference_of(find_reward(name), where="rewards") for name in names]
    return {
        "name": spec.name,
        "environment": reference_of(find_environment(spec.name), where="environment"),
        "args": dict(spec.args),
        "rewards": [
            {"function": function, "args": dict(reward.args)}
            for function, reward in zip(functions, spec.rewards, strict=True)
        ],
    }


def _failure(answer: Wire) -> EnvironmentFailure | None:
    return EnvironmentFailure(**answer["failure"]) if "failure" in answer else None
