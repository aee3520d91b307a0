"""Supervised fine-tuning on TRL's SFTTrainer."""

from functools import lru_cache
from typing import Any

from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.port import TrainingJob
from kitchen_resources.training.trl.setup import Setup

__all__ = ["ALGORITHM_VERSION", "METRICS", "OWNED", "OWNED_FIELDS", "VALUES", "Setup", "columns", "config_class"]

ALGORITHM_VERSION = 1
"""Raised by hand when this module's arithmetic changes."""

METRICS: dict[str, str] = {}
"""TRL's names of what is logged, and ours."""

OWNED_FIELDS: dict[str, str] = {}
OWNED: dict[str, str] = {}
VALUES = {"loss_type": (lambda value: value in ("nll", "dft"), "nll or dft")}


def config_class(recipe: Recipe) -> type:
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


def frozen_copies(recipe: Recipe) -> int:
    """Copies of the base that are in memory beside the one that is trained."""
    return 0


def columns(job: TrainingJob) -> list[str]:
    """Columns of the prepared data that the trainer reads."""
    return ["input_ids", "labels", *(["seq_lengths", "row_ids"] if job.data.packed else ["row_id"])]


@lru_cache(maxsize=1)
def _trainer_class() -> type:
    from trl import SFTTrainer

    from kitchen_resources.training.trl.trainer import KitchenTrainerMixin

    class SupervisedTrainer(KitchenTrainerMixin, SFTTrainer):  # type: ignore[misc]
        """SFTTrainer with what the kitchen adds."""

    return SupervisedTrainer


def trainer_class(recipe: Recipe) -> type:
    """SFTTrainer with what the kitchen adds."""
    return _trainer_class()
