"""One launch of a recipe: what its stages work out and share, through the store and never by passing values.

Each Dagster step makes its own `Launch` from recipe and ports. What an earlier step of the same launch decided is
read from `launches/<root run>/<recipe>-<config>/`, so that a launch never picks up what another one is doing; a step
that runs alone works it out again by the same functions.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.datasets.inspection import EvaluationRows, evaluation_rows, inspect
from kitchen_resources.datasets.port import LocalDataset, PreparedDataset
from kitchen_resources.datasets.prepare import (
    RawSplits,
    fetch_training_rows,
    open_raw,
    prepare,
    prepared_from_json,
)
from kitchen_resources.datasets.renderers import RecipeRenderer, make_renderer
from kitchen_resources.datasets.report import RowReport
from kitchen_resources.digests import canonical_json, digest_bytes
from kitchen_resources.environments.options import identity_of
from kitchen_resources.errors import CapabilityError, ConfigError
from kitchen_resources.ports import Ports
from kitchen_resources.recipes.blocks import HARNESS
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.fields import fields_with_facts
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.rules import HELD_OUT
from kitchen_resources.training.base_models import resolve_base, simulated_base
from kitchen_resources.training.own_code import code_identity
from kitchen_resources.training.port import BaseModel, Resolution
from kitchen_resources.training.registered import REGISTERED, registered_base
from kitchen_resources.training.teacher_answers import ModelAnswers

_FIELDS = {"teacher": "teacher", "reference": "reference_model"}
"""Fields of a recipe that name the models besides its base, by role."""


class Launch:
    """See the module.

    Args:
        recipe: What to train, with the launch's overrides.
        ports: Adapters.
        run_id: This Dagster run.
        root_id: The run that this one re-executes, or itself.
        upstream: The launch, in the same run, of a recipe that this one builds on, by its name.
    """

    def __init__(
        self,
        recipe: Recipe,
        ports: Ports,
        *,
        run_id: str,
        root_id: str | None = None,
        upstream: "Callable[[str], Launch] | None" = None,
    ) -> None:
        self.recipe = recipe
        self.name = recipe.definition.name or recipe.method
        self.ports = ports
        self.run_id = run_id
        self.root_id = root_id or run_id
        self._upstream = upstream
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
        return self._model("base", self.recipe.model, self.recipe.definition.base_from)

    @cached_property
    def models(self) -> Mapping[str, BaseModel]:
        """The models that training reads besides the base, by role: `reference`, `teacher`."""
        return {role: self._model(role, *named) for role, named in self.recipe.companions().items()}

    def besides(self) -> dict[str, Any]:
        """What else than recipe, base and data moves the weights: reference, teacher, the code of one's own."""
        found: dict[str, Any] = {role: model.digest for role, model in self.models.items()}
        if isinstance(self.recipe, ReinforcementRecipe):
            found["environment"] = identity_of(self.recipe.environment_spec())
        if self.recipe.definition.loss:
            found["loss"] = code_identity(self.recipe.definition.loss, "loss")
        stages = self.recipe.definition.batch_stages
        if stages:
            found["batch_stages"] = {name: code_identity(stages[name], f"batch_stages.{name}") for name in stages}
        return found

    def upstreams(self) -> dict[str, str]:
        """The recipes whose registered models this launch reads, by role."""
        named = {"base": (self.recipe.model, self.recipe.definition.base_from), **self.recipe.companions()}
        return {role: upstream for role, (model, upstream) in named.items() if upstream and not model.strip()}

    def notes(self) -> list[str]:
        """What a person should know of where the models come from."""
        said = []
        definition = self.recipe.definition
        for role, named, upstream in (
            ("model", self.recipe.model, definition.base_from),
            ("teacher", getattr(self.recipe, "teacher", ""), definition.teacher_from),
        ):
            if upstream and named.strip():
                said.append(f"{role} {named} is used, and not the registered model of recipe {upstream}")
        for role, upstream in self.upstreams().items():
            model = self.base if role == "base" else self.models[role]
            said.append(f"the {role} is {model.reference} of recipe {upstream}")
        return said

    def upstream(self, name: str) -> "Launch":
        """The launch of a recipe that this one builds on."""
        if self._upstream is None:
            raise ConfigError(
                f"recipe {name} isn't known here", where=f"recipe {self.name}", fix=f"run the job {name} first"
            )
        return self._upstream(name)

    def _model(self, role: str, named: str, upstream: str) -> BaseModel:
        asked = named.strip() or f"{REGISTERED}{upstream}"
        if self.simulated and not _is_local(asked):
            return simulated_base(asked)
        own = self.registered_here(upstream) if upstream and not named.strip() and "@" not in upstream else None
        if own is not None:
            # Of a chain, also where it is executed again and the first recipe came out as another model.
            asked = f"{REGISTERED}{upstream}@{own}"
        pinned = self.read(role)
        # What the launch started with: a branch or an alias may have moved since.
        reference = pinned["resolved"] if pinned is not None and pinned["asked"] == asked else asked
        if reference.startswith(REGISTERED):
            return registered_base(reference, self.ports.registry, self.content, self.cache, own=self.registered_here)
        return resolve_base(reference, self.cache, _FIELDS.get(role, "model"))

    def registered_here(self, name: str, *, by_this_run: bool = False) -> int | None:
        """The version of a model that this launch's run has registered itself, as one of a chain of recipes.

        Args:
            name: The model.
            by_this_run: Not by the run that this one executes again.
        """
        keys = self.ports.blobs.list(f"launches/{self.root_id}/{name}-")
        stored = (self.ports.blobs.get(key) for key in keys if key.endswith("/registered.json"))
        notes = [json.loads(note.data) for note in stored if note is not None]
        notes = [note for note in notes if note["run"] == self.run_id] or ([] if by_this_run else notes)
        return max(notes, key=lambda note: float(note["at"]))["version"] if notes else None

    def note_registered(self, version: int) -> None:
        """Note for the other recipes of this run which version of this one it has registered."""
        self.write("registered", {"version": version, "run": self.run_id, "at": time.time()})

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
        return self.ports.trainer.adapter.resolve(self.recipe, self.base, self.models)

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
            teacher=self._teacher_answers(),
        )
        capabilities = self.ports.trainer.adapter.capabilities()
        if prepared.fractional and not capabilities.fractional_weights:
            raise CapabilityError(
                f"can't weigh tokens other than by 0 and 1, as {prepared.fractional} asks",
                where=f"backend {capabilities.backend}",
                fix="give each message the weight 0 or 1",
            )
        report.findings |= inspect(prepared, self._other_evaluations(), rendering.renderer, self.content)
        self.write("prepared", asdict(prepared))
        self.pin_models()
        return prepared, report

    def _other_evaluations(self) -> list[EvaluationRows]:
        """The recipe's evaluations that bring rows of their own; tasks of the harness keep theirs to themselves."""
        return [
            evaluation_rows(evaluation, self.ports.datasets, self.rendering.conversational)
            for evaluation in self.recipe.evaluations
            if evaluation.dataset != HELD_OUT and evaluation.scorer != HARNESS
        ]

    def _teacher_answers(self) -> ModelAnswers | None:
        """The teacher who answers the training rows anew, where the recipe learns from its answers."""
        recipe = self.recipe
        if not isinstance(recipe, DistillationRecipe) or recipe.mode != "sequence" or self.simulated:
            return None
        return ModelAnswers(recipe, self.models["teacher"], self.resolution)

    @cached_property
    def prepared(self) -> PreparedDataset:
        """The data that this launch prepared; prepared now, and refused by the same limits, when it has none yet."""
        noted = self.read("prepared")
        if noted is not None:
            return prepared_from_json(noted)
        prepared, report = self.prepare()
        report.require(self.recipe.row_limits, f"dataset {self.recipe.dataset}")
        return prepared

    def training_rows(self) -> LocalDataset:
        """What the trainer reads, as a local file that every launch with the same data shares."""
        prepared = self.prepared
        path = self.cache / "rows" / f"{prepared.trained.blob}.parquet"
        rows = fetch_training_rows(self.content, prepared, path)
        rendering = self.rendering
        template = None if rendering.own_template else rendering.template
        extra = {"chat_template": template, "template": rendering.template}
        return LocalDataset(**{**vars(rows), "extra": extra})

    def pin_models(self) -> None:
        """Note which base, reference and teacher this launch works with."""
        named = {"base": (self.recipe.model, self.recipe.definition.base_from), **self.recipe.companions()}
        for role, model in {"base": self.base, **self.models}.items():
            name, upstream = named[role]
            resolved = f"{model.reference.partition('@')[0]}@{model.revision}" if model.revision else model.reference
            asked = name.strip() or f"{REGISTERED}{upstream}"
            self.write(role, {"asked": asked, "resolved": resolved, "digest": model.digest})

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
