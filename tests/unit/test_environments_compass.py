"""The game of the built-in recipe: its rules, and that no answer wins it that doesn't look."""

import itertools

import pytest

from kitchen_resources.environments.compass import Compass
from kitchen_resources.environments.port import Action
from kitchen_resources.errors import ConfigError, DataError


def play(calls: list[str], answers: list[str]) -> tuple[list[float], bool | None]:
    """Rewards of a game, and whether it was solved."""
    (watch,) = Compass(turns=len(calls), count=1).group({"calls": calls}, [0])
    results = [watch.step(Action(answer)) for answer in answers]
    assert [result.done for result in results] == [False] * (len(calls) - 1) + [True]
    return [result.reward for result in results], results[-1].solved


def test_the_last_wind_of_a_call_counts() -> None:
    assert play(["nes", "wwe"], ["n", "w"]) == ([0.5, 0.5], True)
    assert play(["nes", "wwe"], [" North\n", "WEST"]) == ([0.5, 0.5], True)
    assert play(["nes", "wwe"], ["n", "e"]) == ([0.5, 0.0], False)
    assert play(["s"], ["no"]) == ([0.0], False)


def test_the_rules_are_told_unless_they_are_not_to_be() -> None:
    problem = {"calls": ["nes", "w"]}
    told, bare = Compass().group(problem, [0])[0], Compass(explain=False).group(problem, [0])[0]
    assert told.initial_observation()[0]["content"].endswith("Here it is n.\n\nnes")
    assert bare.initial_observation() == [{"role": "user", "content": "nes"}]
    assert bare.step(Action("x")).observation == "w"


def test_games_are_distinct_and_the_same_at_every_call() -> None:
    games = [tuple(problem["calls"]) for problem in Compass().problems()]
    assert len(set(games)) == 2000
    assert games == [tuple(problem["calls"]) for problem in Compass().problems()]
    assert games != [tuple(problem["calls"]) for problem in Compass(seed=1).problems()]


def test_no_answers_given_to_all_games_earn_more_than_a_third() -> None:
    games = [problem["calls"] for problem in Compass().problems()]
    best = 0.0
    for answers in itertools.product("nesw", repeat=2):
        rewards = [sum(play(calls, list(answers))[0]) for calls in games]
        best = max(best, sum(rewards) / len(rewards))
    assert 0.2 < best < 0.3


@pytest.mark.parametrize("options", [{"turns": 0}, {"winds": 0}, {"count": 0}, {"turns": 1, "winds": 1, "count": 5}])
def test_wrong_options_are_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError) as refused:
        Compass(**options)
    assert refused.value.where in options


@pytest.mark.parametrize("problem", [{}, {"calls": []}, {"calls": "nes"}, {"calls": ["north"]}, {"calls": [""]}])
def test_a_problem_without_calls_is_refused(problem: dict[str, object]) -> None:
    with pytest.raises(DataError, match="no calls of the letters"):
        Compass().group(problem, [0])
