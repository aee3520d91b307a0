"""Binding, through real Dagster jobs: a launch that overrides one value keeps every other one that was bound."""

from typing import Any, List, Optional

import pytest
from recipe_cases import BLOCKS, NAMED, OTHER, launch, launched, nested, paths, recipe, value_at

from kitchen_resources.recipes.binding import bind, rebind
from kitchen_resources.recipes.blocks import EvaluationConfig, LoraConfig, RowLimits
from kitchen_resources.recipes.fields import recipe_field
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe

DEFAULTS = SupervisedRecipe(lora=LoraConfig(), evaluations=[EvaluationConfig()])


def everything() -> dict[str, Any]:
    """Every field of the recipe and of its blocks at another value than its default."""
    values = {path: value for path, value in OTHER.items() if "." not in path}
    for prefix, block in BLOCKS.items():
        fields = {name: OTHER[f"{prefix}.{name}"] for name in block.model_fields}
        values.update(nested(prefix, fields) if not prefix.endswith(".0") else {prefix[:-2]: [fields]})
    return values


SINGLE = [path for path, _, _ in paths() if path not in BLOCKS and not path.startswith("evaluations.")]


def moved(before: Recipe, after: Recipe) -> set[str]:
    """The fields by dotted path in which two recipes differ."""
    return {path for path in SINGLE if value_at(before, path) != value_at(after, path)}


@pytest.fixture(scope="module")
def one_override_each() -> tuple[Recipe, dict[str, Any]]:
    """A recipe with every field set, and that recipe launched once for each field with only that one back at default."""
    bound = recipe(everything())
    keys = {path: f"r{index}" for index, path in enumerate(SINGLE)}
    configs = {keys[path]: nested(path, _plain(value_at(DEFAULTS, path))) for path in SINGLE}
    seen = launched(dict.fromkeys(keys.values(), bound), configs)
    return bound, {path: seen[key] for path, key in keys.items()}


def _plain(value: Any) -> Any:
    return (
        [item.model_dump() for item in value]
        if isinstance(value, list) and value and hasattr(value[0], "model_dump")
        else value
    )


def test_the_bound_recipe_has_every_value() -> None:
    bound = recipe(everything())
    for path in OTHER:
        if path not in BLOCKS and path != "evaluations":
            assert value_at(bound, path) == OTHER[path], path
            assert value_at(bound, path) != value_at(DEFAULTS, path), path


def test_a_launch_without_config_keeps_every_value() -> None:
    bound = recipe(everything())
    assert launch(bound, {}).model_dump() == bound.model_dump()


@pytest.mark.parametrize("path", SINGLE)
def test_a_launch_that_overrides_one_value_keeps_all_others(
    one_override_each: tuple[Recipe, dict[str, Any]], path: str
) -> None:
    bound, seen = one_override_each
    assert value_at(seen[path], path) == value_at(DEFAULTS, path)
    assert moved(bound, seen[path]) == {path}


def test_an_optional_block_that_was_null_gets_its_own_defaults() -> None:
    assert launch(recipe(), {"lora": {"rank": 4}}).lora == LoraConfig(rank=4)


def test_an_optional_block_is_switched_off_by_null_and_kept_by_nothing() -> None:
    bound = recipe({"lora": {"rank": 64, "alpha": 128, "dropout": 0.1}})
    assert launch(bound, {"lora": None}).lora is None
    assert launch(bound, {"lora": {}}).lora.model_dump() == bound.lora.model_dump()  # type: ignore[union-attr]
    assert launch(recipe({"lora": None}), {}).lora is None


def test_a_block_is_launched_back_to_the_default_of_its_class() -> None:
    bound = recipe({"row_limits": {"truncated": 0.5}, "lora": {"rank": 64}})
    seen = launch(bound, {"row_limits": {"truncated": 0.1}, "lora": {"rank": 16}})
    assert (seen.row_limits.truncated, seen.lora.rank) == (0.1, 16)


