"""Distillation: on a teacher's answers or distribution by SFTTrainer, on the student's own answers by DistillationTrainer."""

from functools import lru_cache
from typing import Any

from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.port import TrainingJob
from kitchen_resources.training.trl import supervised
from kitchen_resources.training.trl.arguments import NOISE
from kitchen_resources.training.trl.setup import Setup as BaseSetup

ALGORITHM_VERSION = 1
"""Raised by hand when this module's arithmetic changes."""

METRICS: dict[str, str] = {}
"""TRL's names of what is logged, and ours."""

OWNED_FIELDS = {
    "teacher_model_name_or_path": "teacher",
    "teacher_model_revision": "teacher",
    "max_completion_length": "max_tokens",
    "temperature": "temperature",
    "beta": "divergence",
}
_RECORDED = "some answers of each epoch are beside its checkpoint"
OWNED = {
    **dict.fromkeys(("log_completions", "log_unique_prompts", "num_completions_to_print"), _RECORDED),
    "teacher_model_init_kwargs": "nothing untrusted is loaded",
    "generation_kwargs": "top_p, top_k, min_p and repetition_penalty say how it is sampled",
    "chat_template_kwargs": "prompts come tokenized",
    "max_tool_calling_iterations": "there are no tools",
    "ds3_gather_for_generation": "where it runs is the trainer's, not the recipe's",
    "use_vllm": "the student is sampled by transformers",
    **dict.fromkeys(("loss_type", "router_aux_loss_coef"), "the mode says what the loss is"),
    **NOISE,
}
VALUES = {
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "top_k": (lambda value: value >= 0, "at least 0"),
    "min_p": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "repetition_penalty": (lambda value: value > 0, "greater than 0"),
}

_TRANSCRIBED = 64
"""Answers of an epoch that are kept beside its checkpoint."""


def config_class(recipe: Recipe) -> type:
    """The TRL config class of the mode."""
    if _mode(recipe) != "on_policy":
        return supervised.config_class(recipe)
    from trl import DistillationConfig

    return DistillationConfig  # type: ignore[no-any-return]


def method_arguments(job: TrainingJob) -> dict[str, Any]:
    """Arguments beyond those that every method shares."""
    recipe = job.recipe
    assert isinstance(recipe, DistillationRecipe)
    if recipe.mode != "on_policy":
        return supervised.method_arguments(job)
    return {
        "max_completion_length": recipe.max_tokens,
        "temperature": recipe.temperature,
        "beta": recipe.divergence,
        "pad_to_multiple_of": None,
    }


def frozen_copies(recipe: Recipe) -> int:
    """Copies of the base that are in memory beside the one that is trained."""
    return 0


def columns(job: TrainingJob) -> list[str]:
    """Columns of the prepared data that the trainer reads."""
    return supervised.columns(job) if _mode(job.recipe) != "on_policy" else ["prompt_ids", "row_id"]


