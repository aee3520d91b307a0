"""What the recipes of preference, reinforcement and distillation must satisfy: each rule's words, and that its fix is one."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from method_cases import LEAST, METHODS, made
from method_rule_cases import ENVIRONMENTS, RULES, UNEVEN

from kitchen_resources.environments import registry
from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.rules import check_values, measured_metrics, refuse


@pytest.fixture(autouse=True)
def _only_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments and rewards that other tests have registered are not known here."""
    monkeypatch.setattr(registry, "_environments", {})
    monkeypatch.setattr(registry, "_rewards", {})
    built_in = {name: registry.BUILT_IN_ENVIRONMENTS[name] for name in ENVIRONMENTS.split(", ")}
    monkeypatch.setattr(registry, "BUILT_IN_ENVIRONMENTS", built_in)


@pytest.mark.parametrize("method", METHODS)
def test_the_least_that_a_recipe_needs_is_enough(method: type[Recipe]) -> None:
    assert check_values(made(method)) == []
    for name in LEAST[method]:
        if name != "model":
            broken = {key: value for key, value in LEAST[method].items() if key != name}
            assert check_values(method(**broken)), name


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_refuses_by_name_and_says_what_to_write(rule: str) -> None:
    assert check_values(made(RULES[rule].method, RULES[rule].values)) == [RULES[rule].problem]


@pytest.mark.parametrize(("rule", "mended"), [(rule, mended) for rule in RULES for mended in RULES[rule].mended])
def test_what_it_says_makes_the_recipe_valid(rule: str, mended: Mapping[str, Any]) -> None:
    assert check_values(made(RULES[rule].method, {**RULES[rule].values, **mended})) == []


def suggested(fix: str) -> Iterator[dict[str, Any]]:
    """Each way that a fix offers, as values."""
    for way in fix.split(", or "):
        yield yaml.safe_load(f"{{{way}}}")


@pytest.mark.parametrize("case", UNEVEN)
def test_a_batch_that_the_groups_do_not_fill_is_refused_with_the_nearest_numbers(case: str) -> None:
    values, said, fix = UNEVEN[case]
    assert check_values(made(ReinforcementRecipe, values)) == [("batch_size", said, fix)]
    for mended in suggested(fix):
        assert check_values(made(ReinforcementRecipe, {**values, **mended})) == [], mended


@pytest.mark.parametrize(
    ("steps", "ppo_epochs", "nearest"), [(7, 3, 6), (8, 3, 9), (1, 3, 3), (4, 3, 3), (20, 6, 18), (2, 5, 5)]
)
def test_an_epoch_is_whole_draws(steps: int, ppo_epochs: int, nearest: int) -> None:
    values = {"steps_per_epoch": steps, "ppo_epochs": ppo_epochs}
    assert check_values(made(ReinforcementRecipe, values)) == [
        (
            "steps_per_epoch",
            f"{steps} isn't divisible by ppo_epochs {ppo_epochs}",
            f"steps_per_epoch: {nearest}",
        )
    ]
    assert check_values(made(ReinforcementRecipe, {**values, "steps_per_epoch": nearest})) == []
    made_of = made(ReinforcementRecipe, {**values, "steps_per_epoch": nearest}).draws(100)
    assert made_of is not None
    assert (made_of.count * made_of.steps_per_draw, made_of.prompts) == (nearest, 4)


@pytest.mark.parametrize(
    "name",
    ["batch_size", "gradient_accumulation_steps", "groups_per_batch", "group_size", "steps_per_epoch", "ppo_epochs"],
)
def test_a_number_of_zero_is_told_by_its_bound_alone(name: str) -> None:
    least = 2 if name == "group_size" else 1
    assert check_values(made(ReinforcementRecipe, {name: 0})) == [
        (name, f"must be at least {least}, got 0", f"{name}: {least}")
    ]


def test_a_teacher_from_another_recipe_stands_for_one() -> None:
    assert check_values(made(DistillationRecipe, {"teacher": ""}, teacher_from="large")) == []


def test_all_problems_are_named_at_once() -> None:
    values = {"environment": {"name": "nowhere"}, "rewards": [{"name": "x"}], "temperature": 0.0, "batch_size": 31}
    with pytest.raises(ConfigError) as refused:
        refuse(check_values(made(ReinforcementRecipe, values)), "recipe mine")
    assert re.findall(r"^  ([\w.]+): ", str(refused.value), re.M) == [
        "temperature",
        "environment.name",
        "rewards.0.name",
        "batch_size",
    ]


@pytest.mark.parametrize(
    ("method", "values", "measured"),
    [
        (PreferenceRecipe, {}, "loss accuracy margin chosen_reward rejected_reward"),
        (ReinforcementRecipe, {}, "reward pass@1 pass@4"),
        (ReinforcementRecipe, {"pass_at": 1}, "reward pass@1"),
        (ReinforcementRecipe, {"evaluations": [{"name": "held_out"}]}, "reward pass@1 pass@4"),
        (DistillationRecipe, {}, "loss perplexity teacher_kl"),
        (
            PreferenceRecipe,
            {"evaluations": [{"name": "held_out"}]},
            "loss accuracy margin chosen_reward rejected_reward exact_match exact_match_passed",
        ),
    ],
)
def test_what_is_measured_of_held_out_rows(method: type[Recipe], values: dict[str, Any], measured: str) -> None:
    recipe = made(method, values)
    assert measured_metrics(recipe) == [f"held_out/{name}" for name in measured.split()]
    # What decides by default is measured, so that the best epoch can be chosen without naming a metric.
    assert check_values(made(method, {**values, "select": "best"})) == []
    assert recipe.promotion.metric in measured_metrics(recipe)
