"""The learning-rate schedule: exact values, bounds, and bit equality with transformers."""

from typing import Any

import pytest

from kitchen_resources.errors import ConfigError
from kitchen_resources.formulas.schedules import SCHEDULES, learning_rate, warmup_steps_from_ratio


def rate_at(step: int, schedule: str, peak: float = 1e-3, total_steps: int = 1000, **arguments: Any) -> float:
    return learning_rate(step, schedule=schedule, peak=peak, total_steps=total_steps, **arguments)


VALUES = [
    ("constant", {"peak": 1e-4}, {0: 1e-4, 500: 1e-4, 999: 1e-4}),
    ("linear", {}, {0: 1e-3, 500: 5e-4, 1000: 0.0, 1500: 0.0}),
    (
        "linear",
        {"final": 1e-4},
        {0: 1e-3, 250: 7.75e-4, 500: 5.5e-4, 750: 3.25e-4, 999: 1.009e-4, 1000: 1e-4, 2000: 1e-4},
    ),
    ("linear", {"total_steps": 100}, {200: 0.0}),
    (
        "cosine",
        {},
        {0: 1e-3, 250: 8.535533905932737e-4, 500: 5e-4, 750: 1.4644660940672628e-4, 1000: 0.0, 1500: 0.0},
    ),
    ("cosine", {"num_cycles": 1.0}, {250: 5e-4, 500: 0.0, 1000: 1e-3}),
    ("cosine", {"final": 1e-4}, {0: 1e-3, 500: 5.5e-4, 1000: 1e-4}),
    ("cosine", {"warmup_steps": 100}, {0: 0.0, 50: 5e-4, 99: 9.9e-4, 100: 1e-3, 550: 5e-4}),
    ("linear", {"warmup_steps": 100}, {99: 9.9e-4, 100: 1e-3, 101: 9.98888888888889e-4}),
    ("linear", {"warmup_steps": 100, "final": 1e-4}, {0: 0.0, 50: 5e-4, 100: 1e-3, 1000: 1e-4}),
    ("constant", {"warmup_steps": 100}, {50: 5e-4, 100: 1e-3, 500: 1e-3, 999: 1e-3}),
    ("constant", {"final": 1e-4}, {999: 1e-3}),
    ("polynomial", {"power": 2.0}, {0: 1e-3, 500: 2.5e-4, 900: 1e-5, 1000: 0.0, 1500: 0.0}),
    ("polynomial", {"power": 2.0, "final": 1e-4}, {0: 1e-3, 500: 3.25e-4, 1000: 1e-4}),
    ("exponential", {}, {0: 1e-3, 1: 9e-4, 2: 8.1e-4, 10: 3.486784401e-4}),
    (
        "exponential",
        {"warmup_steps": 2, "rate": 0.5, "final": 1e-4},
        {1: 5e-4, 2: 1e-3, 4: 2.5e-4, 12: 9.765625e-7},
    ),
    ("linear", {"peak": 1.0, "total_steps": 5}, {0: 1.0, 1: 0.8, 2: 0.6, 3: 0.4, 4: 0.2, 5: 0.0}),
    ("linear", {"peak": 1.0, "total_steps": 20, "warmup_steps": 5}, {0: 0.0, 2: 0.4, 5: 1.0, 10: 2 / 3}),
    ("cosine", {"peak": 1.0, "total_steps": 20, "warmup_steps": 5}, {10: 0.75}),
]


@pytest.mark.parametrize(("schedule", "arguments", "expected"), VALUES)
def test_values(schedule: str, arguments: dict[str, Any], expected: dict[int, float]) -> None:
    for step, rate in expected.items():
        assert rate_at(step, schedule, **arguments) == pytest.approx(rate, rel=1e-12, abs=1e-18), step


def test_a_linear_run_starts_at_the_peak_and_ends_one_step_above_the_final_rate() -> None:
    rates = [rate_at(step, "linear", total_steps=10) for step in range(10)]
    assert rates[0] == 1e-3
    assert rates[-1] == pytest.approx(1e-4, rel=1e-12)
    assert rates == sorted(rates, reverse=True)


def test_polynomial_of_power_one_is_linear() -> None:
    for step in range(0, 1001):
        assert rate_at(step, "polynomial", final=1e-5, warmup_steps=37) == rate_at(
            step, "linear", final=1e-5, warmup_steps=37
        )


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial"])
def test_both_ends_are_exact(schedule: str) -> None:
    peak, final = 3e-5, 1e-5
    assert final + (peak - final) != peak  # the other way to write the formula misses the peak by a bit
    assert rate_at(3, schedule, peak=peak, final=final, total_steps=10, warmup_steps=3) == peak
    assert rate_at(10, schedule, peak=peak, final=final, total_steps=10, warmup_steps=3) == final


