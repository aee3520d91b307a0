"""`trainer_args` of every method: each field of its TRL config class is passed on, or refused with what to do instead."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.training.trl.arguments import OWNED, OWNED_FIELDS, check_trainer_args
from kitchen_resources.training.trl.backend import TrlTrainer
from kitchen_resources.training.trl.session import METHODS
from tests.unit.test_recipes_trainer_args import PASSED_ON as SUPERVISED

pytestmark = pytest.mark.heavy

COMMON = set(SUPERVISED) - {"label_smoothing_factor", "loss_type", "neftune_noise_alpha"}
SAMPLED = {"cache_implementation", "disable_dropout", "min_p", "repetition_penalty"}
PASSED_ON = {
    "preference": COMMON
    | {
        "disable_dropout",
        "discopop_tau",
        "f_alpha_divergence_coef",
        "f_divergence_type",
        "ld_alpha",
        "use_weighting",
    },
    "reinforcement": COMMON - {"activation_offloading"}
    | SAMPLED
    | {
        "cast_lm_head_to_fp32",
        "delta",
        "entropy_coef",
        "mask_truncated_completions",
        "sapo_temperature_neg",
        "sapo_temperature_pos",
        "top_entropy_quantile",
        "use_bias_correction_kl",
        "vespo_k_neg",
        "vespo_k_pos",
        "vespo_lambda_neg",
        "vespo_lambda_pos",
    },
    "distillation": COMMON - {"activation_offloading", "router_aux_loss_coef"} | SAMPLED | {"top_k", "top_p"},
}
RECIPES: dict[str, Recipe] = {
    "preference": bind(PreferenceRecipe, {"model": "m"}, RecipeDefinition(name="p")),
    "reinforcement": bind(ReinforcementRecipe, {"model": "m"}, RecipeDefinition(name="r")),
    "distillation": bind(DistillationRecipe, {"model": "m", "mode": "on_policy"}, RecipeDefinition(name="d")),
}


def _fields(method: str) -> set[str]:
    return {field.name for field in dataclasses.fields(METHODS[method].config_class(RECIPES[method]))}


@pytest.mark.parametrize("method", RECIPES)
def test_every_field_is_either_owned_or_passed_on(method: str) -> None:
    module = METHODS[method]
    owned = {*OWNED_FIELDS, *OWNED, *module.OWNED_FIELDS, *module.OWNED}
    left = {name for name in _fields(method) - owned if not name.startswith("vllm_")}
    assert left == PASSED_ON[method]


@pytest.mark.parametrize("method", RECIPES)
def test_what_is_owned_names_a_field_of_the_recipe_or_a_reason(method: str) -> None:
    module, recipe = METHODS[method], type(RECIPES[method])
    assert {field.partition(".")[0] for field in module.OWNED_FIELDS.values()} <= set(recipe.model_fields)
    assert set(module.OWNED) <= _fields(method) | {
        "generation_kwargs",
        "use_vllm",
        "loss_type",
        "router_aux_loss_coef",
    }
    assert set(module.OWNED_FIELDS) <= _fields(method)
    assert all(reason and not reason.endswith(".") for reason in module.OWNED.values())


@pytest.mark.parametrize(
    ("method", "arguments", "said"),
    [
        ("preference", {"beta": 0.2}, "beta: …"),
        ("preference", {"sync_ref_model": True}, "a reference that moves is in no checkpoint"),
        ("preference", {"neftune_noise_alpha": 5.0}, "not what this method's loss is defined by"),
        ("preference", {"f_divergence_type": "kl"}, "must be reverse_kl, forward_kl"),
        ("preference", {"ld_alpha": 2.0}, "must be from 0 to 1"),
        ("preference", {"betta": 1}, "DPOConfig has no such field"),
        ("reinforcement", {"num_generations": 4}, "group_size: …"),
        ("reinforcement", {"use_adaptive_entropy": True}, "what it adapts is in no checkpoint"),
        ("reinforcement", {"vllm_mode": "server"}, "generation.options says it"),
        ("reinforcement", {"delta": 0.5}, "must be greater than 1"),
        ("distillation", {"teacher_model_name_or_path": "x"}, "teacher: …"),
        ("distillation", {"top_p": 0.0}, "must be above 0 and at most 1"),
    ],
)
def test_what_is_refused_says_what_to_write(method: str, arguments: dict[str, Any], said: str) -> None:
    mode = {"mode": "on_policy"} if method == "distillation" else {}
    values = {"model": "m", "trainer_args": arguments, **mode}
    recipe = bind(type(RECIPES[method]), values, RecipeDefinition(name="x"))
    ((path, what, fix),) = check_trainer_args(recipe, METHODS[method])
    assert path == f"trainer_args.{next(iter(arguments))}"
    assert said in f"{what}; {fix}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpu": 1}, "vllm has no such option here"),
        ({"gpu_memory_utilization": "much"}, "is of the wrong type"),
        ({"mode": "server", "server_host": "elsewhere.example"}, "KITCHEN_ALLOWED_ENDPOINTS"),
        ({"mode": "server", "server_base_url": "http://elsewhere.example:80"}, "KITCHEN_ALLOWED_ENDPOINTS"),
        ({"mode": "server", "server_host": "127.0.0.1"}, None),
        ({"mode": "colocate", "gpu_memory_utilization": 0.3, "tensor_parallel_size": 1}, None),
    ],
)
def test_options_of_the_engine(options: dict[str, Any], said: str | None) -> None:
    recipe = bind(
        ReinforcementRecipe,
        {"model": "m", "generation": {"engine": "vllm", "options": options}},
        RecipeDefinition(name="r"),
    )
    problems = TrlTrainer().check(recipe)
    assert (not problems) if said is None else said in " ".join(problems[0])


def test_the_docs_list_what_can_be_set() -> None:
    text = (Path(__file__).parents[2] / "docs" / "pages" / "recipes.template.md").read_text()
    (sentence,) = re.findall(r"Of these the other methods take all.*", text)
    missing, _, besides = sentence.partition("Besides there are: ")
    of_methods = dict(zip(PASSED_ON, (part.split(" ", 1)[1] for part in besides.split("; ")), strict=True))
    for method, part in of_methods.items():
        assert _named(part) == PASSED_ON[method] - set(SUPERVISED), method
    of_all, _, rest = missing.partition("; reinforcement has no ")
    reinforcement, _, distillation = rest.partition(", and distillation")
    assert _named(of_all) == set(SUPERVISED) - PASSED_ON["preference"]
    assert _named(of_all + reinforcement) == set(SUPERVISED) - PASSED_ON["reinforcement"]
    assert _named(of_all + reinforcement + distillation) == set(SUPERVISED) - PASSED_ON["distillation"]


def _named(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))
