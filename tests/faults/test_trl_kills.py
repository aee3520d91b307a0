"""Real training killed at named points and at random: it ends in the bits and the registry of an undisturbed run."""

import random
import signal
from pathlib import Path

import pytest

from tests.faults.forked import forked
from tests.faults.kill_points import POINTS
from tests.faults.trl_kills import (
    METHODS,
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


# Evaluations come before the model's files in some methods, and after them in others.
CHAINS = (["in an evaluation"], [point for point in POINTS if point != "in an evaluation"])


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_each_named_point_it_ends_as_undisturbed(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run is killed at one point after the other; `make soak` kills a run of its own at each."""
    import_everything()
    variant = METHODS[method]
    expected = undisturbed(tmp_path / "undisturbed", variant)[0]
    again = sum(killed_at(points, tmp_path / points[0], variant, expected) for points in CHAINS)
    with capsys.disabled():
        print(f"\ntrl, {method}: {len(POINTS)} kills at named points, {again} steps made again, 0 lost")


def killed_at(points: list[str], store: Path, variant: str, expected: End) -> int:
    """Kill a run at points that it comes to in this order, and run it to its end; the steps that were made again."""
    steps: list[str] = []
    for point in points:
        before = end_of(store).states
        with forked(register(store, variant, point)) as child:
            lines = child.rest()
            assert child.wait() == -signal.SIGKILL, (point, lines[-3:])
        now = end_of(store).states
        # What was published is there, is what it would have been, and isn't made again.
        assert before.items() | published_by(lines).items() <= now.items() <= expected.states.items(), point
        assert published_by(lines).keys().isdisjoint(before), point
        steps += steps_of(lines)
    with forked(register(store, variant)) as child:
        rest = child.rest()
        assert (child.wait(), rest[-1]) == (0, "done 1"), rest[-3:]
    assert end_of(store) == expected
    steps += steps_of(rest)
    return len(steps) - len(set(steps))


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
