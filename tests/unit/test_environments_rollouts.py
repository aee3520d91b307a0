"""Rollouts: tokens, masks, rewards and ends of episodes, with a sampler and a dialogue that are written out."""

from collections.abc import Callable, Hashable, Iterator, Sequence

import pytest

from kitchen_resources.environments import registry
from kitchen_resources.environments.pool import EnvironmentPool
from kitchen_resources.environments.port import Action, EnvironmentFailure, RewardSpec
from kitchen_resources.environments.rollouts import GroupRequest, Rollout, episode_seed, run_groups
from kitchen_resources.errors import DataError
from tests.unit.misbehaving_environments import obedient

STOP, USER, ASSISTANT = 0, 1, 2


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone when it is over."""
    monkeypatch.setattr(registry, "_environments", {})
    monkeypatch.setattr(registry, "_rewards", {})


@pytest.fixture
def pool() -> Iterator[EnvironmentPool]:
    rewards = (RewardSpec("obeyed", 0.5, {"factor": 3.0}), RewardSpec("ended", -2.0))
    with EnvironmentPool(obedient(*rewards), workers=1, time_limit_s=60.0, trusted=True) as pool:
        yield pool


class Letters:
    """One token a letter; an observation stands between two marks."""

    def decode(self, token_ids: Sequence[int]) -> Action:
        text = "".join(chr(token) for token in token_ids if token != STOP)
        return Action(text, ended=bool(token_ids) and token_ids[-1] == STOP)

    def follow_up(self, observation: str, *, ended: bool) -> list[int]:
        return [*([] if ended else [STOP]), USER, *tokens(observation), ASSISTANT]


def tokens(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def saying(*turns: Sequence[list[int]]) -> tuple[Callable[[list[list[int]]], list[list[int]]], list[list[list[int]]]]:
    """A sampler that gives these completions at each call, and the prompts that it got."""
    prompts: list[list[list[int]]] = []

    def sample(asked: list[list[int]]) -> list[list[int]]:
        prompts.append(asked)
        return [list(completion) for completion in turns[len(prompts) - 1]]

    return sample, prompts


def asked(key: Hashable, *seeds: int, question: str = "a") -> GroupRequest:
    return GroupRequest(key, {"question": question}, [9, ASSISTANT], seeds)


def ended(text: str) -> list[int]:
    return [*tokens(text), STOP]


def short(rollouts: list[Rollout]) -> list[tuple[Hashable, int, float | None]]:
    return [(each.group, each.sample, each.reward) for each in rollouts]


def test_an_episode_of_two_turns_to_the_last_token(pool: EnvironmentPool) -> None:
    sample, prompts = saying([tokens("hi")], [ended("stop")])
    (rollout,) = run_groups(pool, [asked("g", 7)], sample, Letters(), max_turns=5, max_context=None)
    between = [STOP, USER, *tokens("7 hi"), ASSISTANT]
    assert prompts == [[[9, ASSISTANT]], [[9, ASSISTANT, *tokens("hi"), *between]]]
    assert rollout == Rollout(
        group="g",
        sample=0,
        prompt_ids=[9, ASSISTANT],
        completion_ids=[*tokens("hi"), *between, *ended("stop")],
        mask=[1, 1, *[0] * 7, *[1] * 5],
        # Steps: 2 + 3. Obeyed: 3 for each of 2 turns, times 0.5. The first turn was cut, so that `ended` is 0.
        reward=8.0,
        rewards={"environment": 5.0, "obeyed": 6.0, "ended": 0.0},
        solved=True,
        turns=[
            {"text": "hi", "ended": False, "observation": "7 hi", "reward": 2.0},
            {"text": "stop", "ended": True, "observation": "", "reward": 3.0},
        ],
        failure=None,
        metrics={"turns": 2.0, "truncated": 0.0},
    )


def test_all_live_episodes_are_sampled_at_once_in_order(pool: EnvironmentPool) -> None:
    groups = [asked("z", 1, 2), asked("a", 3, 4)]
    sample, prompts = saying(
        [ended("stop"), ended("x"), ended("raise"), ended("y")],
        [ended("stop"), ended("stop")],
    )
    rollouts = run_groups(pool, groups, sample, Letters(), max_turns=5, max_context=None)
    assert [len(each) for each in prompts] == [4, 2]
    assert [prompt[-5:] for prompt in prompts[1]] == [
        [STOP, USER, *tokens("2 x"), ASSISTANT][-5:],
        [STOP, USER, *tokens("4 y"), ASSISTANT][-5:],
    ]
    assert short(rollouts) == [("z", 0, 1.5), ("z", 1, 6.0), ("a", 0, None), ("a", 1, 6.0)]


def test_failures_keep_what_was_said_and_have_no_reward(pool: EnvironmentPool) -> None:
    groups = [asked("g", 1, 2), asked("bad", 3, question="no text")]
    sample, prompts = saying([ended("x"), ended("nan")], [ended("raise")])
    first, second, third = run_groups(pool, groups, sample, Letters(), max_turns=5, max_context=None)
    assert [len(each) for each in prompts] == [2, 1]
    assert (first.reward, first.rewards, first.solved) == (None, {}, False)
    assert first.failure is not None
    assert first.failure.kind == "error"
    assert first.completion_ids[-6:] == ended("raise")
    assert [turn["reward"] for turn in first.turns] == [2.0, None]
    assert second.failure == EnvironmentFailure("not_finite", "StepResult.reward is nan")
    assert second.mask == [1, 1, 1, 1]
    assert third.failure is not None
    assert (third.completion_ids, third.mask, third.turns, third.metrics["truncated"]) == ([], [], [], 0.0)


def test_a_reward_that_fails_takes_the_episode_with_it(pool: EnvironmentPool) -> None:
    # The environment takes "pid" for a step like another; the reward that reads it last returns no number.
    sample, _ = saying([ended("pid")])
    (rollout,) = run_groups(pool, [asked("g", 1)], sample, Letters(), max_turns=1, max_context=None)
    said = "obeyed: TypeError: the reward is a StepResult; give a number"
    assert rollout.failure == EnvironmentFailure("error", said)
    assert (rollout.reward, rollout.rewards) == (None, {"environment": 0.0, "ended": 1.0})


@pytest.mark.parametrize(
    ("limits", "turns", "tail"),
    [
        # The last turn is followed by nothing: no token is there that nothing is sampled behind.
        ({"max_turns": 2, "max_context": None}, 2, ended("y")),
        # 2 tokens of the prompt, "x" and the stop, and a follow-up of 5 or 7 tokens.
        ({"max_turns": 9, "max_context": 9}, 2, ended("y")),
        ({"max_turns": 9, "max_context": 8}, 1, ended("x")),
    ],
)
def test_an_episode_that_may_not_go_on_keeps_its_rewards(
    pool: EnvironmentPool, limits: dict[str, int | None], turns: int, tail: list[int]
) -> None:
    sample, _ = saying([ended("x")], [ended("y")], [ended("z")])
    (rollout,) = run_groups(pool, [asked("g", 7)], sample, Letters(), **limits)  # type: ignore[arg-type]
    assert rollout.failure is None
    assert not rollout.solved
    assert rollout.rewards["environment"] == [2.0, 2.0 + 3.0][turns - 1]
    assert (rollout.metrics["turns"], rollout.metrics["truncated"]) == (turns, 1.0)
    assert rollout.completion_ids[-2:] == tail
    assert len(rollout.mask) == len(rollout.completion_ids)


def test_a_prompt_that_leaves_no_room_is_refused(pool: EnvironmentPool) -> None:
    sample, prompts = saying()
    with pytest.raises(DataError, match="'g': its prompt has 2 tokens, and 1 is the most"):
        run_groups(pool, [asked("g", 1)], sample, Letters(), max_turns=1, max_context=1)
    assert prompts == []


def test_groups_are_released_even_when_sampling_fails(pool: EnvironmentPool) -> None:
    def exhausted(prompts: list[list[int]]) -> list[list[int]]:
        raise MemoryError

    with pytest.raises(MemoryError):
        run_groups(pool, [asked("g", 1)], exhausted, Letters(), max_turns=1, max_context=None)
    sample, _ = saying([ended("stop")])
    assert run_groups(pool, [asked("g", 1)], sample, Letters(), max_turns=1, max_context=None)[0].solved


@pytest.mark.parametrize(
    ("task", "text", "solved"), [("solved", "x", True), ("unsolved", "stop", False), ("unsaid", "stop", True)]
)
def test_a_step_may_say_whether_the_problem_is_solved(task: str, text: str, solved: bool) -> None:
    with EnvironmentPool(obedient(problem=task), workers=1, time_limit_s=60.0, trusted=True) as pool:
        sample, _ = saying([ended(text)])
        (rollout,) = run_groups(pool, [asked("g", 1)], sample, Letters(), max_turns=1, max_context=None)
    assert rollout.solved is solved
    assert rollout.metrics == {"turns": 1.0, "truncated": float(text == "x")}


def test_rollouts_do_not_depend_on_the_number_of_workers() -> None:
    def all_of(workers: int) -> list[Rollout]:
        spec = obedient(RewardSpec("obeyed"))
        sample, _ = saying([ended("x")] * 4 + [ended("exit")] + [ended("x")] * 4, [ended("stop")] * 8)
        groups = [asked(key, 1, 2, 3) for key in "cab"]
        with EnvironmentPool(spec, workers=workers, time_limit_s=60.0) as pool:
            return run_groups(pool, groups, sample, Letters(), max_turns=3, max_context=None)

    one = all_of(1)
    assert one == all_of(3)
    assert [each.failure is not None for each in one] == [False] * 4 + [True] + [False] * 4


def test_seeds_are_the_same_everywhere_and_apart() -> None:
    assert episode_seed(0, 0, 0, 0) == 875063533
    places = [
        (seed, block, group, sample)
        for seed in (0, 1)
        for block in (0, 1, 11)
        for group in (0, 1)
        for sample in (0, 1)
    ]
    seeds = [episode_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**32 for seed in seeds)
