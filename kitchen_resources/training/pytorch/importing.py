"""Importing the training libraries, which takes a process longer than a small run."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collections() -> Iterator[None]:
    """Without garbage collections: they were a quarter of the import of torch and transformers, and free nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_libraries() -> None:
    """Import what reads and trains models, unless that was done."""
    with paused_collections():
        import torch  # noqa: F401
        import transformers.modeling_utils  # noqa: F401


def import_trainer_libraries() -> None:
    """Import what TRL's trainers need besides, unless that was done."""
    with paused_collections():
        import transformers.trainer  # noqa: F401
        import trl  # noqa: F401
