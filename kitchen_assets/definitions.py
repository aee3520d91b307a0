"""The built-in code location."""

import os
from functools import lru_cache
from pathlib import Path

import dagster as dg

from kitchen_assets.kitchen import built_in
from kitchen_resources.recipes.files import recipe_folder


@dg.definitions
def defs() -> dg.Definitions:
    """Assets, jobs, schedules, checks and resources of the built-in recipes and of those in `KITCHEN_RECIPES`."""
    return _definitions(_depends_on())


@lru_cache(maxsize=1)
def _definitions(given: tuple[object, ...]) -> dg.Definitions:
    """Made once: a single `dagster job execute` asks for them five times, and each making takes half a second."""
    return built_in().definitions()


def _depends_on() -> tuple[object, ...]:
    """What the definitions follow from, beside the code: settings, and the files of recipes."""
    folder = recipe_folder()
    files = sorted(folder.iterdir()) if folder is not None else []
    settings = sorted(item for item in os.environ.items() if item[0].startswith(("KITCHEN_", "DAGSTER_")))
    return (*settings, Path.cwd(), *((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files))
