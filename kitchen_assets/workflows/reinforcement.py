"""Reinforcement learning: problems, blocks of rollouts, model, evaluation, version."""

from kitchen_assets.composition import Workflow
from kitchen_assets.stages.checkpoints import checkpoint_evaluation, checkpoints, retain_checkpoints
from kitchen_assets.stages.datasets import dataset, raw
from kitchen_assets.stages.evaluation import evaluate_checkpoint, evaluation
from kitchen_assets.stages.registry import production, promotion_gate, registered_model
from kitchen_assets.stages.training import model
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe

reinforcement = Workflow(
    name="reinforcement",
    recipe=ReinforcementRecipe,
    description="The model acts in an environment and learns what is rewarded (GRPO, PPO's clipped loss); an epoch is one "
    "block of rollouts by the weights of that moment.",
    stages=[
        raw,
        dataset,
        checkpoints,
        checkpoint_evaluation,
        model,
        evaluation,
        registered_model,
    ],
    promotion=[
        promotion_gate,
        production,
    ],
    checkpoint_jobs=[
        evaluate_checkpoint,
        retain_checkpoints,
    ],
)
