"""Crucible Kitchen on Dagster: workflows as assets and jobs, and the Python door.

import kitchen_assets as kitchen

result = kitchen.run("supervised", {"model": "path/to/model", "dataset": "rows.jsonl", "epochs": 3})
result.model_path, result.evaluation
"""

from kitchen_assets.composition import CheckOutcome, ExternalStage, Gate, Loop, Stage, StageResult, Workflow, stage
from kitchen_assets.context import StageContext
from kitchen_assets.control import conditional, loop, parallel, sub_workflow
from kitchen_assets.door import describe, noop, recipes, run, validate, workflows
from kitchen_assets.kitchen import Kitchen
from kitchen_assets.results import Compared, RunResult
from kitchen_assets.shelf import export, prune, push, rollback, storage, verify
from kitchen_resources.evaluation.scorers import register_scorer
from kitchen_resources.telemetry.attached import attach_telemetry

__all__ = [
    "CheckOutcome",
    "Compared",
    "ExternalStage",
    "Gate",
    "Kitchen",
    "Loop",
    "RunResult",
    "Stage",
    "StageContext",
    "StageResult",
    "Workflow",
    "attach_telemetry",
    "conditional",
    "describe",
    "export",
    "loop",
    "noop",
    "parallel",
    "prune",
    "push",
    "recipes",
    "register_scorer",
    "rollback",
    "run",
    "stage",
    "storage",
    "sub_workflow",
    "validate",
    "verify",
    "workflows",
]
