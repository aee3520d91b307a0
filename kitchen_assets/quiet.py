"""Leaving the caller's process as it was: random numbers, threads, logging, progress bars."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from kitchen_resources.numerics import preserved_numerics


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restore what training changes in the process, on the way out."""
    import datasets
    import transformers

    verbosity = transformers.utils.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    datasets_bars = datasets.are_progress_bars_disabled()
    level = logging.getLogger().level
    with preserved_numerics():
        try:
            yield
        finally:
            transformers.utils.logging.set_verbosity(verbosity)
            if bars:
                transformers.utils.logging.enable_progress_bar()
            if not datasets_bars:
                datasets.enable_progress_bars()
            logging.getLogger().setLevel(level)
