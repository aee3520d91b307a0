"""The built-in workflows, one page each: the list of its stages."""

from kitchen_assets.composition import Workflow
from kitchen_assets.workflows.supervised import supervised

WORKFLOWS: dict[str, Workflow] = {workflow.name: workflow for workflow in (supervised,)}
"""By name."""
