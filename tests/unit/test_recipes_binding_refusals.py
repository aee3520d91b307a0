"""What a recipe refuses when it is bound or launched: unknown fields and wrong types, by name at every depth."""

import math
from typing import Any

import dagster as dg
import pytest
from pydantic import Field, ValidationError
from recipe_cases import launch, recipe

from kitchen_assets.execution import KitchenFailure, refuse_environment
from kitchen_assets.kitchen import Kitchen
from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.binding import bind, rebind
from kitchen_resources.recipes.blocks import EvaluationConfig, LoraConfig
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": (
        {"epoch": 3},
        "epoch: unknown field 'epoch'; did you mean 'epochs'?\n"
        "  fix: correct or remove it; docs/recipes.md lists every field",
    ),
    "an unknown field like no other": ({"zzz": 3}, "zzz: unknown field 'zzz'\n"),
    "an unknown field of a block": ({"lora": {"rnk": 3}}, "lora.rnk: unknown field 'rnk'; did you mean 'rank'?\n"),
    "an unknown field in a list": (
        {"evaluations": [{"name": "a"}, {"sample": 3}]},
        "evaluations.1.sample: unknown field 'sample'; did you mean 'samples'?\n",
    ),
    "a key that is no text": ({"lora": {3: 1}}, "lora.3: unknown field 3\n"),
    "text for a number": (
        {"epochs": "3"},
        "epochs: Input should be a valid integer, got '3'\n  fix: write it as a number, without quotes: 3, or 2.0e-4",
    ),
    "text for a float": (
        {"learning_rate": "2e-4"},
        "learning_rate: Input should be a valid number, got '2e-4'\n"
        "  fix: write it as a number, without quotes: 3, or 2.0e-4",
    ),
    "a fraction for a whole number": ({"epochs": 3.0}, "epochs: Input should be a valid integer, got 3.0\n"),
    "a flag for a number": ({"learning_rate": True}, "learning_rate: Input should be a valid number, got True\n"),
    "a number for a flag": ({"packing": 1}, "packing: Input should be a valid boolean, got 1\n"),
    "a number for text": (
        {"model": 3},
        "model: Input should be a valid string, got 3\n  fix: write it in quotes, so that YAML reads it as text",
    ),
    "null for text": ({"model": None}, "model: Input should be a valid string, got None\n"),
    "another word": (
        {"lr_schedule": "step"},
        "lr_schedule: Input should be 'constant', 'linear', 'cosine', 'polynomial' or 'exponential', got 'step'\n",
    ),
    "a number for a block": (
        {"lora": 3},
        "lora: must be a block of fields, got 3\n  fix: write its fields below it, indented",
    ),
    "a list for a block": ({"lora": []}, "lora: must be a block of fields, got []\n"),
    "null for a block": ({"row_limits": None}, "row_limits: Input should be a valid dictionary or instance of RowLimits"),
    "a wrong type in a block": ({"lora": {"rank": "x"}}, "lora.rank: Input should be a valid integer, got 'x'\n"),
    "a wrong type in a list of a block": (
        {"lora": {"target_modules": ["q", 3]}},
        "lora.target_modules.1: Input should be a valid string, got 3\n",
    ),
    "text for a list": (
        {"lora": {"target_modules": "all-linear"}},
        "lora.target_modules: Input should be a valid list, got 'all-linear'\n",
    ),
    "a map for a list": ({"evaluations": {}}, "evaluations: Input should be a valid list, got {}\n"),
    "a number in a list of blocks": ({"evaluations": [3]}, "evaluations.0: must be a block of fields, got 3\n"),
    "a wrong type in a list of blocks": (
        {"evaluations": [{"name": "a"}, {"samples": True}]},
        "evaluations.1.samples: Input should be a valid integer, got True\n",
    ),
    "a wrong type in a map": ({"columns": {"prompt": 1}}, "columns.prompt: Input should be a valid string, got 1\n"),
    "a wrong key of a map": ({"columns": {1: "a"}}, "columns.1: Input should be a valid string, got 1\n"),
    "null in a map": ({"trainer_args": {"a": None}}, "trainer_args.a: can't be null\n  fix: leave it out"),
    "null in a map of a block": (
        {"evaluations": [{"scorer_args": {"pattern": None}}]},
        "evaluations.0.scorer_args.pattern: can't be null\n",
    ),
    "a set in a free-form value": (
        {"trainer_args": {"a": [{"b": {1}}]}},
        "trainer_args.a.0.b: must be a number, text, list or mapping, got {1}\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_refused_by_name(case: str) -> None:
    values, said = WRONG[case]
    with pytest.raises(ConfigError) as refused:
        recipe(values)
    assert str(refused.value).startswith(f"recipe mine, {said}")


def test_the_place_is_what_the_caller_says() -> None:
    with pytest.raises(ConfigError, match=r"\Afile:7 lora\.rank: Input"):
        bind(SupervisedRecipe, {"lora": {"rank": "x"}}, RecipeDefinition(), where=lambda path: f"file:7 {path}")


@pytest.mark.parametrize(
    "config",
    [
        {"epoch": 3},
        {"lora": {"rnk": 3}},
        {"row_limits": {"x": 1}},
        {"evaluations": [{"sample": 3}]},
        {"epochs": "3"},
        {"epochs": True},
        {"learning_rate": "2e-4"},
        {"lr_schedule": "step"},
        {"lora": 3},
        {"packing": "yes"},
    ],
    ids=str,
)
def test_dagster_refuses_wrong_config_before_a_run_exists(config: dict[str, Any]) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match="resources:mine:config"):
        launch(recipe({"lora": {}}), config)


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: SupervisedRecipe(epoch=3), "epoch"),
        (lambda: LoraConfig(rnk=3), "rnk"),
        (lambda: EvaluationConfig(sample=3), "sample"),
        (lambda: SupervisedRecipe(lora={"rnk": 3}), "lora.rnk"),
        (lambda: SupervisedRecipe(epochs="3"), "epochs"),
        (lambda: SupervisedRecipe(lora={"rank": True}), "lora.rank"),
    ],
)
def test_an_object_takes_no_unknown_field_and_no_other_type(make: Any, path: str) -> None:
    with pytest.raises(ValidationError) as refused:
        make()
    assert [".".join(map(str, error["loc"])) for error in refused.value.errors()] == [path]


