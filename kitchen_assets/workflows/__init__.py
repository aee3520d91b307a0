"""The built-in workflows, one page each: the list of its stages."""

from kitchen_assets.composition import Workflow
from kitchen_assets.workflows.distillation import distillation
from kitchen_assets.workflows.preference import preference
from kitchen_assets.workflows.reinforcement import reinforcement
from kitchen_assets.workflows.supervised import supervised

WORKFLOWS: dict[str, Workflow] = {
    workflow.name: workflow for workflow in (supervised, preference, reinforcement, distillation)
}
"""By name."""
