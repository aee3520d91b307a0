"""Identity: what makes two runs the same run, and what moved when they are not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel as PydanticModel

from kitchen_resources.digests import canonical_json, digest_json
from kitchen_resources.recipes.fields import FieldFacts, fields_with_facts
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
    besides: Mapping[str, Any] | None = None,
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
        besides: What else of the method moves the weights: digests of reference and teacher, and the environment.
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
            **(besides or {}),
        }
    )


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What moved between two identities (or environments), field by field: `learning_rate: 0.0002 -> 0.0001`."""
    return [_change(path, before, after) for path, before, after in _walk("", old, new)]


def _weight_moving_fields(recipe: Recipe) -> dict[str, Any]:
    values = {**_moving(recipe), **recipe.resolved()}
    return {name: value for name, value in values.items() if name not in _RESOLVED and _is_read(recipe, name)}


def _moving(block: PydanticModel) -> dict[str, Any]:
    """The fields of a recipe or of a block in it that move the weights, by the rules of `FieldFacts`."""
    values: dict[str, Any] = {}
    for name, _, facts in fields_with_facts(type(block)):
        value = getattr(block, name)
        if facts.moves != "weights" or (facts.added_in > 1 and value == facts.neutral):
            continue
        values[name] = _canonical(value, facts)
    return values


def _canonical(value: Any, facts: FieldFacts) -> Any:
    if isinstance(value, PydanticModel):
        return _moving(value)
    if isinstance(value, list):
        items = [_canonical(item, facts) for item in value]
        return sorted(set(items)) if facts.unordered else items
    return value


def _is_read(recipe: Recipe, name: str) -> bool:
    """Whether the field has any effect, given the others."""
    if name in recipe.unread():
        return False
    if name == "lr_final":
        return recipe.lr_schedule in _SCHEDULES_WITH_FINAL
    return recipe.lr_schedule in _SCHEDULE_FIELDS.get(name, (recipe.lr_schedule,))


class _Absent:
    """Stands for a key that isn't there, which is another identity than null."""


_ABSENT = _Absent()


def _walk(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            inner = f"{path}.{key}" if path else str(key)
            yield from _walk(inner, old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif _json(old) != _json(new):
        yield path.removeprefix("recipe."), old, new


def _change(path: str, old: Any, new: Any) -> str:
    before, after = _shown(old), _shown(new)
    if before == after:
        # Two digests that begin alike, or a text that reads as a number: in full, then.
        before, after = _json(old), _json(new)
    return f"{path}: {before} -> {after}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else _json(value)
    return f"{text[:12]}…" if len(text) == 64 and isinstance(value, str) else text


def _json(value: Any) -> str:
    return "not set" if isinstance(value, _Absent) else canonical_json(value).decode()
