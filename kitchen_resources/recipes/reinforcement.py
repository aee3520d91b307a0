"""The recipe of reinforcement learning."""

from typing import Any, ClassVar, Dict, List, Literal, Optional

from kitchen_resources.environments.port import EnvironmentSpec, RewardSpec
from kitchen_resources.recipes.blocks import Block
from kitchen_resources.recipes.fields import recipe_field
from kitchen_resources.recipes.recipe import Draws, Recipe

OWN_PROBLEMS = "environment"
"""As `dataset`: the problems that the environment makes itself."""


class RewardConfig(Block):
    """A named reward beside the environment's own."""

    name: str = recipe_field(
        "ended",
        "Registered name: format, ended, length_penalty, exact_match, contains, or your own.",
        moves="base",
    )
    weight: float = recipe_field(1.0, "What it is multiplied with before it is added.", moves="base")
    args: Dict[str, Any] = recipe_field({}, "Options of the reward.", moves="base")


class EnvironmentConfig(Block):
    """What the model acts on, and what its actions are worth."""

    name: str = recipe_field(
        "",
        "Registered name: arithmetic, math, reasoning_gym, a game, or your own.",
        moves="base",
    )
    args: Dict[str, Any] = recipe_field({}, "Options of the environment.", moves="base")
    max_turns: int = recipe_field(
        16, "Turns after which an episode is over, done or not.", moves="weights", minimum=1
    )
    time_limit_s: float = recipe_field(
        30.0, "Seconds that a step of one episode may take before it counts as failed.", moves="weights", above=0
    )
    workers: int = recipe_field(
        2, "Processes in which environments and rewards run.", moves="nothing", minimum=1, maximum=256
    )
    max_failed: float = recipe_field(
        0.1,
        "Share of an epoch's episodes that may fail (no reward, zero advantage) before the run stops.",
        moves="nothing",
        minimum=0,
        maximum=1,
    )


class GenerationConfig(Block):
    """What samples the rollouts."""

    engine: Literal["transformers", "vllm"] = recipe_field(
        "transformers", "transformers in the training process, or vllm (needs the `vllm` extra).", moves="weights"
    )
    options: Dict[str, Any] = recipe_field(
        {},
        "With vllm: TRL's arguments without their prefix, such as {mode: colocate, gpu_memory_utilization: 0.3}.",
        moves="weights",
    )


class ReinforcementRecipe(Recipe):
    """Reinforcement learning: the model acts in an environment, and learns what is rewarded (GRPO, PPO's clipped loss).

    An epoch is one block of rollouts: `steps_per_epoch` optimiser steps over `groups_per_batch` problems each, every
    one answered `group_size` times by the weights of that moment.
    """

    method: ClassVar[str] = "reinforcement"
    promoted_by: ClassVar[str] = "held_out/reward"

    dataset: str = recipe_field(
        OWN_PROBLEMS,
        "Problems: `environment` for those that it makes itself, else a data set as `model` training reads it, with a "
        "prompt and whatever the environment reads (such as `answer`).",
        moves="data",
    )
    learning_rate: float = recipe_field(
        1.0e-6, "Peak learning rate. In YAML write 1.0e-6: 1e-6 is read as text.", moves="weights", minimum=0
    )
    lr_schedule: Literal["constant", "linear", "cosine", "polynomial", "exponential"] = recipe_field(
        "constant", "Shape of the learning rate after warm-up.", moves="weights"
    )
    batch_size: int = recipe_field(
        32,
        "Completions in one forward pass; times gradient_accumulation_steps it is groups_per_batch x group_size.",
        moves="weights",
        minimum=1,
    )

    environment: EnvironmentConfig = recipe_field(
        EnvironmentConfig(), "What the model acts on, and what its actions are worth.", moves="weights"
    )
    # Beside the environment and not in it: Dagster takes no list of blocks as part of a block's default.
    rewards: List[RewardConfig] = recipe_field(
        [], "Rewards that are added to the environment's own, each times its weight.", moves="base"
    )
    group_size: int = recipe_field(
        8, "Completions of one problem, whose rewards are compared with each other.", moves="weights", minimum=2
    )
    groups_per_batch: int = recipe_field(4, "Problems of one optimiser step.", moves="weights", minimum=1)
    steps_per_epoch: int = recipe_field(20, "Optimiser steps of one epoch (block).", moves="weights", minimum=1)
    max_tokens: int = recipe_field(256, "Longest completion of one turn, in tokens.", moves="weights", minimum=1)
    temperature: float = recipe_field(1.0, "Sampling temperature, also of the loss.", moves="weights", above=0)
    top_p: float = recipe_field(
        1.0, "Sample only from the most likely tokens of this mass.", moves="weights", above=0, maximum=1
    )
    top_k: int = recipe_field(
        0, "Sample only from so many most likely tokens; 0 for all.", moves="weights", minimum=0
    )
    generation: GenerationConfig = recipe_field(GenerationConfig(), "What samples the rollouts.", moves="weights")

    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo", "luspo"] = recipe_field(
        "dapo", "TRL's variant of the policy loss.", moves="weights"
    )
    clip_epsilon: float = recipe_field(
        0.2, "The ratio to the sampling policy is clipped at 1 minus this.", moves="weights", above=0
    )
    clip_epsilon_high: Optional[float] = recipe_field(
        None, "It is clipped at 1 plus this; null for `clip_epsilon`.", moves="weights", above=0
    )
    importance_level: Literal["token", "sequence"] = recipe_field(
        "token", "Whether that ratio is of a token or of the whole completion (GSPO).", moves="weights"
    )
    kl_coef: float = recipe_field(
        0.0,
        "Weight of the divergence from the base in the loss; 0 holds no second model.",
        moves="weights",
        minimum=0,
    )
    scale_rewards: Literal["none", "group", "batch"] = recipe_field(
        "none",
        "Divide centred rewards by nothing, or by the deviation of their group or of the batch.",
        moves="weights",
    )
    ppo_epochs: int = recipe_field(
        1,
        "Optimiser steps on each batch of rollouts. This is PPO's clipped surrogate; there is no value head.",
        moves="weights",
        minimum=1,
    )
    pass_at: int = recipe_field(
        4,
        "Episodes of each held-out problem in an evaluation, of which pass@k is worked out.",
        moves="nothing",
        minimum=1,
    )

    select_metric: str = recipe_field(
        "held_out/reward",
        "Metric of `select`, `keep_best` and early stopping: `<evaluation>/<metric>`.",
        moves="nothing",
    )

    def resolved(self) -> dict[str, Any]:
        """See `Recipe.resolved`."""
        return {"clip_epsilon_high": self.clip_epsilon_high or self.clip_epsilon}

    def draws(self, rows: int) -> Draws:
        """See `Recipe.draws`."""
        return Draws(
            prompts=self.groups_per_batch,
            count=max(1, self.steps_per_epoch // self.ppo_epochs),
            steps_per_draw=self.ppo_epochs,
        )

    def environment_spec(self) -> EnvironmentSpec:
        """The environment and its rewards, as the environments port names them."""
        rewards = tuple(RewardSpec(reward.name, reward.weight, reward.args) for reward in self.rewards)
        return EnvironmentSpec(self.environment.name, self.environment.args, rewards)
