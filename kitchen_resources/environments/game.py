"""Tango: a dance in figures, each answered by the steps of the partner's mirror image."""

import random
from collections.abc import Iterator, Sequence

from kitchen_resources.environments.port import Action, Message, Problem, StepResult
from kitchen_resources.errors import ConfigError, DataError

MIRROR = {"f": "b", "b": "f", "l": "r", "r": "l"}
"""The step that answers each step: forward, back, left and right, of two who face each other."""


class Tango:
    """Shows a figure of steps, such as `flb`, and rewards its mirror image `brf`; then the next figure.

    Two dance face to face: one steps forward (`f`) and the other back (`b`), one to the left (`l`) and the other to the
    right (`r`). An answer is read step by step, without regard to case and space; what follows the last step of the
    figure doesn't count. The reward of a turn is its right steps over all steps of the dance, so that of an episode is
    the share of right steps, and the dance is solved when all are right. Its figures don't depend on the answers, yet
    no answer given regardless of them earns more than a quarter on average.

    Args:
        figures: Turns of a dance.
        steps: Steps of a figure.
        count: Number of dances, no two the same.
        seed: Other seeds give other dances.

    Raises:
        ConfigError: There aren't so many dances.
    """

    version = 1

    def __init__(self, figures: int = 2, steps: int = 3, count: int = 2000, seed: int = 0) -> None:
        there_are = len(MIRROR) ** (figures * steps) if figures >= 1 and steps >= 1 else 0
        if not 1 <= count <= there_are:
            raise ConfigError(
                f"{count} dances can't be had of the {there_are} there are with {figures} figures of {steps} steps",
                where="environment.args.count",
                fix="lower count, or raise figures or steps",
            )
        self._figures, self._steps, self._count, self._seed = figures, steps, count, seed

    def problems(self) -> Iterator[Problem]:
        """See `EnvironmentGroupBuilder.problems`."""
        generator = random.Random(self._seed)
        seen: set[tuple[str, ...]] = set()
        while len(seen) < self._count:
            dance = tuple(_figure(generator, self._steps) for _ in range(self._figures))
            if dance not in seen:
                seen.add(dance)
                yield {"figures": list(dance)}

    def group(self, problem: Problem, seeds: Sequence[int]) -> Sequence["Dance"]:
        """See `EnvironmentGroupBuilder.group`."""
        figures = problem.get("figures")
        if not isinstance(figures, list) or not figures or not all(_is_figure(figure) for figure in figures):
            raise DataError(
                f"{figures!r} are no figures of a dance", where="problem.figures", fix='write figures: ["flb", "rrf"]'
            )
        return [Dance(figures) for _ in seeds]


class Dance:
    """An episode: the figures of one dance, one a turn."""

    def __init__(self, figures: Sequence[str]) -> None:
        self._figures = list(figures)
        self._steps = sum(len(figure) for figure in figures)
        self._turn = 0
        self._right = 0

    def initial_observation(self) -> Sequence[Message]:
        """See `Environment.initial_observation`."""
        return [{"role": "user", "content": self._figures[0]}]

    def step(self, action: Action) -> StepResult:
        """See `Environment.step`. `metrics` holds the share of the figure that was answered by any step at all."""
        figure = self._figures[self._turn]
        answer = "".join(action.text.split()).lower()[: len(figure)]
        right = sum(MIRROR[shown] == given for shown, given in zip(figure, answer, strict=False))
        self._turn += 1
        self._right += right
        done = self._turn == len(self._figures)
        return StepResult(
            reward=right / self._steps,
            done=done,
            observation="" if done else self._figures[self._turn],
            solved=self._right == self._steps if done else None,
            metrics={"form": sum(given in MIRROR for given in answer) / len(figure)},
        )


def _figure(generator: random.Random, steps: int) -> str:
    return "".join("fblr"[generator.randrange(4)] for _ in range(steps))


def _is_figure(value: object) -> bool:
    return isinstance(value, str) and value != "" and set(value) <= MIRROR.keys()
