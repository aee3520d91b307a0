"""A training job as JSON, for processes that are to work on it."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kitchen_resources.datasets.port import LocalDataset
from kitchen_resources.environments.references import resolve
from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.training.plan import TrainingPlan
from kitchen_resources.training.port import (
    BaseModel,
    EpochResult,
    LocalCheckpoint,
    Resolution,
    StepMetrics,
    TrainingJob,
)


def job_value(job: TrainingJob) -> dict[str, Any]:
    """A job as JSON values; paths as they are on this machine."""
    return {
        "fingerprint": job.fingerprint,
        "recipe": {
            "class": _reference(type(job.recipe)),
            "values": job.recipe.model_dump(mode="json"),
            "name": job.recipe.definition.name,
        },
        "resolution": _plain(asdict(job.resolution)),
        "base": _plain(asdict(job.base)),
        "models": {role: _plain(asdict(model)) for role, model in job.models.items()},
        "data": _plain(asdict(job.data)),
        "plan": asdict(job.plan),
        "scratch": str(job.scratch),
    }


def job_from(value: Mapping[str, Any], *, rank: int = 0, device: str | None = None) -> TrainingJob:
    """The job that one of several processes works on.

    Args:
        value: What `job_value` gave.
        rank: Its rank; each has a scratch folder of its own.
        device: Where it trains, when not where the job says.
    """
    recipe = value["recipe"]
    resolution = Resolution(**value["resolution"])
    scratch = Path(value["scratch"])
    recipe_class: Any = resolve(recipe["class"])
    if not (isinstance(recipe_class, type) and issubclass(recipe_class, Recipe)):
        raise ConfigError(f"{recipe['class']} is no class of recipes", where="the job")
    return TrainingJob(
        fingerprint=value["fingerprint"],
        recipe=bind(recipe_class, recipe["values"], RecipeDefinition(name=recipe["name"])),
        resolution=replace(resolution, device=device) if device else resolution,
        base=_model(value["base"]),
        models={role: _model(model) for role, model in value["models"].items()},
        data=LocalDataset(
            **{
                **value["data"],
                "path": Path(value["data"]["path"]),
                "stop_token_ids": tuple(value["data"]["stop_token_ids"]),
            }
        ),
        plan=TrainingPlan(**value["plan"]),
        scratch=scratch / f"rank-{rank}" if rank else scratch,
    )


def checkpoint_value(checkpoint: LocalCheckpoint | None) -> dict[str, Any] | None:
    """A local checkpoint as JSON values."""
    return None if checkpoint is None else _plain(asdict(checkpoint))


def checkpoint_from(value: Mapping[str, Any] | None) -> LocalCheckpoint | None:
    """What `checkpoint_value` gave, as a checkpoint."""
    return None if value is None else LocalCheckpoint(**{**value, "folder": Path(value["folder"])})


def result_value(result: EpochResult) -> dict[str, Any]:
    """An epoch's result as JSON values."""
    return {"checkpoint": checkpoint_value(result.checkpoint), "steps_done": result.steps_done}


def result_from(value: Mapping[str, Any]) -> EpochResult:
    """What `result_value` gave, as a result."""
    checkpoint = checkpoint_from(value["checkpoint"])
    assert checkpoint is not None
    return EpochResult(checkpoint, value["steps_done"])


def steps_from(values: list[Mapping[str, Any]]) -> list[StepMetrics]:
    """Step metrics from JSON values."""
    return [StepMetrics(**value) for value in values]


def _model(value: Mapping[str, Any]) -> BaseModel:
    return BaseModel(**{**value, "folder": Path(value["folder"]) if value["folder"] else None})


def _reference(recipe_class: type[Recipe]) -> str:
    """The class that a recipe's generated one is of, by import path."""
    for found in recipe_class.__mro__:
        module = sys.modules.get(found.__module__)
        if getattr(module, found.__qualname__, None) is found:
            return f"{found.__module__}:{found.__qualname__}"
    raise AssertionError(f"{recipe_class} has no importable class")


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    plain: Any = json.loads(json.dumps(value, default=_text))
    return plain


def _text(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)
