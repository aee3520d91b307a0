"""The script that writes the pages of docs/ that follow from the code."""

import importlib.util
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[1] / "docs"


def load() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("kitchen_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load()
