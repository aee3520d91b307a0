"""Named moments of a run at which its process is killed, from inside."""

import os
import signal
from collections.abc import Sequence
from typing import Any

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints import store as store_module
from kitchen_resources.evaluation.port import EvaluatedModel, EvaluationResult, Evaluator, Task
from tests.faulty_blobs import FaultyBlobs

POINTS = (
    "in a step",
    "between two files of a checkpoint",
    "before its manifest",
    "after its manifest",
    "after the head names it",
    "before retention deletes",
    "in the middle of retention",
    "in an evaluation",
    "between two files of the model",
    "before the version",
    "after the version",
    "after the alias",
)
"""Where a run is killed, in the order that it comes to them. The first checkpoint is published by then, so that there is
something to go on from."""


class Deadly:
    """Watches what a process does, and kills it at one point.

    Args:
        point: One of `POINTS`; empty to kill it nowhere.
        published: Checkpoints that the run has already.
    """

    def __init__(self, point: str, published: int) -> None:
        assert point in ("", *POINTS)
        self._point = point
        self._published = published
        self._publishes = False
        self._steps = self._files = self._model_files = 0

    def blobs(self, inner: BlobStore) -> BlobStore:
        """The store, watched."""
        if not self._point:
            return inner
        encode = store_module.encode_manifest

        def encode_manifest(manifest: Any) -> bytes:
            self._die(self._published == 1, "before its manifest")
            self._publishes = True
            return encode(manifest)

        # This process is a fork that ends with the run.
        store_module.encode_manifest = encode_manifest
        return FaultyBlobs(inner, self._before, self._after)

    def evaluator(self, inner: Evaluator) -> Evaluator:
        """The evaluator, watched."""
        return _DeadlyEvaluator(inner, self) if self._point else inner

    def step(self) -> None:
        """An optimiser step is done."""
        self._steps += self._published == 1
        self._die(self._steps == 2, "in a step")

    def evaluated(self) -> None:
        """Something is measured, and not yet recorded."""
        self._die(True, "in an evaluation")

    def _before(self, verb: str, key: str) -> None:
        if verb == "put_file" and "/payload/" in key and self._published == 1:
            self._files += 1
            self._die(self._files == 2, "between two files of a checkpoint")
        if verb == "compare_and_swap" and key.endswith("/head.json") and self._publishes:
            self._die(self._published == 1, "after its manifest")
        if verb == "delete" and "/payload/" in key:
            self._die(True, "before retention deletes")
        if verb == "put_file" and key.startswith("blobs/") and self._published >= 2:
            self._model_files += 1
            self._die(self._model_files == 2, "between two files of the model")
        if verb == "put_if_absent" and key.startswith("registry/"):
            self._die(True, "before the version")

    def _after(self, verb: str, key: str) -> None:
        if verb == "compare_and_swap" and key.endswith("/head.json") and self._publishes:
            self._publishes = False
            self._published += 1
            self._die(self._published == 2, "after the head names it")
        if verb == "delete" and "/payload/" in key:
            self._die(True, "in the middle of retention")
        if verb == "put_if_absent" and key.startswith("registry/"):
            self._die(True, "after the version")
        if verb == "compare_and_swap" and key.startswith("registry/"):
            self._die(True, "after the alias")

    def _die(self, now: bool, point: str) -> None:
        if now and point == self._point:
            os.kill(os.getpid(), signal.SIGKILL)


class _DeadlyEvaluator:
    def __init__(self, inner: Evaluator, deadly: Deadly) -> None:
        self._inner = inner
        self._deadly = deadly
        self.name = inner.name

    def check(self, scorer: str, arguments: Any) -> str | None:
        return self._inner.check(scorer, arguments)

    def evaluate(self, model: EvaluatedModel, tasks: Sequence[Task]) -> EvaluationResult:
        result = self._inner.evaluate(model, tasks)
        self._deadly.evaluated()
        return result
