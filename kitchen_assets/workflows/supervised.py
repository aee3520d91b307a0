"""Supervised fine-tuning: rows, tokens, epochs, model, evaluation, version."""

from kitchen_assets.composition import Workflow
from kitchen_assets.stages.checkpoints import checkpoint_evaluation, checkpoints, retain_checkpoints
from kitchen_assets.stages.datasets import dataset, raw
from kitchen_assets.stages.evaluation import evaluate_checkpoint, evaluation
from kitchen_assets.stages.registry import production, promotion_gate, registered_model
from kitchen_assets.stages.training import model
from kitchen_resources.recipes.supervised import SupervisedRecipe

supervised = Workflow(
    name="supervised",
    recipe=SupervisedRecipe,
    description="The model learns to give the answers that the rows hold: full fine-tuning or LoRA, epoch by epoch, with "
    "exact resume, evaluated against its base, and registered with its lineage.",
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
