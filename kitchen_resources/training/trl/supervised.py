"""Supervised fine-tuning on TRL's SFTTrainer."""

from functools import lru_cache
from typing import Any

from kitchen_resources.training.port import TrainingJob

ALGORITHM_VERSION = 1
"""Raised by hand when this module's arithmetic changes."""


def config_class() -> type:
    """The TRL config class of the method."""
    from trl import SFTConfig

    return SFTConfig  # type: ignore[no-any-return]


def method_arguments(job: TrainingJob) -> dict[str, Any]:
    """Arguments beyond those that every method shares: rows come tokenized, cut and packed."""
    return {
        "max_length": None,
        "packing": False,
        "padding_free": job.data.packed,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


def columns(packed: bool) -> list[str]:
    """Columns of the prepared data that the trainer reads."""
    return ["input_ids", "labels", *(["seq_lengths", "row_ids"] if packed else ["row_id"])]


@lru_cache(maxsize=1)
def trainer_class() -> type:
    """SFTTrainer with what the kitchen adds."""
    from trl import SFTTrainer

    from kitchen_resources.training.trl.trainer import KitchenTrainerMixin

    class SupervisedTrainer(KitchenTrainerMixin, SFTTrainer):  # type: ignore[misc]
        """See the module."""

    return SupervisedTrainer
