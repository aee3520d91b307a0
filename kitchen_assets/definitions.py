"""The built-in code location."""

import dagster as dg

from kitchen_assets.kitchen import built_in


@dg.definitions
def defs() -> dg.Definitions:
    """Assets, jobs, schedules, checks and resources of the built-in recipes and of those in `KITCHEN_RECIPES`."""
    return built_in().definitions()
