"""What a service trains is the same run from any machine, and is evaluated on what this one has."""

from pathlib import Path

import pytest

from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.base_models import resolve_base
from kitchen_resources.training.port import Resolution
from kitchen_resources.training.remote.resolving import resolve_at_service


def resolved(cache: Path) -> Resolution:
    fields = {"model": "embedded:tiny", "dataset": "any", "lora": {"rank": 8}}
    recipe = bind(SupervisedRecipe, fields, RecipeDefinition(name="any"))
    base = resolve_base(recipe.model, cache)
    return resolve_at_service(recipe, base, {}, algorithm={"any": 1}, service_model="theirs", sdk="torch")


def test_a_gpu_here_makes_no_other_run_and_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = resolved(tmp_path)
    chooses = "kitchen_resources.training.pytorch.machine.choose_device"
    monkeypatch.setattr(chooses, lambda asked: "cuda:0" if asked == "auto" else asked)
    found = resolved(tmp_path)
    assert found.device == "cuda:0"
    assert (found.values, found.algorithm) == (without.values, without.algorithm)
    assert found.values["service_model"] == "theirs"
    assert found.values["precision"] == "fp32"
    assert found.environment["torch"] == without.environment["torch"]
