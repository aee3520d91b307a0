"""The pool of workers: results in order, whatever user code does and however many workers there are."""

import re
from collections.abc import Hashable, Iterator
from typing import Any

import pytest

from kitchen_resources.environments import registry
from kitchen_resources.environments.pool import EnvironmentPool, Episode
from kitchen_resources.environments.port import Action, EnvironmentFailure, RewardSpec, StepResult
from kitchen_resources.errors import ConfigError, DataError
from tests.unit.misbehaving_environments import obedient

Told = dict[tuple[Hashable, int], StepResult | EnvironmentFailure]

GROUPS = [("g", {"question": "a"}, [1, 2]), ("f", {"question": "b"}, [3, 4]), ("e", {"question": "c"}, [5])]
SAMPLES = [(key, sample) for key, _, seeds in GROUPS for sample in range(len(seeds))]


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone when it is over."""
    monkeypatch.setattr(registry, "_environments", {})
    monkeypatch.setattr(registry, "_rewards", {})


@pytest.fixture
def pool() -> Iterator[EnvironmentPool]:
    with EnvironmentPool(obedient(RewardSpec("obeyed")), workers=1, time_limit_s=60.0) as pool:
        yield pool


@pytest.fixture
def impatient() -> Iterator[EnvironmentPool]:
    """Waits half a second only."""
    with EnvironmentPool(obedient(RewardSpec("obeyed")), workers=1, time_limit_s=0.5) as pool:
        yield pool


def say(pool: EnvironmentPool, *texts: str, samples: list[tuple[Hashable, int]] = SAMPLES) -> Told:
    """Say the texts to some samples, and the last results."""
    told: Told = {}
    for text in texts:
        told = pool.step({sample: Action(text) for sample in samples})
    return told


def heard(told: Told) -> list[str]:
    """What the episodes say that they heard, without those that failed."""
    return [result.observation for result in told.values() if isinstance(result, StepResult)]


def failures(told: Any) -> dict[Any, str]:
    failed = {key: each for key, each in told.items() if isinstance(each, EnvironmentFailure)}
    told = {key: re.sub(r", line \d+", "", f"{each.kind}: {each.message}") for key, each in failed.items()}
    return {key: message.split("; it was at")[0] for key, message in told.items()}


# Results.


def test_steps_are_told_by_group_and_sample_whatever_the_order_of_asking(pool: EnvironmentPool) -> None:
    assert pool.open(GROUPS) == {}
    told = say(pool, "x", samples=SAMPLES[::-1])
    assert list(told) == SAMPLES
    assert heard(told) == ["1 x", "2 x", "3 x", "4 x", "5 x"]
    assert told["g", 0] == StepResult(reward=2.0, done=False, observation="1 x", solved=None, metrics={})


@pytest.mark.parametrize("how", [{"workers": 3}, {"workers": 1, "trusted": True}])
def test_results_do_not_depend_on_where_it_runs(pool: EnvironmentPool, how: dict[str, Any]) -> None:
    def all_of(pool: EnvironmentPool) -> list[Any]:
        problems = [{"question": f"q{number}"} for number in range(40)] + [{"no": "question"}]
        episodes = [Episode({}, [{"text": "x", "ended": True, "observation": ""}] * number) for number in range(40)]
        told = [pool.problems(2), pool.observe(problems), pool.score(episodes), failures(pool.open(GROUPS))]
        first = say(pool, "x")
        mixed = pool.step({("g", 0): Action("raise"), ("f", 1): Action("nan"), ("e", 0): Action("stop")})
        return [*told, first, mixed, list(mixed), say(pool, "y", "z", samples=SAMPLES[:-1])]

    with EnvironmentPool(obedient(RewardSpec("obeyed")), time_limit_s=60.0, **how) as other:
        assert all_of(other) == all_of(pool)


def test_an_episode_that_is_over_takes_no_further_action(pool: EnvironmentPool) -> None:
    pool.open(GROUPS)
    say(pool, "stop", samples=[("g", 1)])
    with pytest.raises(ValueError, match="sample 1 is over"):
        say(pool, "x")


def test_keys_are_free_again_when_their_groups_are_released(pool: EnvironmentPool) -> None:
    pool.open(GROUPS)
    say(pool, "x")
    with pytest.raises(ValueError, match="there is a group 'g' already"):
        pool.open(GROUPS[:1])
    pool.release(["g", "never opened"])
    pool.open(GROUPS[:1])
    assert heard(say(pool, "y")) == ["3 x y", "4 x y", "5 x y", "1 y", "2 y"]
    with pytest.raises(KeyError):
        say(pool, "x", samples=[("another", 0)])


# Failures of one sample.


def test_one_that_raises_at_its_third_step_fails_alone_and_for_good(pool: EnvironmentPool) -> None:
    pool.open(GROUPS)
    say(pool, "x", "y")
    told = pool.step({sample: Action("raise" if sample == ("g", 0) else "z") for sample in SAMPLES})
    why = "error: LookupError: on purpose (misbehaving_environments.py, in _raise)"
    assert failures(told) == {("g", 0): why}
    assert heard(told) == ["2 x y z", "3 x y z", "4 x y z", "5 x y z"]
    assert failures(say(pool, "again")) == {("g", 0): why}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nan", "not_finite: StepResult.reward is nan"),
        ("endless", "not_finite: the metric length is inf"),
        ("pair", "error: TypeError: step() returned a tuple; return StepResult(reward=…, done=…)"),
        ("text", "error: TypeError: StepResult.reward is a str; give a number"),
        ("maybe", "error: TypeError: StepResult.done is True or False, and solved is True, False or None"),
        ("number", "error: TypeError: StepResult.observation is a int; give a text"),
        ("list", "error: TypeError: StepResult.metrics is a list; give numbers by name"),
        ("quit", "error: SystemExit (misbehaving_environments.py, in step)"),
    ],
)
def test_what_a_step_may_not_return_fails(text: str, why: str) -> None:
    with EnvironmentPool(obedient(), workers=1, time_limit_s=60.0, trusted=True) as pool:
        pool.open(GROUPS)
        assert failures(say(pool, text, samples=[("f", 1)])) == {("f", 1): why}
        assert heard(say(pool, "x")) == ["1 x", "2 x", "3 x", "5 x"]


def test_prints_are_no_part_of_the_protocol(pool: EnvironmentPool) -> None:
    pool.open(GROUPS)
    assert {result.reward for result in say(pool, "print").values() if isinstance(result, StepResult)} == {0.0}
    assert heard(say(pool, "x")) == ["1 print x", "2 print x", "3 print x", "4 print x", "5 print x"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hang", "timeout: no answer within 0.5 s"),
        ("exit", "crashed: its process ended with exit code 3; it last wrote: farewell"),
    ],
)
def test_a_lost_worker_costs_only_the_sample_it_was_lost_at(impatient: EnvironmentPool, text: str, why: str) -> None:
    impatient.open(GROUPS)
    say(impatient, "x")
    say(impatient, "stop", samples=[("f", 1)])
    others = [sample for sample in SAMPLES if sample != ("f", 1)]
    told = impatient.step({sample: Action(text if sample == ("g", 0) else "y") for sample in others})
    assert failures(told) == {("g", 0): why}
    # Replayed on the next worker, with what was done before the loss (nothing of g 0) and after it.
    assert heard(told) == ["2 x y", "3 x y", "5 x y"]
    told = say(impatient, "z", samples=others)
    assert failures(told) == {("g", 0): why}
    assert heard(told) == ["2 x y z", "3 x y z", "5 x y z"]


def test_a_timeout_tells_where_it_was(impatient: EnvironmentPool) -> None:
    impatient.open(GROUPS)
    hung = say(impatient, "hang", samples=[("g", 0)])["g", 0]
    assert isinstance(hung, EnvironmentFailure)
    stack = r"threading.py, line \d+, in wait < threading.py, line \d+, in wait < "
    mine = r"misbehaving_environments.py, line \d+, in hang < misbehaving_environments.py, line \d+, in step"
    assert re.fullmatch(f"no answer within 0.5 s; it was at {stack}{mine}", hung.message)


def test_two_losses_in_one_group_leave_the_third_sample(pool: EnvironmentPool) -> None:
    pool.open([("g", {"question": "a"}, [1, 2, 3])])
    told = pool.step({("g", 0): Action("exit"), ("g", 1): Action("x"), ("g", 2): Action("exit")})
    assert list(failures(told)) == [("g", 0), ("g", 2)]
    assert heard(told) == ["2 x"]


def test_an_environment_that_tells_something_else_in_a_replay_fails(pool: EnvironmentPool) -> None:
    pool.open(GROUPS)
    say(pool, "pid", samples=[("g", 0)])
    told = pool.step({("g", 0): Action("x"), ("g", 1): Action("exit"), ("f", 0): Action("x")})
    assert list(failures(told)) == [("g", 1)]
    told = say(pool, "y", samples=SAMPLES[:3])
    assert [each.split("; ")[0] for each in failures(told).values()] == [
        told["g", 0].kind + ": " + told["g", 0].message.split("; ")[0],
        "crashed: its process ended with exit code 3",
    ]
    assert failures(told)["g", 0].startswith("error: not deterministic: the same actions led to {'reward': 0.0")
    assert heard(told) == ["3 x y"]


def test_groups_that_cannot_be_made_fail_at_opening(impatient: EnvironmentPool) -> None:
    bad = [
        ("hangs", {"question": "group hangs"}, [1, 2]),
        ("short", {"question": "group is short"}, [1]),
        ("unasked", {}, [1]),
        ("exits", {"question": "exit at 7"}, [6, 7, 8]),
    ]
    failed = failures(impatient.open([*bad, *GROUPS]))
    assert failed == {
        ("hangs", 0): "timeout: no answer within 0.5 s",
        ("hangs", 1): "timeout: no answer within 0.5 s",
        ("short", 0): "error: ValueError: group() returned 0 episodes for 1 seeds; return one a seed",
        ("unasked", 0): "error: KeyError: 'question' (misbehaving_environments.py, in group)",
        ("exits", 1): "crashed: its process ended with exit code 5",
    }
    told = say(impatient, "x", samples=[("hangs", 0), ("exits", 0), ("exits", 1), ("exits", 2), *SAMPLES])
    assert failures(told) == {key: failed[key] for key in [("hangs", 0), ("exits", 1)]}
    assert heard(told) == ["6 x", "8 x", "1 x", "2 x", "3 x", "4 x", "5 x"]


# Rows, problems, rewards.


def test_a_row_that_it_cannot_take_is_a_failure_of_that_row(impatient: EnvironmentPool) -> None:
    rows = [{"question": question} for question in ("a", "no text", "group hangs", "exit at 0", "b")]
    first, second, *lost, last = impatient.observe([*rows[:2], *rows[2:4], rows[4]])
    assert first == [{"role": "user", "content": "a"}]
    assert isinstance(second, EnvironmentFailure)
    assert second.message.startswith("TypeError: initial_observation() gave {'role': 'user', 'content': 5}")
    assert [each.kind for each in lost if isinstance(each, EnvironmentFailure)] == ["timeout", "crashed"]
    assert last == [{"role": "user", "content": "b"}]


def test_own_problems_come_up_to_a_limit(pool: EnvironmentPool) -> None:
    assert pool.problems(2) == [{"question": "q0"}, {"question": "q1"}]
    assert pool.problems(9) == [{"question": "q0"}, {"question": "q1"}, {"question": "q2"}]
    assert pool.problems(0) == []


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        ("seven", "its problem 3: TypeError: problems() gave a int; give JSON objects"),
        ("nan", "its problem 3: ValueError: Out of range float values are not JSON compliant"),
        ("hang", "its problem 3: no answer within 0.5 s"),
    ],
)
def test_problems_that_cannot_be_had_are_an_error(problem: str, why: str) -> None:
    with EnvironmentPool(obedient(count=2, problem=problem), workers=1, time_limit_s=0.5) as pool:
        with pytest.raises(DataError) as failed:
            pool.problems(5)
        assert pool.problems(2) == [{"question": "q0"}, {"question": "q1"}]
    assert failed.value.what.startswith(f"it failed to give {why}")


def test_rewards_fail_alone(impatient: EnvironmentPool) -> None:
    texts = ("x", "hang", "y", "raise", "z")
    told = impatient.score([Episode({}, [{"text": text, "ended": True, "observation": ""}]) for text in texts])
    assert [each["obeyed"] for each in told if isinstance(each["obeyed"], float)] == [1.0, 1.0, 1.0]
    assert [failures(each) for each in told if failures(each)] == [
        {"obeyed": "timeout: no answer within 0.5 s"},
        {"obeyed": "error: LookupError: on purpose (misbehaving_environments.py, in _raise)"},
    ]


@pytest.mark.parametrize(
    ("how", "where"),
    [({"workers": 0, "time_limit_s": 1.0}, "workers"), ({"workers": 1, "time_limit_s": 0.0}, "time_limit_s")],
)
def test_numbers_out_of_bounds_are_refused(how: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as refused:
        EnvironmentPool(obedient(), **how)
    assert refused.value.where == where


def test_options_are_json() -> None:
    with pytest.raises(ConfigError, match="are no JSON values"):
        EnvironmentPool(obedient(problem={1, 2}), workers=1, time_limit_s=1.0)


def test_a_reward_counts_once() -> None:
    with pytest.raises(ConfigError, match="the reward 'obeyed' is named twice"):
        EnvironmentPool(obedient(RewardSpec("obeyed"), RewardSpec("obeyed", 2.0)), workers=1, time_limit_s=1.0)
