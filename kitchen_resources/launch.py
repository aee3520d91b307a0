"""One launch of a recipe: what its stages work out and share, through the store and never by passing values.

Each Dagster step makes its own `Launch` from recipe and ports. What an earlier step of the same launch decided is
read from `launches/<root run>/<recipe>-<config>/`, so that a launch never picks up what another one is doing; a step
that runs alone works it out again by the same functions.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.datasets.port import LocalDataset, PreparedDataset
from kitchen_resources.datasets.prepare import (
    RawSplits,
    fetch_training_rows,
    open_raw,
    prepare,
    prepared_from_json,
    read_report,
)
from kitchen_resources.datasets.renderers import RecipeRenderer, make_renderer
from kitchen_resources.datasets.report import RowReport
from kitchen_resources.digests import canonical_json, digest_bytes
from kitchen_resources.errors import CapabilityError
from kitchen_resources.ports import Ports
from kitchen_resources.recipes.fields import fields_with_facts
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.base_models import resolve_base, simulated_base
from kitchen_resources.training.port import BaseModel, Resolution


class Launch:
    """See the module.

    Args:
        recipe: What to train, with the launch's overrides.
        ports: Adapters.
        run_id: This Dagster run.
        root_id: The run that this one re-executes, or itself.
    """

    def __init__(self, recipe: Recipe, ports: Ports, *, run_id: str, root_id: str | None = None) -> None:
        self.recipe = recipe
        self.name = recipe.definition.name or recipe.method
        self.ports = ports
        self.run_id = run_id
        self.root_id = root_id or run_id
        self.content = ContentStore(ports.blobs)
        self.checkpoints = CheckpointStore(ports.blobs)
        self.cache = ports.blobs.scratch() / "cache"

    @property
    def simulated(self) -> bool:
        """Whether the backend learns nothing."""
        return self.ports.trainer.adapter.capabilities().simulated

    @cached_property
    def base(self) -> BaseModel:
        """The base model, in a local folder."""
        pinned = self.read("base")
        reference = self.recipe.model
        if pinned is not None and pinned["reference"] == reference and pinned["revision"]:
            # The commit that the launch started with: a branch may have moved since.
            reference = f"{reference.partition('@')[0]}@{pinned['revision']}"
        if self.simulated and not _is_local(reference):
            return simulated_base(reference)
        return resolve_base(reference, self.cache)

    @cached_property
    def raw(self) -> RawSplits:
        """The raw data sets."""
        return open_raw(self.recipe, self.ports.datasets)

    @cached_property
    def rendering(self) -> RecipeRenderer:
        """How rows become tokens."""
        return make_renderer(self.recipe, self.base)

    @cached_property
    def resolution(self) -> Resolution:
        """What the recipe comes to on this backend and machine."""
        return self.ports.trainer.adapter.resolve(self.recipe, self.base)

    def prepare(self) -> tuple[PreparedDataset, RowReport]:
        """Prepare the data, and note for the later stages of this launch which it is."""
        rendering = self.rendering
        prepared, report = prepare(
            self.recipe,
            self.raw,
            rendering.renderer,
            self.content,
            conversational=rendering.conversational,
            rendering=rendering.rendering,
            simulated=rendering.simulated,
        )
        capabilities = self.ports.trainer.adapter.capabilities()
        if prepared.fractional and not capabilities.fractional_weights:
            raise CapabilityError(
                f"can't weigh tokens other than by 0 and 1, as {prepared.fractional} asks",
                where=f"backend {capabilities.backend}",
                fix="give each message the weight 0 or 1",
            )
        self.write("prepared", asdict(prepared))
        self.pin_base()
        return prepared, report

    @cached_property
    def prepared(self) -> PreparedDataset:
        """The data that this launch prepared; prepared now, and refused by the same limits, when it has none yet."""
        noted = self.read("prepared")
        if noted is not None:
            return prepared_from_json(noted)
        prepared, report = self.prepare()
        report.require(self.recipe.row_limits, f"dataset {self.recipe.dataset}")
        return prepared

    @cached_property
    def report(self) -> RowReport:
        """The row report of the prepared data."""
        return read_report(self.prepared, self.content)

    def training_rows(self) -> LocalDataset:
        """What the trainer reads, as a local file that every launch with the same data shares."""
        prepared = self.prepared
        path = self.cache / "rows" / f"{prepared.trained.blob}.parquet"
        rows = fetch_training_rows(self.content, prepared, path)
        rendering = self.rendering
        template = None if rendering.own_template else rendering.template
        return LocalDataset(**{**vars(rows), "extra": {"chat_template": template}})

    def pin_base(self) -> None:
        """Note which base model this launch works with."""
        base = self.base
        self.write("base", {"reference": self.recipe.model, "digest": base.digest, "revision": base.revision})

    def known_runs(self) -> list[dict[str, Any]]:
        """All runs of this recipe, oldest first: fingerprint, identity, time of the first launch."""
        found = []
        for key in self.ports.blobs.list(f"recipes/{self.name}/runs/"):
            stored = self.ports.blobs.get(key)
            if stored is not None:
                found.append(json.loads(stored.data))
        return sorted(found, key=lambda run: float(run["created"]))

    # What the stages of one launch note for each other.

    def read(self, what: str) -> Any:
        """What an earlier stage of this launch noted; None when it hasn't."""
        stored = self.ports.blobs.get(self._key(what))
        return json.loads(stored.data) if stored else None

    def write(self, what: str, value: Mapping[str, Any]) -> None:
        """Note something for the later stages of this launch; a stage that is executed again notes it anew."""
        key, data = self._key(what), canonical_json(dict(value))
        while True:
            stored = self.ports.blobs.get(key)
            if stored is not None and stored.data == data:
                return
            if self.ports.blobs.compare_and_swap(key, stored.version if stored else None, data) is not None:
                return

    def _key(self, what: str) -> str:
        return f"launches/{self.root_id}/{self.name}-{self._config_digest}/{what}.json"

    @cached_property
    def _config_digest(self) -> str:
        """Two launches under one root may differ in config: a run re-executed with another one."""
        values = {
            name: value.model_dump() if hasattr(value, "model_dump") else _plain(value)
            for name, _, _ in fields_with_facts(type(self.recipe))
            if (value := getattr(self.recipe, name)) is not None
        }
        backend = self.ports.trainer.adapter.capabilities().backend
        # Not canonical JSON, which takes no NaN: a launch is named before preflight refuses its values.
        text = json.dumps({"recipe": values, "backend": backend}, sort_keys=True, default=str)
        return digest_bytes(text.encode())[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [item.model_dump() if hasattr(item, "model_dump") else item for item in value]
    return value


def _is_local(reference: str) -> bool:
    from pathlib import Path

    return reference.startswith("embedded:") or Path(reference).expanduser().is_dir()
