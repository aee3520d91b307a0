"""Names of recipes: which are refused, and that the name suggested instead is free."""

import keyword

import dagster as dg
import pytest
from recipe_cases import recipe

from kitchen_assets.kitchen import Kitchen, default_resources
from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.names import RESERVED, RESOURCE_KEYS, check_name

BROKEN = ["", "3", "_a", "a-b", "A", "a b", "ä", "a.b", "a\n", "Trainer", "9class", "Registry!", "__", "X_promote"]


@pytest.mark.parametrize("name", ["a", "supervised", "a1_b2", "promote", "count", "index", "x" * 100])
def test_a_plain_name_is_taken_as_it_is(name: str) -> None:
    assert check_name(name, where="here") == name


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_plain_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_name(name, where="here")
    assert str(refused.value).startswith(
        f"here: {name!r} can't be a recipe's name: lower-case letters, digits and _, starting with a letter\n"
    )


@pytest.mark.parametrize(
    ("name", "said", "better"),
    [
        ("trainer", "'trainer' is the key of a resource", "trainer_recipe"),
        ("io_manager", "'io_manager' is the key of a resource", "io_manager_recipe"),
        ("class", "'class' is a keyword of Python", "class_recipe"),
        ("mine_promote", "'mine_promote' is the name of a promotion job, which ends in _promote", "mine"),
        (
            "mine_evaluate_checkpoint",
            "'mine_evaluate_checkpoint' is the name of an evaluation job, which ends in _evaluate_checkpoint",
            "mine",
        ),
        ("blobs_promote", "'blobs_promote' is the name of a promotion job, which ends in _promote", "blobs_recipe"),
    ],
)
def test_a_name_that_is_taken_is_refused(name: str, said: str, better: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_name(name, where="file:3")
    assert str(refused.value) == f"file:3: {said}\n  fix: name: {better}"


@pytest.mark.parametrize(
    "name",
    [*BROKEN, *sorted(RESERVED), "class", "mine_promote", "a_promote_promote", "b_promote_evaluate_checkpoint"],
)
def test_the_name_suggested_instead_is_free(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_name(name, where="here")
    suggested = refused.value.fix.removeprefix("name: ")
    assert check_name(suggested, where="there") == suggested


def test_the_words_of_python_that_look_like_names_are_all_refused() -> None:
    for name in keyword.kwlist:
        with pytest.raises(ConfigError):
            check_name(name, where="here")


def test_every_resource_key_of_a_location_is_reserved() -> None:
    assert set(RESOURCE_KEYS) == set(default_resources())
    resources = Kitchen(recipes={"mine": recipe()}).definitions().get_repository_def().get_top_level_resources()
    assert {"mine", *RESERVED} - {"io_manager"} == set(resources)


def test_an_object_under_a_bad_name_is_refused_where_it_is_named() -> None:
    with pytest.raises(ConfigError, match=r"\AKitchen\(recipes={'blobs': …}\): 'blobs' is the key of a resource"):
        Kitchen(recipes={"blobs": recipe()}).definitions()


def test_recipes_side_by_side_load() -> None:
    names = ["a", "a_b", "a_schedule", "index", "promote"]
    definitions = Kitchen(recipes={name: recipe(name=name) for name in names}).definitions()
    assert isinstance(definitions, dg.Definitions)
    assert set(definitions.get_repository_def().job_names) >= {*names, *(f"{name}_promote" for name in names)}
