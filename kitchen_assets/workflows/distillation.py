"""Distillation: rows, teacher, epochs, model, evaluation, version."""

from kitchen_assets.composition import Workflow
from kitchen_assets.stages.checkpoints import checkpoint_evaluation, checkpoints, retain_checkpoints
from kitchen_assets.stages.datasets import dataset, raw
from kitchen_assets.stages.evaluation import evaluate_checkpoint, evaluation
from kitchen_assets.stages.registry import production, promotion_gate, registered_model
from kitchen_assets.stages.training import model
from kitchen_resources.recipes.distillation import DistillationRecipe

distillation = Workflow(
    name="distillation",
    recipe=DistillationRecipe,
    description="A student learns from a teacher: from its answers, from its whole distribution, or from its word on "
    "the student's own answers.",
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
