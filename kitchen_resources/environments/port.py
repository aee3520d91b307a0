"""The environments port: a problem that a policy acts on in turns, and what its actions are worth.

User code behind this port runs in worker processes with a time limit (see `pool`), is deterministic given its problem,
its seed and the actions, and takes all of its chance from that seed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, runtime_checkable

Message = Mapping[str, str]
"""A chat message: role and content."""

Problem = Mapping[str, Any]
"""What an environment asks, as a JSON object: a row of a data set, or one that the environment made itself."""


@dataclass(frozen=True)
class Action:
    """What the policy wrote in one turn.

    Attributes:
        text: The text, without the token that ends a turn.
        ended: Whether the policy ended the turn itself, and wasn't cut at the recipe's `max_tokens`.
    """

    text: str
    ended: bool = True


@dataclass(frozen=True)
class StepResult:
    """What an action led to.

    Attributes:
        reward: Of this step; the episode's reward is the sum over its steps. Finite.
        done: Whether the episode is over.
        observation: What the policy reads next, as the user's message; unused when `done`.
        solved: Whether the problem is solved, once that is known; pass@k counts it. None for a reward of at least 1.
        metrics: Further numbers to log, such as {"format": 1.0}.
    """

    reward: float
    done: bool
    observation: str = ""
    solved: bool | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class Environment(Protocol):
    """One episode of one problem."""

    def initial_observation(self) -> Sequence[Message]:
        """The conversation that the policy starts from. The same for every episode of a problem."""
        ...

    def step(self, action: Action) -> StepResult:
        """Take an action. Not called again once an episode is done."""
        ...


@runtime_checkable
class EnvironmentGroupBuilder(Protocol):
    """Makes the episodes of a problem: one problem a group, so that their rewards can be compared.

    Attributes:
        version: Raised by hand when the same actions would be worth something else; part of a run's identity, as is the
            source of its file. Where it reads other packages, `packages` may name them; their versions are part of it too.
    """

    version: int

    def problems(self) -> Iterator[Problem]:
        """The environment's own problems, the same ones in the same order at every call; none where it has none."""
        ...

    def group(self, problem: Problem, seeds: Sequence[int]) -> Sequence[Environment]:
        """Episodes of one problem, one a seed.

        Args:
            problem: What is asked.
            seeds: Where each episode takes its chance from. Shape [group].

        Returns:
            Shape [group].

        Raises:
            Exception: The problem lacks what the environment reads; the row is counted as invalid.
        """
        ...


@dataclass(frozen=True)
class EnvironmentFailure:
    """An episode that can't be scored: it has no reward, and its advantage is zero.

    Attributes:
        kind: `error`: user code raised, or returned what it may not; `timeout`: it didn't answer in time; `crashed`: its
            process died; `not_finite`: a reward or metric was NaN or infinite.
        message: What happened, for people.
    """

    kind: str
    message: str


class Turn(TypedDict):
    """A turn of a finished episode, as rewards read it.

    Attributes:
        text: What the policy wrote, without the token that ends a turn.
        ended: Whether it ended the turn itself.
        observation: What it read next; empty after the last turn.
    """

    text: str
    ended: bool
    observation: str


Reward = Callable[..., float]
"""(problem, turns, **options) -> a finite number: a reward beside the environment's own, of a whole episode."""


@dataclass(frozen=True)
class RewardSpec:
    """A named reward beside the environment's own: registered name, weight, and options of the function."""

    name: str
    weight: float = 1.0
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EnvironmentSpec:
    """An environment as a recipe names it: registered name, options of its builder, and further rewards."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    rewards: Sequence[RewardSpec] = ()
