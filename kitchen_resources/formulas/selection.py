"""Which epoch is the best, and when to stop: pure functions of recorded evaluations."""

from collections.abc import Mapping

_LOWER_IS_BETTER = ("loss", "nll", "perplexity", "bits_per_byte", "teacher_kl")


def lower_is_better(metric: str) -> bool:
    """Whether a metric, `<evaluation>/<metric>` or `<metric>`, is better when it is lower."""
    return metric.rsplit("/", 1)[-1] in _LOWER_IS_BETTER


def is_better(value: float, than: float, metric: str) -> bool:
    """Whether a value of a metric is strictly better than another. NaN is better than nothing."""
    return value < than if lower_is_better(metric) else value > than


def best_epoch(values: Mapping[int, float], metric: str) -> int | None:
    """The epoch with the best value; of equals the first; None when nothing was measured."""
    best: int | None = None
    for epoch in sorted(values):
        if values[epoch] == values[epoch] and (best is None or is_better(values[epoch], values[best], metric)):
            best = epoch
    return best


def early_stop_epoch(values: Mapping[int, float], metric: str, patience: int | None) -> int | None:
    """The first epoch after which training stops, or None while it goes on.

    It stops when `patience` evaluations in a row brought no better value than the best before them.
    """
    if patience is None:
        return None
    best: float | None = None
    waited = 0
    for epoch in sorted(values):
        value = values[epoch]
        if value == value and (best is None or is_better(value, best, metric)):
            best, waited = value, 0
        else:
            waited += 1
        if waited >= patience:
            return epoch
    return None
