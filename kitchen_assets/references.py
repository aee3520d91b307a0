"""Small values between the ops of one graph, as JSON in the blob store: nothing is pickled."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

from kitchen_assets.execution import told_failure
from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import BlobError, KitchenError


class EpochReferences(dg.IOManager):
    """Keeps op outputs under `launches/<run>/io/…`, so that a re-execution on another machine finds them."""

    def __init__(self, blobs: Any) -> None:
        self._blobs = blobs

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Store an output; the step that is executed again in one run writes the same key anew."""
        with _told(context):
            self._store(_key(context), canonical_json(obj))

    def load_input(self, context: dg.InputContext) -> Any:
        """Read an output."""
        upstream = context.upstream_output
        assert upstream is not None
        with _told(context):
            return self._read(_key(upstream))

    def _store(self, key: str, data: bytes) -> None:
        while True:
            stored = self._blobs.get(key)
            if stored is not None and stored.data == data:
                return
            if self._blobs.compare_and_swap(key, stored.version if stored else None, data) is not None:
                return

    def _read(self, key: str) -> Any:
        stored = self._blobs.get(key)
        if stored is None:
            raise BlobError("the value that a step left for the next one is gone", where=key, fix="launch again")
        return json.loads(stored.data)


@contextmanager
def _told(context: dg.OutputContext | dg.InputContext) -> Iterator[None]:
    """Tag the run with what goes wrong, as a stage does."""
    try:
        yield
    except KitchenError as error:
        step = context.step_context
        raise told_failure(step.instance, step.run_id, error) from None


@dg.io_manager(required_resource_keys={"blobs"}, description="Small JSON values between ops, in the blob store.")
def epoch_references(context: dg.InitResourceContext) -> EpochReferences:
    """The IO manager of the epoch loop."""
    return EpochReferences(context.resources.blobs.adapter())


def _key(context: dg.OutputContext) -> str:
    parts = [re.sub(r"[^A-Za-z0-9_-]", "_", str(part)) for part in context.get_identifier()[1:]]
    return f"launches/{context.run_id}/io/{'/'.join(parts)}.json"
