"""Preference optimisation: pairs, reference, epochs, model, evaluation, version."""

from kitchen_assets.composition import Workflow
from kitchen_assets.stages.checkpoints import checkpoint_evaluation, checkpoints, retain_checkpoints
from kitchen_assets.stages.datasets import dataset, raw
from kitchen_assets.stages.evaluation import evaluate_checkpoint, evaluation
from kitchen_assets.stages.registry import production, promotion_gate, registered_model
from kitchen_assets.stages.training import model
from kitchen_resources.recipes.preference import PreferenceRecipe

preference = Workflow(
    name="preference",
    recipe=PreferenceRecipe,
    description="Of two answers to a prompt the model learns to prefer the chosen one (DPO and its relatives), against a "
    "reference that is the same in every epoch and after every resume.",
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
