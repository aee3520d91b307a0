"""Tango: its rules, its dances, and that none of it is won without looking."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from kitchen_resources.digests import digest_json
from kitchen_resources.environments.game import MIRROR, Tango
from kitchen_resources.environments.port import Action, Environment, EnvironmentGroupBuilder, StepResult
from kitchen_resources.errors import ConfigError, DataError


def episode(*figures: str) -> Environment:
    (dance,) = Tango().group({"figures": list(figures)}, [0])
    return dance


def danced(figures: Sequence[str], *answers: str) -> list[StepResult]:
    dance = episode(*figures)
    return [dance.step(Action(answer)) for answer in answers]


def reward(figures: Sequence[str], answers: Sequence[str]) -> float:
    return sum(result.reward for result in danced(figures, *answers))


def mirrored(figure: str) -> str:
    return "".join(MIRROR[step] for step in figure)


# Rules.


def test_a_dance_is_answered_figure_by_figure() -> None:
    dance = episode("flb", "rrf")
    assert dance.initial_observation() == [{"role": "user", "content": "flb"}]
    first = dance.step(Action("brf"))
    assert (first.reward, first.done, first.observation, first.solved) == (0.5, False, "rrf", None)
    last = dance.step(Action("llb"))
    assert (last.reward, last.done, last.observation, last.solved) == (0.5, True, "", True)


def test_every_step_has_another_one_as_its_mirror_image() -> None:
    assert sorted(MIRROR) == sorted(MIRROR.values())
    assert all(MIRROR[MIRROR[step]] == step != MIRROR[step] for step in MIRROR)


@pytest.mark.parametrize(
    ("answer", "right", "form"),
    [
        ("brf", 3, 3),
        ("BRF", 3, 3),
        (" b r\nf", 3, 3),
        ("brfbrf", 3, 3),
        ("br", 2, 2),
        ("brb", 2, 3),
        ("bfr", 1, 3),
        ("flb", 0, 3),
        ("xrf", 2, 2),
        ("", 0, 0),
        ("\N{REPLACEMENT CHARACTER}é7", 0, 0),
    ],
)
def test_right_steps_are_counted_in_their_places(answer: str, right: int, form: int) -> None:
    (result,) = danced(["flb"], answer)
    assert (result.reward, result.solved) == (right / 3, right == 3)
    assert result.metrics == {"form": form / 3}


def test_a_cut_turn_counts_as_much() -> None:
    assert episode("flb").step(Action("brf", ended=False)).reward == 1.0


def test_one_wrong_step_leaves_the_dance_unsolved() -> None:
    first, last = danced(["flb", "rrf"], "brb", "llb")
    assert first.reward + last.reward == pytest.approx(5 / 6)
    assert last.solved is False


@pytest.mark.parametrize("figures", [1, 2, 3, 7])
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_dance_without_a_wrong_step_earns_one(figures: int, steps: int) -> None:
    for problem in Tango(figures=figures, steps=steps, count=4).problems():
        shown: list[str] = problem["figures"]
        assert reward(shown, [mirrored(figure) for figure in shown]) == pytest.approx(1.0, abs=1e-12)


def test_episodes_of_a_group_are_alike_and_apart() -> None:
    builder = Tango()
    assert isinstance(builder, EnvironmentGroupBuilder)
    first, second = builder.group({"figures": ["fb", "lr"]}, [3, 4])
    assert first.initial_observation() == second.initial_observation()
    assert first.step(Action("bf")).reward == 0.5
    assert second.step(Action("bf")).reward == 0.5


@pytest.mark.parametrize(
    "problem", [{}, {"figures": []}, {"figures": "flb"}, {"figures": ["flx"]}, {"figures": [""]}]
)
def test_what_is_no_dance_is_refused(problem: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="are no figures of a dance\n  fix: write figures"):
        Tango().group(problem, [0])


# Dances.


def test_dances_are_distinct_and_the_same_at_every_call() -> None:
    builder = Tango()
    dances = list(builder.problems())
    assert dances == list(builder.problems()) == list(Tango().problems())
    assert len({tuple(dance["figures"]) for dance in dances}) == len(dances) == 2000
    assert all([len(figure) for figure in dance["figures"]] == [3, 3] for dance in dances)


def test_dances_are_pinned() -> None:
    assert digest_json(list(Tango().problems())) == "6400bf03d7cb73a0a35860fabc6d917c003ebbc845c00cf1ddcdbea14470b05e"


def test_another_seed_gives_other_dances() -> None:
    assert list(Tango(seed=1).problems())[:20] != list(Tango().problems())[:20]


def test_all_dances_can_be_had_and_no_more() -> None:
    assert len(list(Tango(figures=1, steps=3, count=64).problems())) == 64
    with pytest.raises(ConfigError, match="65 dances can't be had of the 64 there are with 1 figures of 3 steps"):
        Tango(figures=1, steps=3, count=65)


@pytest.mark.parametrize("args", [{"count": 0}, {"figures": 0}, {"steps": 0}, {"figures": -1, "steps": -3}])
def test_no_dance_at_all_is_refused(args: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"dances can.t be had of the 0 there are|0 dances can.t be had"):
        Tango(**args)


# Not won without looking.


@pytest.mark.parametrize("held_out", [slice(0, 200), slice(200, 400), slice(None)])
def test_no_answer_given_to_all_dances_earns_over_three_tenths(held_out: slice) -> None:
    dances = [dance["figures"] for dance in Tango().problems()][held_out]
    # What an answer earns on average is a sum over its places: the best one has the most frequent step in each.
    figures, steps = len(dances[0]), len(dances[0][0])
    best = [
        "".join(
            Counter(mirrored(dance[figure])[place] for dance in dances).most_common(1)[0][0] for place in range(steps)
        )
        for figure in range(figures)
    ]
    assert sum(reward(dance, best) for dance in dances) / len(dances) <= 0.3


def test_no_answer_out_of_all_there_are_earns_over_three_tenths() -> None:
    dances = [dance["figures"] for dance in Tango().problems()][:200]
    figures = ["".join(figure) for figure in product(MIRROR, repeat=3)]
    # Turns are independent: each of the 64 x 64 answers earns what its first figure does and what its last one does.
    first, last = (
        {answer: sum(danced(dance, *([answer] * 2))[turn].reward for dance in dances) / 200 for answer in figures}
        for turn in range(2)
    )
    assert max(first[one] + last[other] for one, other in product(figures, repeat=2)) <= 0.3


def test_neither_repeating_a_figure_nor_mirroring_the_first_one_wins() -> None:
    dances = [dance["figures"] for dance in Tango().problems()]
    assert sum(reward(dance, dance) for dance in dances) == 0.0
    assert sum(reward(dance, [mirrored(dance[0])] * 2) for dance in dances) / len(dances) < 0.65
