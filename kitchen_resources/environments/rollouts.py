"""Rollouts: the episodes of a batch of groups, turn by turn, whatever trains on them."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from kitchen_resources.environments.pool import EnvironmentPool, Episode, Opening, Sampled
from kitchen_resources.environments.port import Action, EnvironmentFailure, Problem, StepResult, Turn
from kitchen_resources.environments.registry import OWN_COMPONENT
from kitchen_resources.errors import DataError

Sample = Callable[[list[list[int]]], list[list[int]]]
"""Token ids of prompts -> token ids of their completions, each at most the recipe's `max_tokens` long."""


class Dialogue(Protocol):
    """How the turns of a conversation are written in tokens."""

    def decode(self, token_ids: Sequence[int]) -> Action:
        """What was sampled, as an action: its text without the stop token, `ended` when that is the last token."""
        ...

    def follow_up(self, observation: str, *, ended: bool) -> list[int]:
        """The tokens from the end of the assistant's turn to where it speaks again.

        Args:
            observation: What it reads in between.
            ended: Whether its turn ended with a stop token.
        """
        ...


@dataclass(frozen=True)
class GroupRequest:
    """Episodes to roll out: one problem, one episode a seed.

    Attributes:
        key: Names the group.
        problem: What is asked.
        prompt_ids: The initial observation as token ids.
        seeds: One an episode. Shape [group].
    """

    key: Hashable
    problem: Problem
    prompt_ids: Sequence[int]
    seeds: Sequence[int]


class PlayedTurn(TypedDict):
    """A turn as it was played; `reward` is None where the environment failed at it."""

    text: str
    ended: bool
    observation: str
    reward: float | None


@dataclass(frozen=True)
class Rollout:
    """An episode as it was rolled out.

    Attributes:
        group: Key of its group.
        sample: Its index in the group.
        prompt_ids: What it started from.
        completion_ids: What follows: sampled tokens, and the environment's between turns.
        mask: 1 for a sampled token, 0 for one of the environment's. Shape of `completion_ids`.
        reward: Sum of the steps' rewards, and of the named rewards times their weights; None when the episode failed.
        rewards: That sum's parts without their weights: `environment`, and each named reward.
        solved: Whether the problem is solved: what a step said last, else whether the environment's reward of a finished
            episode is at least 1.
        turns: What was written, read and rewarded.
        failure: Why there is no reward, or None.
        metrics: Means of what the steps reported; `turns`, their number; `truncated`, 1 when the episode wasn't over
            after the last turn it could have.
    """

    group: Hashable
    sample: int
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    mask: Sequence[int]
    reward: float | None
    rewards: Mapping[str, float]
    solved: bool
    turns: Sequence[PlayedTurn]
    failure: EnvironmentFailure | None
    metrics: Mapping[str, float]


def run_groups(
    pool: EnvironmentPool,
    groups: Sequence[GroupRequest],
    sample: Sample,
    dialogue: Dialogue,
    *,
    max_turns: int,
    max_context: int | None,
) -> list[Rollout]:
    """Roll out the episodes of some groups, all of them one turn at a time.

    An episode that isn't over after `max_turns`, or whose next prompt would be longer than `max_context`, ends there
    and keeps its rewards so far. One that fails has none, and stops nothing else.

    Args:
        pool: Runs the environment and its rewards.
        groups: What to roll out.
        sample: Samples the next turn of all live episodes, in the order of groups and samples.
        dialogue: How turns are written in tokens.
        max_turns: Turns that an episode may have.
        max_context: Longest prompt to sample from, in tokens: what the model takes, less what `sample` adds.

    Returns:
        By group in the order given, then by sample.

    Raises:
        DataError: A prompt is longer than `max_context`.
    """
    _refuse_long(groups, max_context)
    episodes = [_Episode(group, index) for group in groups for index in range(len(group.seeds))]
    try:
        failures = pool.open(Opening(group.key, group.problem, group.seeds) for group in groups)
        for episode in episodes:
            episode.failure = failures.get(episode.id)
        for turn in range(max_turns):
            live = [episode for episode in episodes if episode.goes_on]
            if not live:
                break
            _play(pool, live, sample, dialogue)
            if turn + 1 < max_turns:
                for episode in live:
                    episode.read_on(dialogue, max_context)
    finally:
        pool.release(group.key for group in groups)
    return _scored(pool, episodes)


