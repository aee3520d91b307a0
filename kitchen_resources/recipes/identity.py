"""Identity: what makes two runs the same run, and what moved when they are not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel as PydanticModel

from kitchen_resources.digests import digest_json
from kitchen_resources.recipes.fields import fields_with_facts
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.plan import TrainingPlan
from kitchen_resources.training.port import BaseModel, LocalCheckpoint, Resolution

IDENTITY_VERSION = 1

# Fields whose resolved form enters the identity instead of what was written: `precision: auto` and `fp32` are one run
# where auto comes to fp32, and so are `warmup_ratio: 0.1` and the steps it comes to.
_RESOLVED = frozenset({"precision", "attention", "optimizer", "epochs", "max_steps", "warmup_ratio", "warmup_steps"})
_SCHEDULE_FIELDS = {"lr_power": ("polynomial",), "lr_decay_rate": ("exponential",), "lr_cycles": ("cosine",)}
_SCHEDULES_WITH_FINAL = ("linear", "cosine", "polynomial")


@dataclass(frozen=True)
class Start:
    """The stored checkpoint that a run continues: where it is, and how much of it is carried over."""

    fingerprint: str
    checkpoint: LocalCheckpoint
    carry: str

    def identity(self) -> dict[str, Any]:
        """What of it moves the weights."""
        step = self.checkpoint.global_step if self.carry == "all" else 0
        return {"state": self.checkpoint.state_digest, "carry": self.carry, "step": step}


@dataclass(frozen=True)
class Identity:
    """The identity of a run and its fingerprint, sha256 over the canonical JSON."""

    value: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits."""
        return digest_json(dict(self.value))


def identify(
    recipe: Recipe,
    base: BaseModel,
    resolution: Resolution,
    plan: TrainingPlan,
    *,
    data_digest: str,
    pad_token_id: int,
    start: Start | None = None,
) -> Identity:
    """The identity of a run, from resolved values.

    Args:
        recipe: What to train.
        base: The base model; its digest enters, not its place.
        resolution: What the backend answered.
        plan: Its steps.
        data_digest: Of the tokens and weights to train on.
        pad_token_id: Filler of short rows.
        start: What it continues, or None.
    """
    return Identity(
        {
            "version": IDENTITY_VERSION,
            "method": recipe.method,
            "algorithm": dict(resolution.algorithm),
            "recipe": _weight_moving_fields(recipe),
            "plan": {
                "epochs": plan.epochs,
                "steps_per_epoch": plan.steps_per_epoch,
                "total_steps": plan.total_steps,
                "warmup_steps": plan.warmup_steps,
            },
            "numerics": {**resolution.values, "pad_token_id": pad_token_id},
            "data": data_digest,
            "base": base.digest,
            "start": start.identity() if start else None,
        }
    )


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What moved between two identities (or environments), field by field: `learning_rate: 0.0002 -> 0.0001`."""
    return [f"{path}: {_shown(before)} -> {_shown(after)}" for path, before, after in _walk("", old, new)]


def _weight_moving_fields(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, _, facts in fields_with_facts(type(recipe)):
        value = getattr(recipe, name)
        if facts.moves != "weights" or name in _RESOLVED or not _is_read(recipe, name):
            continue
        if facts.added_in > 1 and value == facts.neutral:
            continue
        values[name] = value.model_dump() if isinstance(value, PydanticModel) else value
    return values


def _is_read(recipe: Recipe, name: str) -> bool:
    """Whether the field has any effect, given the others."""
    if name == "lr_final":
        return recipe.lr_schedule in _SCHEDULES_WITH_FINAL
    return recipe.lr_schedule in _SCHEDULE_FIELDS.get(name, (recipe.lr_schedule,))


def _walk(path: str, old: Any, new: Any) -> Sequence[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: list[tuple[str, Any, Any]] = []
        for key in sorted({*old, *new}):
            inner = f"{path}.{key}" if path else str(key)
            found += _walk(inner, old.get(key), new.get(key))
        return found
    return [] if _plain(old) == _plain(new) else [(path.removeprefix("recipe."), old, new)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
