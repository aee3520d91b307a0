"""A recipe that extends another: what it takes over, what it doesn't, and what is said of a mistake."""

from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_cases import launch

from kitchen_assets.workflows import WORKFLOWS
from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.files import load_recipes
from kitchen_resources.recipes.recipe import Recipe

METHODS = {name: workflow.recipe for name, workflow in WORKFLOWS.items()}

FAMILY = """\
workflow: supervised
description: The family.
schedule: {cron: "0 3 * * *"}
new_data: {every_minutes: 5}
owners: ["team:models"]
tags: {cost: high, team: a}
promotion: {metric: held_out/loss, minimum: 2.0}
required_ports: [trainer]
model: org/base
dataset: rows.jsonl
columns: {prompt: question, completion: answer}
epochs: 5
learning_rate: 2e-4
lora: {rank: 8, alpha: 16, dropout: 0.1}
"""

Load = Callable[..., dict[str, Recipe]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a folder of recipe files."""

    def load(**files: str) -> dict[str, Recipe]:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return {recipe.definition.name: recipe for recipe in load_recipes(tmp_path, METHODS)}

    return load


def refusal(load: Load, tmp_path: Path, **files: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load(**files)
    return str(refused.value).replace(f"{tmp_path}/", "")


def test_it_has_the_values_of_the_other_where_it_says_nothing_else(load: Load) -> None:
    # The file that extends comes before the one that is extended.
    child = load(family=FAMILY, a_child="extends: family\nepochs: 2\nlora: {rank: 4}\n")["a_child"]
    assert (child.method, child.model, child.epochs, child.learning_rate) == ("supervised", "org/base", 2, 2e-4)
    assert child.lora is not None
    assert (child.lora.rank, child.lora.alpha, child.lora.dropout) == (4, 16, 0.1)


def test_it_keeps_them_under_a_launch_that_overrides_others(load: Load) -> None:
    child = load(family=FAMILY, child="extends: family\nepochs: 2\n")["child"]
    launched = launch(child, {"lora": {"dropout": 0.0}})
    assert (launched.epochs, launched.model) == (2, "org/base")
    assert (launched.lora.rank, launched.lora.dropout) == (8, 0.0)


def test_lists_and_maps_are_replaced_and_null_takes_a_block_away(load: Load) -> None:
    child = load(family=FAMILY, child="extends: family\ncolumns: {prompt: p}\nlora: null\n")["child"]
    assert child.columns == {"prompt": "p"}
    assert child.lora is None


def test_what_launches_it_and_what_it_is_called_are_its_own(load: Load) -> None:
    recipes = load(family=FAMILY, child="extends: family\n")
    family, child = recipes["family"].definition, recipes["child"].definition
    assert (family.new_data, child.new_data) == (300.0, None)
    assert family.schedule is not None
    assert (child.schedule, child.description, child.name) == (None, "", "child")
    assert (child.owners, child.required_ports) == (("team:models",), ("trainer",))


def test_tags_and_the_promotion_rule_are_merged(load: Load) -> None:
    text = "extends: family\ntags: {team: b}\npromotion: {better_than: production}\n"
    child = load(family=FAMILY, child=text)["child"].definition
    assert child.tags == {"cost": "high", "team": "b"}
    assert child.promotion is not None
    assert (child.promotion.minimum, child.promotion.better_than) == (2.0, "production")
    assert load(child="extends: family\npromotion: null\n")["child"].definition.promotion is None


def test_it_may_extend_what_extends(load: Load) -> None:
    recipes = load(family=FAMILY, b="extends: a\nseed: 7\n", a="extends: family\nepochs: 2\n")
    assert (recipes["b"].epochs, recipes["b"].seed, recipes["b"].model) == (2, 7, "org/base")
    assert (recipes["a"].seed, recipes["family"].epochs) == (0, 5)


def test_recipes_of_another_folder_may_be_extended(tmp_path: Path) -> None:
    (tmp_path / "built_in").mkdir()
    (tmp_path / "own").mkdir()
    (tmp_path / "built_in" / "family.yaml").write_text(FAMILY)
    (tmp_path / "own" / "child.yaml").write_text("extends: family\n")
    beside = load_recipes(tmp_path / "built_in", METHODS)
    (child,) = load_recipes(tmp_path / "own", METHODS, beside)
    assert child.epochs == 5


def test_a_name_that_is_not_there(load: Load, tmp_path: Path) -> None:
    said = refusal(load, tmp_path, family=FAMILY, child="epochs: 2\nextends: famly\n")
    assert said.startswith("child.yaml:2, extends: there is no recipe 'famly' to extend; did you mean 'family'?")


def test_a_circle(load: Load, tmp_path: Path) -> None:
    said = refusal(load, tmp_path, a="extends: b\n", b="epochs: 1\nextends: a\n")
    assert said.startswith("b.yaml:2, extends: extends itself: a extends b extends a")
    assert "extends itself: c extends c" in refusal(load, tmp_path, a="extends: c", b="extends: c", c="extends: c\n")


def test_another_workflow(load: Load, tmp_path: Path) -> None:
    said = refusal(load, tmp_path, family=FAMILY, child="extends: family\nworkflow: preference\n")
    assert said.startswith("child.yaml:2, workflow: is 'preference', and family is trained by 'supervised'")


def test_mistakes_are_told_where_they_stand(load: Load, tmp_path: Path) -> None:
    said = refusal(load, tmp_path, family=FAMILY, child="extends: family\nlora:\n  rang: 4\n")
    assert said.startswith("child.yaml:3, lora.rang: unknown field 'rang'; did you mean 'rank'?")
    said = refusal(load, tmp_path, family=FAMILY.replace("epochs: 5", 'epochs: "5"'), child="extends: family\n")
    assert said.startswith("family.yaml:12, epochs: ")
    # The rule is the family's, and what makes it impossible is the child's.
    said = refusal(load, tmp_path, family=FAMILY, child='seed: 1\nextends: family\nheld_out: "0"\n')
    assert said.startswith("child.yaml:2, promotion.metric: 'held_out/loss' is not measured by this recipe")


def test_other_keys_that_fix_a_recipe(load: Load, tmp_path: Path) -> None:
    head = "workflow: supervised\nmodel: m\ndataset: d\n"
    assert refusal(load, tmp_path, one=f"{head}new_data: 5\n").startswith("one.yaml:4, new_data: 5 doesn't say how")
    assert "must be above 0, got 0" in refusal(load, tmp_path, one=f"{head}new_data: {{every_minutes: 0}}\n")
    assert "names no data set to look at" in refusal(
        load, tmp_path, one="workflow: supervised\nmodel: m\nnew_data: {every_minutes: 1}\n"
    )
    assert refusal(load, tmp_path, one=f"{head}required_ports: crm\n").startswith(
        "one.yaml:4, required_ports: must be a list of resource keys, got 'crm'"
    )
    assert "extends: must be text, got 3" in refusal(load, tmp_path, one=f"{head}extends: 3\n")
