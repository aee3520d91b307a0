"""Retention: which checkpoints keep their payload."""

from collections.abc import Mapping, Sequence, Set

from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.formulas.selection import lower_is_better


def payload_to_keep(
    entries: Sequence[CheckpointEntry],
    values: Mapping[int, float],
    *,
    metric: str,
    keep_last: int,
    keep_best: int,
    protected: Set[str],
) -> set[int]:
    """The steps whose payload stays.

    Args:
        entries: The checkpoints that exist, by step.
        values: `metric` by epoch, where it was measured.
        metric: Decides which are the best.
        keep_last: Number of newest checkpoints to keep.
        keep_best: Number of best epochs to keep.
        protected: Manifests that model versions were made of.
    """
    whole = [entry for entry in entries if entry.payload == "present"]
    keep = {entry.step for entry in whole[max(len(whole) - keep_last, 0) :]}
    sign = 1.0 if lower_is_better(metric) else -1.0
    ends = [entry for entry in whole if entry.epoch_complete and entry.epoch in values]
    ranked = sorted(ends, key=lambda entry: (sign * values[entry.epoch], entry.epoch))
    keep |= {entry.step for entry in ranked[:keep_best]}
    return keep | {entry.step for entry in whole if entry.manifest in protected}
