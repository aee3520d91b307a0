"""Preference optimisation on TRL's DPOTrainer."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.port import TrainingJob
from kitchen_resources.training.trl.arguments import NOISE
from kitchen_resources.training.trl.processes import gathered
from kitchen_resources.training.trl.setup import Setup as BaseSetup

ALGORITHM_VERSION = 1
"""Raised by hand when this module's arithmetic changes."""

METRICS = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
}
"""TRL's names of what is logged, and ours."""

OWNED_FIELDS = {
    "beta": "beta",
    "loss_type": "loss_type",
    "loss_weights": "loss_weights",
    "label_smoothing": "label_smoothing",
    "precompute_ref_log_probs": "precompute_reference",
    "precompute_ref_batch_size": "batch_size",
}
_MOVING = "a reference that moves is in no checkpoint, so that a resumed run would have another one"
OWNED = {
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), _MOVING),
    "padding_free": "TRL doesn't do it for pairs",
    **NOISE,
}
VALUES = {
    "f_divergence_type": (
        lambda value: value in ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
        "reverse_kl, forward_kl, js_divergence or alpha_divergence",
    ),
    "ld_alpha": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "discopop_tau": (lambda value: value > 0, "greater than 0"),
}

_LOGPROBS = ("ref_chosen_logps", "ref_rejected_logps")


def config_class(recipe: Recipe) -> type:
    """The TRL config class of the method."""
    from trl import DPOConfig

    return DPOConfig  # type: ignore[no-any-return]


def method_arguments(job: TrainingJob) -> dict[str, Any]:
    """Arguments beyond those that every method shares: pairs come tokenized and cut."""
    recipe = job.recipe
    assert isinstance(recipe, PreferenceRecipe)
    return {
        "max_length": None,
        "beta": recipe.beta,
        "loss_type": list(recipe.loss_type),
        "loss_weights": recipe.loss_weights,
        "label_smoothing": recipe.label_smoothing,
        "precompute_ref_log_probs": recipe.precompute_reference,
    }


def frozen_copies(recipe: Recipe) -> int:
    """Copies of the base that are in memory beside the one that is trained."""
    assert isinstance(recipe, PreferenceRecipe)
    reference_is_base = recipe.reference_model is None
    return int(reference_is_base and recipe.lora is None and not recipe.precompute_reference)


def columns(job: TrainingJob) -> list[str]:
    """Columns of the prepared data that the trainer reads."""
    return ["prompt_ids", "chosen_ids", "rejected_ids", "row_id"]


class Setup(BaseSetup):
    """The reference: the run's own base or another model, loaded anew for each epoch, so that it is the same in all."""

    def inputs(self) -> dict[str, Any]:
        """See `Setup.inputs`."""
        recipe = self.job.recipe
        assert isinstance(recipe, PreferenceRecipe)
        is_known = _LOGPROBS[0] in self.rows.column_names or self._is_stored(recipe)
        # With a LoRA the base is the reference as it lies there, its adapter switched off.
        in_policy = "reference" not in self.job.models and (recipe.lora is not None or recipe.precompute_reference)
        if is_known or in_policy:
            return {"setup": self, "ref_model": None}
        # Held as the policy's own weights are: of other numbers the first loss wouldn't be ln 2.
        return {"setup": self, "ref_model": self.companion("reference", self.job.resolution.values["weight_dtype"])}

    def attach(self, trainer: Any, epoch: int) -> None:
        """See `Setup.attach`."""
        if self.job.recipe.precompute_reference:  # type: ignore[attr-defined]
            trainer.ref_model = None

    def with_reference(self, trainer: Any, rows: Any, batch_size: int) -> Any:
        """The rows with the reference's log-probabilities, worked out once for a reference, data and numerics."""
        import datasets
        import pyarrow.parquet

        if _LOGPROBS[0] in rows.column_names:
            return rows
        path = self.job.scratch / "reference-logprobs.parquet"

        def make(target: Path) -> None:
            pyarrow.parquet.write_table(_reference_logprobs(trainer, rows, batch_size), target)

        if self.job.derived is None:
            make(path)
        else:
            self.job.derived(self._key(batch_size), make, path)
        found = datasets.Dataset(pyarrow.parquet.read_table(path))
        self.rows = datasets.concatenate_datasets([rows, found], axis=1)
        return self.rows

    def _is_stored(self, recipe: PreferenceRecipe) -> bool:
        derived = self.job.derived
        return recipe.precompute_reference and derived is not None and derived.known(self._key(recipe.batch_size))

    def _key(self, batch_size: int) -> dict[str, Any]:
        job = self.job
        return {
            "what": "reference log-probabilities",
            "version": ALGORITHM_VERSION,
            "reference": job.models.get("reference", job.base).digest,
            "data": job.data.digest,
            "numerics": dict(job.resolution.values),
            # Other versions, threads or another CPU would give other last bits.
            "environment": dict(job.resolution.environment),
            "quantization": job.recipe.quantization,
            "batch_size": batch_size,
            "pad_token_id": job.data.pad_token_id,
            "trainer_args": dict(job.recipe.trainer_args),
        }


def _reference_logprobs(trainer: Any, rows: Any, batch_size: int) -> Any:
    """Summed log-probabilities of both sides under the reference, in the order of the rows."""
    import pyarrow
    import torch

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    sides: list[list[float]] = [[], []]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        examples = [dict(zip(names, values, strict=True)) for values in zip(*(batch[n] for n in names), strict=True)]
        inputs = {name: value.to(trainer.args.device) for name, value in trainer.data_collator(examples).items()}
        logprobs = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model.to(trainer.args.device), inputs)
        for side, values in zip(sides, logprobs, strict=True):
            side.extend(values.to(torch.float32).cpu().tolist())
    return pyarrow.table(
        {name: pyarrow.array(side, pyarrow.float32()) for name, side in zip(_LOGPROBS, sides, strict=True)}
    )


@lru_cache(maxsize=1)
def _trainer_class() -> type:
    from trl import DPOTrainer

    from kitchen_resources.training.trl.trainer import KitchenTrainerMixin

    class PreferenceTrainer(KitchenTrainerMixin, DPOTrainer):  # type: ignore[misc]
        """DPOTrainer with what the kitchen adds."""

        def __init__(self, *args: Any, setup: Setup, **kwargs: Any) -> None:
            self._setup = setup
            super().__init__(*args, **kwargs)

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            """Rows come tokenized."""
            return dataset

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            return self._setup.with_reference(self, dataset, batch_size)

        def take_note(self, inputs: Any, num_items_in_batch: Any) -> None:
            """See `KitchenTrainerMixin.take_note`; both sides of a pair are trained."""
            super().take_note(inputs, None if not self.step_rows else self.step_tokens)
            self.step_tokens += int(inputs["completion_mask"][:, 1:].sum())

        def tokens_of_step(self) -> int:
            """See `KitchenTrainerMixin.tokens_of_step`; each process has counted its own."""
            return sum(gathered(self.step_tokens))

    return PreferenceTrainer


def trainer_class(recipe: Recipe) -> type:
    """DPOTrainer with what the kitchen adds."""
    return _trainer_class()
