"""Which checkpoints keep their payload: the newest, the best, and what model versions were made of."""

from typing import Any

import pytest

from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.checkpoints.retention import payload_to_keep


def entry(step: int, epoch: int, **fields: Any) -> CheckpointEntry:
    values = {"epoch_complete": True, "manifest": f"m{step}", "state_digest": f"s{step}", "bytes": 1}
    return CheckpointEntry(step=step, epoch=epoch, **{**values, **fields})


ENTRIES = [
    entry(10, 1),
    entry(15, 2, epoch_complete=False),
    entry(20, 2),
    entry(30, 3),
    entry(35, 4, epoch_complete=False),
]
VALUES = {1: 0.5, 2: 0.1, 3: 0.2}


def keep(entries: list[CheckpointEntry] = ENTRIES, values: dict[int, float] = VALUES, **how: Any) -> set[int]:
    how = {"metric": "held_out/loss", "keep_last": 1, "keep_best": 0, "protected": frozenset(), **how}
    return payload_to_keep(entries, values, **how)


@pytest.mark.parametrize(
    ("number", "kept"),
    [
        (0, set()),
        (1, {35}),
        (2, {30, 35}),
        (4, {15, 20, 30, 35}),
        (5, {10, 15, 20, 30, 35}),
        (9, {10, 15, 20, 30, 35}),
    ],
)
def test_the_newest_whether_or_not_they_end_an_epoch(number: int, kept: set[int]) -> None:
    assert keep(keep_last=number) == kept


@pytest.mark.parametrize(
    ("metric", "number", "kept"),
    [
        ("held_out/loss", 1, {20}),
        ("held_out/loss", 2, {20, 30}),
        ("held_out/perplexity", 1, {20}),
        ("held_out/exact_match", 1, {10}),
        ("held_out/exact_match", 2, {10, 30}),
        ("held_out/exact_match", 9, {10, 20, 30}),
        ("held_out/loss", 0, set()),
    ],
)
def test_the_best_by_a_metric_that_is_better_low_or_high(metric: str, number: int, kept: set[int]) -> None:
    assert keep(keep_last=0, keep_best=number, metric=metric) == kept


def test_of_equals_the_first_is_the_best() -> None:
    assert keep(values={1: 0.2, 2: 0.1, 3: 0.1}, keep_last=0, keep_best=1) == {20}


def test_an_epoch_is_measured_at_its_end_and_not_inside() -> None:
    inside = [entry(5, 1, epoch_complete=False), entry(10, 1), entry(20, 2)]
    assert keep(inside, {1: 0.1, 2: 0.2}, keep_last=0, keep_best=1) == {10}
    assert keep(inside[:1] + inside[2:], {1: 0.1, 2: 0.2}, keep_last=0, keep_best=1) == {20}


def test_what_was_not_measured_is_not_among_the_best() -> None:
    assert keep(values={3: 9.0}, keep_last=0, keep_best=5) == {30}
    assert keep(values={}, keep_last=0, keep_best=5) == set()


def test_what_has_no_payload_counts_for_nothing() -> None:
    entries = [entry(10, 1), entry(20, 2, payload="pruned"), entry(30, 3), entry(40, 4, payload="pruned")]
    values = {1: 0.5, 2: 0.1, 3: 0.2, 4: 0.0}
    assert keep(entries, values, keep_last=1, keep_best=1, protected=frozenset({"m20"})) == {30}
    assert keep(entries, values, keep_last=2) == {10, 30}


def test_what_a_model_version_was_made_of_stays() -> None:
    assert keep(keep_last=1, protected=frozenset({"m10", "m20", "other"})) == {10, 20, 35}


def test_all_rules_together() -> None:
    assert keep(keep_last=2, keep_best=1, protected=frozenset({"m15"})) == {15, 20, 30, 35}
    assert keep([], keep_last=2, keep_best=1) == set()
