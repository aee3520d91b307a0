"""Reinforcement learning on TRL's GRPOTrainer: episodes in environments, group-centred advantages, the clipped loss."""

from functools import lru_cache
from typing import Any

from kitchen_resources.evaluation.sampling import longest_prompt
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.training.episodes import Episodes, episode_measures
from kitchen_resources.training.port import TrainingJob
from kitchen_resources.training.trl.arguments import NOISE
from kitchen_resources.training.trl.setup import Setup as BaseSetup

ALGORITHM_VERSION = 1
"""Raised by hand when this module's arithmetic changes."""

METRICS = {
    "frac_reward_zero_std": "constant_groups",
    "clip_ratio/region_mean": "clip_fraction",
    # The episode's reward once more, under the name of the function that hands it over.
    "rewards/_episode_reward/mean": "",
    "rewards/_episode_reward/std": "",
}
"""TRL's names of what is logged, and ours; "" for what isn't kept."""

OWNED_FIELDS = {
    "num_generations": "group_size",
    "generation_batch_size": "groups_per_batch",
    "steps_per_generation": "groups_per_batch",
    "max_completion_length": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "beta": "kl_coef",
    "num_iterations": "ppo_epochs",
    "epsilon": "clip_epsilon",
    "epsilon_high": "clip_epsilon_high",
    "importance_sampling_level": "importance_level",
    "scale_rewards": "scale_rewards",
    "loss_type": "loss_type",
    "reward_weights": "rewards",
    "use_vllm": "generation",
    "use_transformers_continuous_batching": "generation",
    "transformers_continuous_batching_config": "generation",
    "use_transformers_paged": "generation",
}
_ENTROPY = "what it adapts is in no checkpoint, so that a resumed run would go on otherwise"
_RECORDED = "the episodes of each epoch are beside its checkpoint"
OWNED = {
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), "the reference is the base"),
    **dict.fromkeys(
        (
            "use_adaptive_entropy",
            "entropy_coef_min",
            "entropy_coef_max",
            "entropy_coef_delta",
            "entropy_target",
        ),
        _ENTROPY,
    ),
    **dict.fromkeys(
        (
            "log_completions",
            "log_multimodal",
            "log_unique_prompts",
            "log_completions_hub_repo",
            "num_completions_to_print",
        ),
        _RECORDED,
    ),
    "multi_objective_aggregation": "an episode has one reward, which `rewards` makes up",
    "off_policy_mask_threshold": "it needs the sampler's log-probabilities, which only vllm gives",
    "generation_kwargs": "top_p, top_k, min_p and repetition_penalty say how it is sampled",
    "chat_template_kwargs": "prompts come tokenized",
    "max_tool_calling_iterations": "environments say what an action is",
    "num_generations_eval": "evaluation happens between epochs; see pass_at",
    "ds3_gather_for_generation": "where it runs is the trainer's, not the recipe's",
    **NOISE,
}
VALUES = {
    "min_p": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "repetition_penalty": (lambda value: value > 0, "greater than 0"),
    "top_entropy_quantile": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "delta": (lambda value: value > 1, "greater than 1"),
}


def config_class(recipe: Recipe) -> type:
    """The TRL config class of the method."""
    from trl import GRPOConfig

    return GRPOConfig  # type: ignore[no-any-return]


def method_arguments(job: TrainingJob) -> dict[str, Any]:
    """Arguments beyond those that every method shares."""
    recipe = job.recipe
    assert isinstance(recipe, ReinforcementRecipe)
    generation = recipe.generation
    return {
        "num_generations": recipe.group_size,
        "max_completion_length": recipe.max_tokens,
        "temperature": recipe.temperature,
        "top_p": recipe.top_p,
        "top_k": recipe.top_k,
        "beta": recipe.kl_coef,
        "num_iterations": recipe.ppo_epochs,
        "epsilon": recipe.clip_epsilon,
        "epsilon_high": recipe.clip_epsilon_high,
        "importance_sampling_level": recipe.importance_level,
        "scale_rewards": recipe.scale_rewards,
        "loss_type": recipe.loss_type,
        "pad_to_multiple_of": None,
        "use_vllm": generation.engine == "vllm",
        **{f"vllm_{name}": value for name, value in generation.options.items()},
    }