def test_warmup_over_the_whole_run_then_the_final_rate() -> None:
    arguments: dict[str, Any] = {"peak": 1.0, "total_steps": 4, "warmup_steps": 4, "final": 0.5}
    assert [rate_at(step, "linear", **arguments) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"schedule": "cosin"}, "lr_schedule"),
        ({"step": -1}, "step"),
        ({"total_steps": 0}, "total_steps"),
        ({"warmup_steps": 11}, "warmup_steps"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"peak": -1e-4}, "learning_rate"),
        ({"peak": float("nan")}, "learning_rate"),
        ({"peak": float("inf")}, "learning_rate"),
        ({"final": -1.0}, "final"),
        ({"power": 0.0}, "power"),
        ({"num_cycles": 0.0}, "num_cycles"),
        ({"rate": 0.0}, "rate"),
        ({"rate": 1.1}, "rate"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, object], where: str) -> None:
    given: dict[str, Any] = {"step": 0, "schedule": "linear", "peak": 1e-3, "total_steps": 10, **arguments}
    with pytest.raises(ConfigError) as refused:
        learning_rate(**given)
    assert refused.value.where == where
    assert refused.value.fix


def test_an_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="constant, linear, cosine, polynomial, exponential"):
        rate_at(0, "inverse_sqrt")
    assert SCHEDULES == ("constant", "linear", "cosine", "polynomial", "exponential")


@pytest.mark.parametrize(
    ("ratio", "total_steps", "expected"),
    [
        (0.0, 1000, 0),
        (0.1, 1000, 100),
        (0.1, 25, 3),  # 2.5: half up, not to the even 2
        (0.1, 35, 4),  # 3.5
        (0.1, 24, 2),  # 2.4
        (0.145, 100, 15),  # 14.5 as written, 14.499999999999998 as a float
        (0.03, 10, 0),
        (0.05, 10, 1),  # 0.5
        (0.49999999999999994, 1, 0),  # floor(x + 0.5) of the floats is 1
        (1.0, 7, 7),
        (1e-9, 10, 0),
    ],
)
def test_warmup_steps_from_ratio(ratio: float, total_steps: int, expected: int) -> None:
    assert warmup_steps_from_ratio(ratio, total_steps) == expected


@pytest.mark.parametrize(
    ("ratio", "total_steps", "where"),
    [
        (-0.1, 10, "warmup_ratio"),
        (1.5, 10, "warmup_ratio"),
        (float("nan"), 10, "warmup_ratio"),
        (0.1, 0, "total_steps"),
    ],
)
def test_a_bad_warmup_ratio_is_refused(ratio: float, total_steps: int, where: str) -> None:
    with pytest.raises(ConfigError) as refused:
        warmup_steps_from_ratio(ratio, total_steps)
    assert refused.value.where == where


@pytest.mark.heavy
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(
    ("total_steps", "warmup_steps", "peak"),
    [
        (7, 3, 2e-4),
        (1000, 37, 3.3e-5),
        (10, 0, 1e-3),
        (12, 12, 7e-4),
        (1, 0, 0.1),
        (1, 1, 0.3),
        (333, 100, 2.0e-5 / 3),
    ],
)
def test_equal_to_transformers_to_the_last_bit(
    schedule: str, total_steps: int, warmup_steps: int, peak: float
) -> None:
    import torch
    from transformers import optimization

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    make = getattr(optimization, f"get_{schedule}_schedule_with_warmup")
    steps = {} if schedule == "constant" else {"num_training_steps": total_steps}
    scheduler = make(optimizer, num_warmup_steps=warmup_steps, **steps)
    for step in range(total_steps + 1):
        ours = rate_at(step, schedule, peak=peak, total_steps=total_steps, warmup_steps=warmup_steps)
        assert ours == scheduler.get_last_lr()[0], step
        optimizer.step()
        scheduler.step()


@pytest.mark.heavy
@pytest.mark.parametrize("num_cycles", [0.3, 1.0, 1.7])
def test_other_waves_are_equal_to_transformers_too(num_cycles: float) -> None:
    import torch
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 37, 500, num_cycles=num_cycles)
    for step in range(501):
        ours = rate_at(step, "cosine", peak=3e-4, total_steps=500, warmup_steps=37, num_cycles=num_cycles)
        assert ours == scheduler.get_last_lr()[0], step
        optimizer.step()
        scheduler.step()
