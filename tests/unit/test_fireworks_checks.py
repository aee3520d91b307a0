"""What a managed job of Fireworks can't be told is refused, in a recipe's file as at a launch."""

from typing import Any

import pytest

from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.blocks import LoraConfig
from kitchen_resources.recipes.fields import written_class
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.fireworks.managed import FireworksJobsTrainer

NEEDED: dict[str, Any] = {"model": "any", "dataset": "any", "lora": {"rank": 8}}
TOLD: dict[str, Any] = {
    "epochs": 5,
    "batch_size": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": 1.0e-3,
    "warmup_ratio": 0.1,
    "weight_decay": 0.1,
    "seed": 7,
    "max_length": 512,
    "held_out": "0.2",
    "train_on": "all_assistant_messages",
    "eval_every": 0,
    "export": "adapter",
}


def refused(method: type[Recipe], fields: dict[str, Any]) -> list[str]:
    recipe = bind(method, {**NEEDED, **fields}, RecipeDefinition(name="any"))
    return [path for path, _, _ in FireworksJobsTrainer("accounts/fireworks/models/any").check(recipe)]


def test_what_a_job_is_told_is_taken() -> None:
    assert refused(SupervisedRecipe, TOLD) == []
    assert refused(PreferenceRecipe, {"beta": 0.4, "epochs": 2}) == []


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"lr_schedule": "cosine"}, "lr_schedule"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"max_grad_norm": 0.5}, "max_grad_norm"),
        ({"adam_beta2": 0.95}, "adam_beta2"),
        ({"max_steps": 10}, "max_steps"),
        ({"trainer_args": {"label_smoothing_factor": 0.1}}, "trainer_args"),
        ({"lora": {"rank": 8, "alpha": 16}}, "lora.alpha"),
        ({"lora": {"rank": 8, "target_modules": ["q_proj"]}}, "lora.target_modules"),
        ({"packing": True}, "packing"),
        ({"train_on": "all_messages"}, "train_on"),
        ({"continue_from": "latest"}, "continue_from"),
        ({"early_stop_patience": 2}, "early_stop_patience"),
    ],
)
def test_what_it_cannot_be_told_is_refused(fields: dict[str, Any], path: str) -> None:
    assert refused(SupervisedRecipe, fields) == [path]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"beta": 0.5}, "beta"),
        ({"loss_type": ["ipo"]}, "loss_type"),
        ({"reference_model": "another"}, "reference_model"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_nor_of_pairs(fields: dict[str, Any], path: str) -> None:
    assert refused(PreferenceRecipe, fields) == [path]


def test_a_bound_class_is_known_by_the_one_it_was_made_of() -> None:
    recipe = bind(PreferenceRecipe, {**NEEDED, "beta": 0.4}, RecipeDefinition(name="any"))
    assert type(recipe) is not PreferenceRecipe
    assert written_class(type(recipe)) is PreferenceRecipe
    assert written_class(type(recipe.lora)) is LoraConfig
    assert written_class(PreferenceRecipe) is PreferenceRecipe