def episode_seed(seed: int, block: int, group: int, sample: int) -> int:
    """The seed of an episode: 32 bits, which every random generator takes, of a run's seed and where the episode is.

    Args:
        seed: Of the run.
        block: Block of rollouts in the run.
        group: Group in the block.
        sample: Episode in the group.
    """
    digest = hashlib.sha256(f"{seed}/{block}/{group}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


@dataclass(eq=False)
class _Episode:
    """An episode while it is rolled out."""

    request: GroupRequest
    index: int
    completion_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    turns: list[PlayedTurn] = field(default_factory=list)
    results: list[StepResult] = field(default_factory=list)
    failure: EnvironmentFailure | None = None
    full: bool = False

    @property
    def id(self) -> Sampled:
        return self.request.key, self.index

    @property
    def context(self) -> list[int]:
        return [*self.request.prompt_ids, *self.completion_ids]

    @property
    def over(self) -> bool:
        return bool(self.results) and self.results[-1].done

    @property
    def goes_on(self) -> bool:
        return self.failure is None and not self.over and not self.full

    def append(self, token_ids: Sequence[int], *, sampled: bool) -> None:
        self.completion_ids += token_ids
        self.mask += [int(sampled)] * len(token_ids)

    def take(self, action: Action, result: StepResult | EnvironmentFailure) -> None:
        turn: PlayedTurn = {"text": action.text, "ended": action.ended, "observation": "", "reward": None}
        if isinstance(result, EnvironmentFailure):
            self.failure = result
        else:
            self.results.append(result)
            turn["observation"], turn["reward"] = result.observation, result.reward
        self.turns.append(turn)

    def read_on(self, dialogue: Dialogue, max_context: int | None) -> None:
        """Append what the environment says, unless nothing could be sampled behind it."""
        if not self.goes_on:
            return
        last = self.turns[-1]
        follow_up = dialogue.follow_up(last["observation"], ended=last["ended"])
        self.full = max_context is not None and len(self.context) + len(follow_up) > max_context
        if not self.full:
            self.append(follow_up, sampled=False)

    def finished(self, scores: Mapping[str, float | EnvironmentFailure], weights: Mapping[str, float]) -> Rollout:
        """The rollout, with the named rewards that it got."""
        failed = [
            EnvironmentFailure(score.kind, f"{name}: {score.message}")
            for name, score in scores.items()
            if isinstance(score, EnvironmentFailure)
        ]
        failure = self.failure or next(iter(failed), None)
        own = sum(result.reward for result in self.results)
        rewards = {name: score for name, score in scores.items() if not isinstance(score, EnvironmentFailure)}
        if self.failure is None:
            rewards = {OWN_COMPONENT: own, **rewards}
        total = own + sum(weight * rewards[name] for name, weight in weights.items() if name in rewards)
        said = [result.solved for result in self.results if result.solved is not None]
        return Rollout(
            group=self.request.key,
            sample=self.index,
            prompt_ids=list(self.request.prompt_ids),
            completion_ids=self.completion_ids,
            mask=self.mask,
            reward=total if failure is None else None,
            rewards=rewards,
            solved=failure is None and (said[-1] if said else self.over and own >= 1.0),
            turns=self.turns,
            failure=failure,
            metrics=self._metrics(),
        )

    def _metrics(self) -> dict[str, float]:
        reported: dict[str, list[float]] = {}
        for result in self.results:
            for name, value in result.metrics.items():
                reported.setdefault(name, []).append(value)
        means = {name: sum(values) / len(values) for name, values in reported.items()}
        return {**means, "turns": float(len(self.turns)), "truncated": float(self.failure is None and not self.over)}


def _play(pool: EnvironmentPool, live: Sequence[_Episode], sample: Sample, dialogue: Dialogue) -> None:
    """One turn of some episodes."""
    completions = sample([episode.context for episode in live])
    actions: dict[Sampled, Action] = {}
    for episode, token_ids in zip(live, completions, strict=True):
        episode.append(token_ids, sampled=True)
        actions[episode.id] = dialogue.decode(token_ids)
    results = pool.step(actions)
    for episode in live:
        episode.take(actions[episode.id], results[episode.id])


def _scored(pool: EnvironmentPool, episodes: Sequence[_Episode]) -> list[Rollout]:
    sound = [episode for episode in episodes if episode.failure is None]
    scores = pool.score([Episode(episode.request.problem, _turns(episode)) for episode in sound])
    scored = dict(zip((episode.id for episode in sound), scores, strict=True))
    weights = {reward.name: reward.weight for reward in pool.spec.rewards}
    return [episode.finished(scored.get(episode.id, {}), weights) for episode in episodes]


def _turns(episode: _Episode) -> list[Turn]:
    return [
        {"text": turn["text"], "ended": turn["ended"], "observation": turn["observation"]} for turn in episode.turns
    ]


def _refuse_long(groups: Sequence[GroupRequest], max_context: int | None) -> None:
    for group in groups:
        if max_context is not None and len(group.prompt_ids) > max_context:
            raise DataError(
                f"its prompt has {len(group.prompt_ids)} tokens, and {max_context} is the most to sample from",
                where=f"problem {group.key!r}",
                fix="leave out longer prompts, or lower max_tokens",
            )