class Setup(BaseSetup):
    """The teacher, loaded once for the session: it never changes."""

    def __init__(self, job: TrainingJob, rows: Any) -> None:
        from kitchen_resources.datasets.renderers import renderer_of

        self._mode = _mode(job.recipe)
        if self._mode == "on_policy":
            self._tokenizer = renderer_of(job.base, job.data.extra.get("template")).tokenizer
            rows = rows.add_column("prompt", [self._tokenizer.decode(ids) for ids in rows["prompt_ids"]])
        super().__init__(job, rows)
        dtype = "bfloat16" if job.resolution.values["precision"] == "bf16" else "float32"
        self._teacher = None if self._mode == "sequence" else self.companion("teacher", dtype)
        self._epoch = 0

    def prepare(self, model: Any) -> Any:
        """See `Setup.prepare`."""
        return self.for_sampling(model) if self._mode == "on_policy" else model

    def inputs(self) -> dict[str, Any]:
        """See `Setup.inputs`."""
        return {"teacher_model": self._teacher} if self._mode == "on_policy" else {}

    def attach(self, trainer: Any, epoch: int) -> None:
        """See `Setup.attach`."""
        self._epoch = epoch
        if self._mode == "logit":
            trainer.learn_from(self._teacher, self.job.recipe.alpha, self.job.recipe.kd_temperature)  # type: ignore[attr-defined]
        elif self._mode == "on_policy":
            trainer.sample_blocks(group=1, row_column="row_id")
            trainer.answered = self._transcribe

    def close(self) -> None:
        """See `Setup.close`."""
        self._teacher = None
        super().close()

    def _transcribe(self, trainer: Any, completions: list[list[int]]) -> None:
        room = max(1, _TRANSCRIBED // self.job.plan.steps_per_epoch)
        trainer.transcribe(
            [
                {
                    "epoch": self._epoch,
                    "row": row["row_id"],
                    "prompt": row["prompt"],
                    "answer": self._tokenizer.decode(ids),
                }
                for row, ids in list(zip(trainer.drawn, completions, strict=True))[:room]
            ]
        )


def _mode(recipe: Recipe) -> str:
    assert isinstance(recipe, DistillationRecipe)
    return recipe.mode


@lru_cache(maxsize=1)
def _logit_trainer_class() -> type:
    import torch
    from torch.nn.functional import cross_entropy, kl_div, log_softmax

    class LogitTrainer(supervised.trainer_class(DistillationRecipe())):  # type: ignore[misc]
        """SFTTrainer whose loss is alpha x T^2 x KL(teacher || student) at temperature T + (1 - alpha) x cross entropy."""

        def learn_from(self, teacher: Any, alpha: float, temperature: float) -> None:
            """Say which teacher, and how much of it."""
            self._teacher, self._alpha, self._temperature = teacher, alpha, temperature

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """The mean per learned token of the whole optimiser step; see `formulas.losses.distillation_loss`."""
            targets = inputs["labels"][:, 1:]
            learned = targets != -100
            seen = {name: value for name, value in inputs.items() if name != "labels"}
            tokens = num_items_in_batch if num_items_in_batch is not None else learned.sum()
            with torch.no_grad(), self.compute_loss_context_manager():
                wanted = self._teacher(**seen, use_cache=False).logits[:, :-1][learned].float()
            outputs = model(**seen, use_cache=False)
            logits = outputs.logits[:, :-1][learned].float()
            hot = self._temperature
            divergence = kl_div(
                log_softmax(logits / hot, -1), log_softmax(wanted / hot, -1), log_target=True, reduction="sum"
            )
            entropy = cross_entropy(logits, targets[learned], reduction="sum")
            loss = (self._alpha * hot * hot * divergence + (1 - self._alpha) * entropy) / tokens
            here = learned.sum().clamp(min=1)
            self._metrics["train"]["kl"].append(float(divergence.detach() / here))
            self._metrics["train"]["cross_entropy"].append(float(entropy.detach() / here))
            return (loss, outputs) if return_outputs else loss

    return LogitTrainer


@lru_cache(maxsize=1)
def _on_policy_trainer_class() -> type:
    from trl import DistillationTrainer

    from kitchen_resources.training.trl.sampling import SamplingMixin

    class OnPolicyTrainer(SamplingMixin, DistillationTrainer):  # type: ignore[misc]
        """DistillationTrainer with what the kitchen adds."""

        answered: Any

        def _tokenize_prompts(self, prompts: list[Any]) -> Any:
            """Prompts come tokenized."""
            return [row["prompt_ids"] for row in self.drawn], None, {}

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            completions = super()._generate_single_turn(*args, **kwargs)
            self.answered(self, completions)
            return completions

    return OnPolicyTrainer


def trainer_class(recipe: Recipe) -> type:
    """The trainer of the mode, with what the kitchen adds."""
    if _mode(recipe) == "on_policy":
        return _on_policy_trainer_class()
    return _logit_trainer_class() if _mode(recipe) == "logit" else supervised.trainer_class(recipe)