def test_a_recipe_class_must_say_what_each_field_moves() -> None:
    class Careless(SupervisedRecipe):
        extra: int = Field(default=1)

    with pytest.raises(ConfigError) as refused:
        bind(Careless, {}, RecipeDefinition(name="mine"))
    assert str(refused.value) == (
        "Careless.extra: doesn't say what it moves\n"
        '  fix: extra: … = recipe_field(default, "what it is", moves="weights")'
    )

    class Named(Careless):
        definition = RecipeDefinition(name="mine")

    # One that was made by hand, as if it were bound.
    with pytest.raises(ConfigError, match="extra: doesn't say what it moves"):
        rebind(Named(), name="mine")


# What launch config must not do.


def test_run_config_that_reads_the_environment_is_refused_before_anything_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KITCHEN_TEST_SECRET", "hunter2")
    bound = recipe()
    # Dagster itself allows it, for every text, number and flag.
    assert launch(bound, {"dataset": {"env": "KITCHEN_TEST_SECRET"}}).dataset == "hunter2"

    definitions = Kitchen(recipes={"mine": bound}).definitions()
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(KitchenFailure) as refused:
        definitions.resolve_job_def("mine").execute_in_process(
            run_config={
                "resources": {
                    "mine": {"config": {"dataset": {"env": "KITCHEN_TEST_SECRET"}}},
                    "blobs": {"config": {"store": {"memory": {}}}},
                },
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            instance=instance,
        )
    assert str(refused.value.error) == (
        "run config.resources.mine.config.dataset: reads the environment variable KITCHEN_TEST_SECRET\n"
        "  fix: write the value itself"
    )
    assert "hunter2" not in str(refused.value.metadata)


def test_an_environment_variable_is_found_at_every_depth() -> None:
    refuse_environment({"a": [{"b": {"env": "X", "other": 1}}], "env": {"a": 1}, "n": math.nan})
    with pytest.raises(ConfigError, match=r"\Arun config\.a\.1\.b: reads the environment variable X"):
        refuse_environment({"a": [0, {"b": {"env": "X"}}]})