def test_maps_and_lists_are_replaced_whole() -> None:
    bound = recipe(
        {
            "columns": {"prompt": "q", "completion": "a"},
            "trainer_args": {"neftune_noise_alpha": 5.0, "pad_to_multiple_of": 8},
            "evaluations": [
                {"name": "one", "dataset": "a.jsonl", "samples": 3},
                {"name": "two", "dataset": "b.jsonl"},
            ],
        }
    )
    seen = launch(
        bound,
        {
            "columns": {"completion": "b"},
            "trainer_args": {"pad_to_multiple_of": 16},
            "evaluations": [{"name": "three", "dataset": "c.jsonl"}],
        },
    )
    assert seen.columns == {"completion": "b"}
    assert seen.trainer_args == {"pad_to_multiple_of": 16}
    assert seen.evaluations == [EvaluationConfig(name="three", dataset="c.jsonl")]


def test_free_form_values_keep_their_types_and_their_depth() -> None:
    value = {"a": {"b": [1, 2.5, "x", True, None]}, "c": {}}
    bound = recipe({"trainer_args": value})
    seen = launch(bound, {"epochs": 2})
    assert repr(seen.trainer_args) == repr(value)
    assert repr(launch(recipe(), {"trainer_args": value}).trainer_args) == repr(value)


def test_a_whole_number_in_a_float_field_is_a_float_by_every_way() -> None:
    for made in (
        recipe({"learning_rate": 1}),
        launch(recipe(), {"learning_rate": 1}),
        rebind(SupervisedRecipe(learning_rate=1)),
    ):
        assert repr(made.learning_rate) == "1.0"


# Objects.


def test_an_object_keeps_its_values_under_a_launch_once_it_is_rebound() -> None:
    plain = SupervisedRecipe(
        **NAMED,
        learning_rate=7.0e-4,
        lora=LoraConfig(rank=64, alpha=128),
        row_limits=RowLimits(overlap=0.5),
        evaluations=[EvaluationConfig(name="one", dataset="a.jsonl", samples=3)],
    )
    bound = rebind(plain, name="mine")
    assert bound.definition.name == "mine"
    assert bound.model_dump() == plain.model_dump()
    seen = launch(bound, {"epochs": 5, "lora": {"rank": 8}})
    assert moved(plain, seen) == {"epochs", "lora.rank"}
    assert seen.evaluations == plain.evaluations


def test_rebinding_a_bound_recipe_keeps_it() -> None:
    bound = recipe(everything(), description="d", owners=("team:x",))
    again = rebind(bound, name="renamed")
    assert again.model_dump() == bound.model_dump()
    assert launch(again, {"epochs": 9}).model_dump() == {**bound.model_dump(), "epochs": 9}
    assert (again.definition.name, again.definition.description) == ("renamed", "d")
    assert rebind(bound).definition == bound.definition


def test_two_bindings_of_one_class_do_not_meet() -> None:
    one, two = recipe({"epochs": 2, "lora": {"rank": 2}}), recipe({"learning_rate": 1.0e-3})
    seen = launched({"one": one, "two": two}, {"one": {"epochs": 4}, "two": {"epochs": 6}})
    assert (seen["one"].epochs, seen["one"].learning_rate, seen["one"].lora.rank) == (4, 2.0e-5, 2)
    assert (seen["two"].epochs, seen["two"].learning_rate, seen["two"].lora) == (6, 1.0e-3, None)
    assert SupervisedRecipe().epochs == 3


def test_a_share_may_be_written_as_a_number() -> None:
    assert recipe({"held_out": 0.25}).held_out == "0.25"
    assert recipe({"held_out": 0}).held_out == "0"


def test_a_recipe_class_of_ones_own_is_bound_as_the_built_in_ones() -> None:
    class Own(SupervisedRecipe):
        extra: Optional[LoraConfig] = recipe_field(None, "A block.", moves="weights")
        several: List[LoraConfig] = recipe_field([], "Blocks.", moves="weights")

    bound = bind(
        Own, {**NAMED, "extra": {"rank": 2, "alpha": 3}, "several": [{"rank": 5}]}, RecipeDefinition(name="m")
    )
    seen = launch(bound, {"extra": {"rank": 4}})
    assert (seen.extra.rank, seen.extra.alpha, seen.several[0].rank, seen.model) == (4, 3, 5, NAMED["model"])
