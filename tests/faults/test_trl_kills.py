"""Real training killed at named points and at random: it ends in the bits and the registry of an undisturbed run."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.forked import forked
from tests.faults.kill_points import POINTS
from tests.faults.trl_kills import (
    VARIANTS,
    End,
    campaign,
    end_of,
    import_everything,
    published_by,
    register,
    steps_of,
    undisturbed,
)

pytestmark = pytest.mark.heavy

METHODS = {
    "supervised": "full",
    "preference": "preference",
    "reinforcement": "reinforcement",
    "distillation": "distillation",
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], End]:
    """What undisturbed runs end in, each made once."""
    import_everything()
    made: dict[str, End] = {}

    def of(variant: str) -> End:
        if variant not in made:
            made[variant] = undisturbed(tmp_path_factory.mktemp("undisturbed"), variant)[0]
        return made[variant]

    return of


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_each_named_point_it_ends_as_undisturbed(
    tmp_path: Path, expected: Callable[[str], End], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    variant = METHODS[method]
    again = 0
    for point in POINTS:
        store = tmp_path / point
        with forked(register(store, variant, point)) as child:
            lines = child.rest()
            assert child.wait() == -signal.SIGKILL, (point, lines[-3:])
        between = end_of(store)
        assert published_by(lines).items() <= between.states.items(), point
        with forked(register(store, variant)) as child:
            rest = child.rest()
            assert (child.wait(), rest[-1]) == (0, "done 1"), (point, rest[-3:])
        assert end_of(store) == expected(variant), point
        assert published_by(rest).keys().isdisjoint(between.states), point
        steps = steps_of(lines) + steps_of(rest)
        again += len(steps) - len(set(steps))
    with capsys.disabled():
        print(f"\ntrl, {method}: {len(POINTS)} kills at named points, {again} steps made again, 0 lost")


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_random_it_ends_as_undisturbed(
    tmp_path: Path, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import_everything()
    tally = campaign(lambda name: tmp_path / name, variant, 9, random.Random(variant), "local")
    with capsys.disabled():
        print(f"\n{variant}: {tally.line()}")
    assert tally.mismatches == []
    assert tally.kills >= 9
