"""A little game of several turns: the lookout calls winds, and the helm answers where the last one blows to."""

import random
from collections.abc import Iterator, Sequence

from kitchen_resources.environments.port import Action, Message, Problem, StepResult
from kitchen_resources.errors import ConfigError, DataError

_OPPOSITE = {"n": "s", "e": "w", "s": "n", "w": "e"}
_NAMES = {"n": "north", "e": "east", "s": "south", "w": "west"}
_RULES = (
    "The lookout calls where the winds of a watch came from, such as nes: from the north, then from the east, last from the "
    "south. Answer with one letter, n, e, s or w: where the last wind blows to. Here it is n.\n\n"
)


class Watch:
    """One game: a call a turn, each answered by a letter. The reward of a turn is its share of the game.

    Args:
        calls: What the lookout calls, turn by turn.
        explain: Whether the first call comes with the rules.
    """

    def __init__(self, calls: Sequence[str], *, explain: bool) -> None:
        self._calls = calls
        self._explain = explain
        self._turn = 0
        self._right = 0

    def initial_observation(self) -> Sequence[Message]:
        """See `Environment.initial_observation`."""
        return [{"role": "user", "content": (_RULES if self._explain else "") + self._calls[0]}]

    def step(self, action: Action) -> StepResult:
        """See `Environment.step`; the letter or its whole word is right, and nothing else."""
        wanted = _OPPOSITE[self._calls[self._turn][-1]]
        is_right = action.text.strip().lower() in (wanted, _NAMES[wanted])
        self._right += is_right
        self._turn += 1
        done = self._turn == len(self._calls)
        return StepResult(
            reward=is_right / len(self._calls),
            done=done,
            observation="" if done else self._calls[self._turn],
            solved=self._right == len(self._calls) if done else None,
        )


class Compass:
    """Makes watches. Answers that don't look at the calls are right one time in four.

    Args:
        turns: Calls of a game.
        winds: Winds of a call.
        count: Games that it makes itself.
        seed: Other seeds make other games.
        explain: Whether the rules are told first; a model that learns by reward alone needs none.

    Raises:
        ConfigError: A number is out of its bounds, or there aren't so many different games.
    """

    version = 1

    def __init__(
        self, turns: int = 2, winds: int = 3, count: int = 2000, seed: int = 0, explain: bool = True
    ) -> None:
        for name, value in (("turns", turns), ("winds", winds), ("count", count)):
            if value < 1:
                raise ConfigError(f"must be at least 1, got {value}", where=name, fix=f"{name}: 1")
        if count > 4 ** (turns * winds):
            most = 4 ** (turns * winds)
            raise ConfigError(f"there are only {most} different games", where="count", fix=f"count: {most}")
        self._turns, self._winds, self._count, self._seed = turns, winds, count, seed
        self._explain = explain

    def problems(self) -> Iterator[Problem]:
        """See `EnvironmentGroupBuilder.problems`; no game twice."""
        generator = random.Random(self._seed)
        made: set[tuple[str, ...]] = set()
        while len(made) < self._count:
            calls = tuple(
                "".join("nesw"[generator.randrange(4)] for _ in range(self._winds)) for _ in range(self._turns)
            )
            if calls not in made:
                made.add(calls)
                yield {"calls": list(calls)}

    def group(self, problem: Problem, seeds: Sequence[int]) -> Sequence[Watch]:
        """See `EnvironmentGroupBuilder.group`.

        Raises:
            DataError: The problem has no calls of the four letters.
        """
        calls = problem.get("calls")
        if not isinstance(calls, list) or not calls or not all(map(_is_call, calls)):
            raise DataError(
                f"{calls!r} are no calls of the letters n, e, s and w", where="calls", fix='calls: ["nes", "wn"]'
            )
        return [Watch(calls, explain=self._explain) for _ in seeds]


def _is_call(call: object) -> bool:
    return isinstance(call, str) and call != "" and set(call) <= _OPPOSITE.keys()
