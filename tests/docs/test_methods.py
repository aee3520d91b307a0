"""docs/methods.md: its recipes are recipes, and its environment is one."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import kitchen_assets as kitchen
from kitchen_assets.kitchen import upstream_recipes
from kitchen_assets.workflows import WORKFLOWS
from kitchen_resources.environments import registry
from kitchen_resources.environments.options import identity_of, wrong_options
from kitchen_resources.environments.pool import EnvironmentPool
from kitchen_resources.environments.port import Action, EnvironmentSpec, StepResult
from kitchen_resources.recipes.files import load_recipe
from kitchen_resources.recipes.rules import check_values, field_names
from tests.docs.test_readme import blocks

pytestmark = pytest.mark.full

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
BLOCKS = blocks(PAGE)
RECIPES = [block for block in BLOCKS if (block.language, block.marks) == ("yaml", "recipe")]
METHODS = {name: workflow.recipe for name, workflow in WORKFLOWS.items()}


def test_every_block_is_tried_here() -> None:
    assert {(block.language, block.marks) for block in BLOCKS} == {("yaml", "recipe"), ("python", "")}
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("line", [block.line for block in RECIPES])
def test_a_recipe_of_the_page_is_one(line: int, tmp_path: Path) -> None:
    (text,) = [block.text for block in RECIPES if block.line == line]
    (tmp_path / "mine.yaml").write_text(text)
    made = load_recipe(tmp_path / "mine.yaml", METHODS)
    assert check_values(made) == []
    known = {**kitchen.kitchen.built_in().recipes, "mine": made}
    expected = {made.definition.base_from, made.definition.teacher_from} - {""}
    assert expected <= set(upstream_recipes("mine", known)) <= set(known)


def test_every_field_that_the_page_names_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    known = {name for method in METHODS.values() for name in field_names(method)}
    for field, value in re.findall(r"`([a-z_]+): ([^`{]+?)`", text):
        assert field in known | {"base_from", "teacher_from", "upstream_missing", "workflow", "args"}, (field, value)
    for name in ("ppo_epochs", "steps_per_epoch", "groups_per_batch", "group_size", "kl_coef", "clip_epsilon"):
        assert f"`{name}" in text
        assert name in known


@pytest.fixture
def guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the page, as a code location would import it."""
    (text,) = [block.text for block in BLOCKS if block.language == "python"]
    (tmp_path / "guess_of_the_docs.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_environments", {})
    yield importlib.import_module("guess_of_the_docs")
    del sys.modules["guess_of_the_docs"]


def test_the_environment_of_the_page_works_in_a_pool(guess: ModuleType) -> None:
    assert "guess" in registry.environment_names()
    assert wrong_options("guess", {}) is None
    assert identity_of(EnvironmentSpec("guess"))["version"] == 1
    with EnvironmentPool(EnvironmentSpec("guess"), workers=1, time_limit_s=30.0) as pool:
        problems = pool.problems(100)
        assert problems == [{"secret": secret} for secret in range(1, 10)]
        assert pool.observe([{"secret": 4}]) == [[{"role": "user", "content": "Guess my number, from 1 to 9."}]]
        pool.open([("g", {"secret": 4}, [1, 2])])
        low, right = pool.step({("g", 0): Action("3"), ("g", 1): Action(" 4\n")}).values()
        assert low == StepResult(0.0, done=False, observation="higher", solved=False)
        assert right == StepResult(1.0, done=True, observation="", solved=True)
        pool.step({("g", 0): Action("9")})
        (last,) = pool.step({("g", 0): Action("8")}).values()
        assert last == StepResult(0.0, done=True, observation="", solved=False)