def frozen_copies(recipe: Recipe) -> int:
    """Copies of the base that are in memory beside the one that is trained."""
    assert isinstance(recipe, ReinforcementRecipe)
    return int(recipe.kl_coef > 0 and recipe.lora is None)


def columns(job: TrainingJob) -> list[str]:
    """Columns of the prepared data that the trainer reads."""
    return ["prompt_ids", "problem", "row_id"]


class Setup(BaseSetup):
    """The environments, in processes of their own that live as long as the session, and the episodes of the epoch."""

    def __init__(self, job: TrainingJob, rows: Any) -> None:
        recipe = job.recipe
        assert isinstance(recipe, ReinforcementRecipe)
        self._recipe = recipe
        self._episodes = Episodes(job)
        decode = self._episodes.renderer.tokenizer.decode
        super().__init__(job, rows.add_column("prompt", [decode(ids) for ids in rows["prompt_ids"]]))

    def prepare(self, model: Any) -> Any:
        """See `Setup.prepare`."""
        return self.for_sampling(model)

    def inputs(self) -> dict[str, Any]:
        """See `Setup.inputs`."""
        return {"reward_funcs": [_episode_reward], "rollout_func": self.roll_out}

    def attach(self, trainer: Any, epoch: int) -> None:
        """See `Setup.attach`."""
        trainer.sample_blocks(group=self._recipe.group_size, row_column="row_id")
        self._episodes.start(epoch)

    def close(self) -> None:
        """See `Setup.close`."""
        self._episodes.close()
        super().close()

    def roll_out(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """The episodes of one draw, by the weights of this moment; TRL's `rollout_func`."""
        group_size = self._recipe.group_size
        rollouts = self._episodes.roll_out(
            trainer.drawn[::group_size],
            lambda prompt_ids: trainer._generate_single_turn(prompt_ids, None, {}, group_size)[0],
            longest_prompt(trainer.model, self._recipe.max_tokens),
        )
        for name, value in episode_measures(rollouts).items():
            trainer._metrics["train"][name].append(value)
        trainer.transcribe(self._episodes.lines(rollouts))
        # TRL takes no empty completion: one that failed before its first turn is one token, which isn't trained on.
        nothing = [trainer.processing_class.pad_token_id]
        return {
            "prompt_ids": [list(rollout.prompt_ids) for rollout in rollouts],
            "completion_ids": [list(rollout.completion_ids) or nothing for rollout in rollouts],
            "env_mask": [list(rollout.mask) or [0] for rollout in rollouts],
            "logprobs": None,
            "episode_reward": [rollout.reward for rollout in rollouts],
        }


def _episode_reward(*, episode_reward: list[float | None], **others: Any) -> list[float | None]:
    """The reward of each episode; None for one that failed, whose advantage TRL then makes zero."""
    return episode_reward


@lru_cache(maxsize=1)
def _trainer_class() -> type:
    from trl import GRPOTrainer

    from kitchen_resources.training.trl.sampling import SamplingMixin

    class ReinforcementTrainer(SamplingMixin, GRPOTrainer):  # type: ignore[misc]
        """GRPOTrainer with what the kitchen adds."""

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            """As TRL does it; also logs the mean ratio to the policy that sampled, which TRL keeps to itself."""
            self._of_pass: dict[str, Any] | None = inputs
            return super()._compute_loss(model, inputs)

        def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            found = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
            given: dict[str, Any] | None = getattr(self, "_of_pass", None)
            self._of_pass = None
            if given is not None and "old_per_token_logps" in given:
                mask = given["completion_mask"] * given.get("tool_mask", 1)
                ratio = (found[0].detach() - given["old_per_token_logps"]).exp()
                self._metrics["train"]["ratio"].append(float((ratio * mask).sum() / mask.sum().clamp(min=1)))
                self._metrics["train"]["ratio_deviation"].append(
                    float(((ratio - 1).abs() * mask).sum() / mask.sum().clamp(min=1))
                )
            return found

    return ReinforcementTrainer


def trainer_class(recipe: Recipe) -> type:
    """GRPOTrainer with what the kitchen adds."""
    return _trainer_class()
