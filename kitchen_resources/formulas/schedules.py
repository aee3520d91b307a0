"""The learning rate of every step: one schedule for all trainers and loops."""

import math
from decimal import ROUND_HALF_UP, Decimal

from kitchen_resources.errors import ConfigError

SCHEDULES: tuple[str, ...] = ("constant", "linear", "cosine", "polynomial", "exponential")


def learning_rate(
    step: int,
    *,
    schedule: str,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    final: float = 0.0,
    power: float = 1.0,
    rate: float = 0.9,
    num_cycles: float = 0.5,
) -> float:
    """The learning rate of the optimiser step after `step` steps were taken.

    With `s` steps, `w` warm-up steps and `T` in all, warm-up is `peak * s / w` for `s < w`. After it, a
    factor `f` that starts at 1 gives `peak * f + final * (1 - f)`:

    | schedule | f |
    |---|---|
    | constant | 1 |
    | linear | r = (T - s) / (T - w), the share that remains |
    | cosine | (1 + cos(2 pi num_cycles p)) / 2, p = (s - w) / (T - w): half a wave at num_cycles 0.5 |
    | polynomial | r ** power |
    | exponential | rate ** (s - w), and the result is peak * f: no end, so `final` doesn't enter |

    Past the end, linear, cosine and polynomial stay at their value of step `T`; when `w == T` linear and
    polynomial are at `final` from step `T` on.

    With `final` 0, constant, linear and cosine are equal to the last bit to `get_*_schedule_with_warmup` of
    transformers 5.24 under a LambdaLR, for every step up to `T`. Past `T` its cosine rises again; this one
    doesn't.

    Args:
        step: Optimiser steps already taken, from 0. A run of `T` steps uses 0 to `T - 1`.
        schedule: One of `SCHEDULES`.
        peak: The learning rate after warm-up.
        total_steps: Optimiser steps of the whole run, over all of its sessions.
        warmup_steps: Steps over which the rate rises from 0, at most `total_steps`.
        final: The rate at the end. Constant and exponential don't use it.
        power: Exponent of the polynomial schedule, above 0.
        rate: Factor of the exponential schedule for each step, above 0 and at most 1.
        num_cycles: Waves of the cosine schedule, above 0.

    Raises:
        ConfigError: The schedule is unknown, or a number is out of its bounds.
    """
    _check_counts(step, total_steps, warmup_steps)
    _check_rates(peak, final, power, rate, num_cycles)
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"unknown schedule {schedule!r}", where="lr_schedule", fix=f"write one of {', '.join(SCHEDULES)}"
        )
    if step < warmup_steps:
        return peak * (float(step) / float(max(1, warmup_steps)))
    if schedule == "exponential":
        return peak * rate ** (step - warmup_steps)
    factor = _factor(min(step, total_steps), schedule, total_steps, warmup_steps, power, num_cycles)
    return peak * factor + final * (1.0 - factor)


def _factor(step: int, schedule: str, total_steps: int, warmup_steps: int, power: float, num_cycles: float) -> float:
    # The order of the operations is that of transformers/optimization.py: another order moves the last bit.
    decay_steps = float(max(1, total_steps - warmup_steps))
    if schedule == "cosine":
        progress = float(step - warmup_steps) / decay_steps
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * float(num_cycles) * 2.0 * progress)))
    remaining = float(total_steps - step) / decay_steps
    if schedule == "linear":
        return remaining
    if schedule == "polynomial":
        return float(remaining**power)
    return 1.0


def warmup_steps_from_ratio(ratio: float, total_steps: int) -> int:
    """Warm-up steps for a share of the run: `ratio * total_steps`, rounded to the nearest step, a half up.

    The product is taken in decimal, of the ratio as it is written: 0.145 of 100 steps is 14.5, so 15 steps,
    though the product of the floats is 14.499999999999998. transformers rounds up instead, so it is given
    steps.

    Args:
        ratio: Share of the run, 0 to 1.
        total_steps: Optimiser steps of the whole run.

    Raises:
        ConfigError: A number is out of its bounds.
    """
    if not 0.0 <= ratio <= 1.0:
        raise ConfigError(f"{ratio} is not a share from 0 to 1", where="warmup_ratio", fix="write warmup_ratio: 0.1")
    _check_counts(0, total_steps, 0)
    exact = Decimal(repr(float(ratio))) * total_steps
    return int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def _check_counts(step: int, total_steps: int, warmup_steps: int) -> None:
    if step < 0:
        raise ConfigError(f"{step} is below 0", where="step", fix="count optimiser steps from 0")
    if total_steps < 1:
        raise ConfigError(f"{total_steps} is below 1", where="total_steps", fix="plan at least one optimiser step")
    if not 0 <= warmup_steps <= total_steps:
        raise ConfigError(
            f"{warmup_steps} is not from 0 to the run's {total_steps} steps",
            where="warmup_steps",
            fix=f"write warmup_steps: {total_steps // 10}, or train for more steps",
        )


def _check_rates(peak: float, final: float, power: float, rate: float, num_cycles: float) -> None:
    for name, value in (("learning_rate", peak), ("final", final)):
        if not (math.isfinite(value) and value >= 0.0):
            raise ConfigError(f"{value} is not a finite number from 0 up", where=name, fix=f"write {name}: 1.0e-4")
    for name, value in (("power", power), ("num_cycles", num_cycles)):
        if not (math.isfinite(value) and value > 0.0):
            raise ConfigError(f"{value} is not a finite number above 0", where=name, fix=f"write {name}: 1.0")
    if not 0.0 < rate <= 1.0:
        raise ConfigError(f"{rate} is not above 0 and at most 1", where="rate", fix="write rate: 0.9")
