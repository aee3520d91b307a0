"""Which epoch is best, and when training stops."""

import math

import pytest

from kitchen_resources.formulas.selection import best_epoch, early_stop_epoch, is_better, lower_is_better

NAN = math.nan
LOSS = "held_out/loss"
MATCH = "held_out/exact_match"


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("held_out/loss", True),
        ("loss", True),
        ("a/b/perplexity", True),
        ("nll", True),
        ("other/bits_per_byte", True),
        ("held_out/exact_match", False),
        ("held_out/token_f1_passed", False),
        # Only the metric's own name counts.
        ("loss/exact_match", False),
        ("held_out/my_loss", False),
        ("held_out/loss_passed", False),
        ("", False),
    ],
)
def test_direction_of_a_metric(metric: str, lower: bool) -> None:
    assert lower_is_better(metric) is lower


def test_better_is_strict_and_follows_the_direction() -> None:
    assert is_better(1.0, 2.0, LOSS)
    assert not is_better(2.0, 1.0, LOSS)
    assert is_better(0.9, 0.8, MATCH)
    assert not is_better(0.8, 0.9, MATCH)
    for metric in (LOSS, MATCH):
        for value, than in ((1.0, 1.0), (NAN, 1.0), (1.0, NAN), (NAN, NAN)):
            assert not is_better(value, than, metric)


@pytest.mark.parametrize(
    ("values", "metric", "best"),
    [
        ({1: 3.0, 2: 2.0, 3: 2.5}, LOSS, 2),
        ({1: 0.1, 2: 0.3, 3: 0.2}, MATCH, 2),
        # Of equals the first, whatever the order of the mapping.
        ({3: 0.5, 1: 0.5, 2: 0.5}, MATCH, 1),
        ({3: 1.0, 2: 1.0, 1: 1.5}, LOSS, 2),
        ({1: NAN, 2: 5.0, 3: NAN}, LOSS, 2),
        ({1: NAN, 2: 0.0}, MATCH, 2),
        ({1: math.inf, 2: 9.0}, LOSS, 2),
        ({7: -1.0}, MATCH, 7),
        ({1: 0.0, 2: -1.0}, MATCH, 1),
        ({}, LOSS, None),
        ({1: NAN, 2: NAN}, MATCH, None),
    ],
)
def test_best_epoch(values: dict[int, float], metric: str, best: int | None) -> None:
    assert best_epoch(values, metric) == best


@pytest.mark.parametrize(
    ("values", "metric", "patience", "stop"),
    [
        ({1: 1.0, 2: 2.0, 3: 3.0}, LOSS, None, None),
        ({1: 3.0, 2: 2.0, 3: 1.0}, LOSS, 1, None),
        ({1: 3.0, 2: 3.5, 3: 1.0}, LOSS, 1, 2),
        ({1: 3.0, 2: 3.5, 3: 1.0}, LOSS, 2, None),
        ({1: 3.0, 2: 3.5, 3: 3.0, 4: 1.0}, LOSS, 2, 3),
        # A better value starts the count again.
        ({1: 3.0, 2: 3.5, 3: 2.0, 4: 2.5, 5: 2.0, 6: 1.0}, LOSS, 2, 5),
        ({1: 0.5, 2: 0.5, 3: 0.4}, MATCH, 2, 3),
        ({1: 0.5, 2: 0.4, 3: 0.6, 4: 0.7}, MATCH, 2, None),
        # Better than the last one is not better than the best one.
        ({1: 0.9, 2: 0.1, 3: 0.2, 4: 0.3}, MATCH, 3, 4),
        # Evaluations are counted, and not epochs.
        ({2: 1.0, 4: 1.1, 6: 1.2}, LOSS, 2, 6),
        ({6: 1.2, 4: 1.1, 2: 1.0}, LOSS, 1, 4),
        ({1: NAN, 2: NAN, 3: 1.0}, LOSS, 2, 2),
        ({1: NAN, 2: 1.0, 3: NAN, 4: 0.9}, LOSS, 2, None),
        ({}, LOSS, 1, None),
    ],
)
def test_early_stop(values: dict[int, float], metric: str, patience: int | None, stop: int | None) -> None:
    assert early_stop_epoch(values, metric, patience) == stop


def test_where_training_stopped_stays_when_values_are_added() -> None:
    values = {1: 3.0, 2: 2.0, 3: 2.1, 4: 2.2}
    assert early_stop_epoch(values, LOSS, 2) == 4
    assert early_stop_epoch({**values, 5: 0.1, 6: 0.2}, LOSS, 2) == 4
