"""What goes together in a recipe: each rule with its message, and the nearest recipe that keeps it."""

from typing import Any

import pytest
from recipe_cases import NAMED, recipe

from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.rules import (
    check_values,
    field_names,
    held_out_share,
    measured_metrics,
    refuse,
)
from kitchen_resources.recipes.supervised import SupervisedRecipe

MATCH = {"name": "match", "dataset": "held_out", "scorer": "exact_match"}

RULES: dict[str, tuple[dict[str, Any], tuple[str, str, str], dict[str, Any]]] = {
    "no model": (
        {"model": ""},
        ("model", "no base model is named", "model: a local folder, a hub id, or embedded:tiny"),
        {"model": "embedded:tiny"},
    ),
    "a model of white space": (
        {"model": " "},
        ("model", "no base model is named", "model: a local folder, a hub id, or embedded:tiny"),
        {"model": " m"},
    ),
    "no data set": (
        {"dataset": ""},
        ("dataset", "no data set is named", "dataset: a file, a folder, a hub id, or embedded:NAME"),
        {"dataset": "embedded:dates"},
    ),
    "two warm-ups": (
        {"warmup_ratio": 0.0, "warmup_steps": 0},
        ("warmup_ratio", "is given beside warmup_steps", "one of the two"),
        {"warmup_ratio": 0.1, "warmup_steps": None},
    ),
    "a final learning rate above the peak": (
        {"learning_rate": 1.0e-4, "lr_final": 1.1e-4},
        ("lr_final", "0.00011 is above learning_rate 0.0001", "lr_final: 0"),
        {"learning_rate": 1.0e-4, "lr_final": 1.0e-4},
    ),
    "a final learning rate where the peak is 0": (
        {"learning_rate": 0.0, "lr_final": 1.0e-6},
        ("lr_final", "1e-06 is above learning_rate 0", "lr_final: 0"),
        {"learning_rate": 0.0, "lr_final": 0.0},
    ),
    "a quantized base trained whole": (
        {"quantization": "4bit"},
        ("quantization", "a quantized base can only carry a LoRA", "lora: {rank: 16}"),
        {"quantization": "4bit", "lora": {"rank": 16}},
    ),
    "a quantized base in fp32": (
        {"quantization": "8bit", "lora": {}, "precision": "fp32"},
        ("precision", "a quantized base computes in bf16", "precision: bf16"),
        {"quantization": "8bit", "lora": {}, "precision": "bf16"},
    ),
    "flash attention that should be deterministic": (
        {"deterministic": True, "attention": "flash_attention_3"},
        ("attention", "flash kernels are not deterministic", "attention: auto"),
        {"deterministic": True, "attention": "sdpa"},
    ),
    "an adapter of full fine-tuning": (
        {"export": "adapter"},
        ("export", "full fine-tuning makes no adapter", "export: merged"),
        {"export": "adapter", "lora": {}},
    ),
    "both of full fine-tuning": (
        {"export": "both"},
        ("export", "full fine-tuning makes no adapter", "export: merged"),
        {"export": "both", "lora": {}},
    ),
    "a LoRA on nothing": (
        {"lora": {"target_modules": []}},
        ("lora.target_modules", "is empty, so nothing would be trained", "target_modules: [all-linear]"),
        {"lora": {"target_modules": ["q_proj"]}},
    ),
    "a LoRA on all layers and one": (
        {"lora": {"target_modules": ["all-linear", "q_proj"]}},
        ("lora.target_modules", "names single modules beside all-linear", "target_modules: [all-linear]"),
        {"lora": {"target_modules": ["all-linear"]}},
    ),
    "a checkpoint by no name": (
        {"continue_from": "3F2A"},
        (
            "continue_from",
            "'3F2A' is neither a fingerprint's first digits nor latest",
            "continue_from: 3f2a91c04b77, 3f2a91c04b77@400, or latest",
        ),
        {"continue_from": "3f2a@400"},
    ),
    "too few digits of one": (
        {"continue_from": "3f2"},
        (
            "continue_from",
            "'3f2' is neither a fingerprint's first digits nor latest",
            "continue_from: 3f2a91c04b77, 3f2a91c04b77@400, or latest",
        ),
        {"continue_from": "latest"},
    ),
    "nothing kept out": (
        {"held_out": "1"},
        ("held_out", "must be a share from 0 to below 1, or a data set, got 1", 'held_out: "0.1"'),
        {"held_out": "0.999"},
    ),
    "a share below 0": (
        {"held_out": "-0.1"},
        ("held_out", "must be a share from 0 to below 1, or a data set, got -0.1", 'held_out: "0.1"'),
        {"held_out": "0"},
    ),
    "a share that is no number": (
        {"held_out": "nan"},
        ("held_out", "must be a share from 0 to below 1, or a data set, got nan", 'held_out: "0.1"'),
        {"held_out": "nan.jsonl"},
    ),
    "an evaluation that can't name a metric": (
        {"evaluations": [{"name": "a/b", "dataset": "x.jsonl"}]},
        ("evaluations.0.name", "'a/b' can't be part of a metric's name", "name: letters, digits, _ . -"),
        {"evaluations": [{"name": "A_1.b-c", "dataset": "x.jsonl"}]},
    ),
    "other rows called held out": (
        {"evaluations": [MATCH, {"dataset": "x.jsonl"}]},
        ("evaluations.1.name", "held_out is the name of the recipe's own split", "name: one of its own"),
        {"evaluations": [MATCH, {"dataset": "held_out"}]},
    ),
    "held-out rows where there are none": (
        {"evaluations": [MATCH], "held_out": "0.00"},
        ("evaluations.0.dataset", "is held_out, and no rows are held out", 'held_out: "0.1"'),
        {"evaluations": [MATCH], "held_out": "rows.jsonl"},
    ),
    "two evaluations of one name": (
        {"evaluations": [MATCH, {**MATCH, "scorer": "contains"}]},
        ("evaluations", "two of them are named 'match'", "a name of its own for each"),
        {"evaluations": [MATCH, {**MATCH, "name": "has"}]},
    ),
    "the best by what isn't measured": (
        {"select": "best", "select_metric": "match/contains", "evaluations": [MATCH]},
        (
            "select_metric",
            "'match/contains' is never measured",
            "one of held_out/loss, held_out/perplexity, match/exact_match, match/exact_match_passed",
        ),
        {"select": "best", "select_metric": "match/exact_match_passed", "evaluations": [MATCH]},
    ),
    "early stopping by what isn't measured": (
        {"early_stop_patience": 1, "held_out": "0"},
        ("select_metric", "'held_out/loss' is never measured", "one of none; hold rows out"),
        {"early_stop_patience": 1, "held_out": "split:test"},
    ),
    "the best where nothing is measured on the way": (
        {"select": "best", "eval_every": 0},
        ("select", "needs evaluations during training, and eval_every is 0", "eval_every: 1"),
        {"select": "best", "eval_every": 1},
    ),
    "early stopping where nothing is measured on the way": (
        {"early_stop_patience": 1, "eval_every": 0},
        ("early_stop_patience", "needs evaluations during training, and eval_every is 0", "eval_every: 1"),
        {"early_stop_patience": None, "eval_every": 0},
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_refuses_by_name_and_says_what_to_write(rule: str) -> None:
    values, problem, _ = RULES[rule]
    assert check_values(recipe(values)) == [problem]


@pytest.mark.parametrize("rule", RULES)
def test_the_nearest_recipe_that_keeps_the_rule_is_accepted(rule: str) -> None:
    assert check_values(recipe(RULES[rule][2])) == []


def test_a_metric_that_nobody_asks_for_needs_no_measuring() -> None:
    assert check_values(recipe({"select_metric": "never/measured", "eval_every": 0})) == []


def test_a_base_from_another_recipe_stands_for_a_model() -> None:
    assert check_values(recipe({"model": ""}, base_from="other")) == []
    assert check_values(recipe({"model": "beside/it"}, base_from="other")) == []
    assert [field for field, _, _ in check_values(recipe({"model": " "}))] == ["model"]


def test_all_problems_are_named_at_once() -> None:
    values = {
        "epochs": 0,
        "learning_rate": -1.0,
        "lora": {"rank": 0},
        "warmup_ratio": 1.0,
        "select": "best",
        "eval_every": 0,
    }
    with pytest.raises(ConfigError) as refused:
        refuse(check_values(recipe(values)), "recipe mine")
    assert str(refused.value) == (
        "recipe mine: the recipe can't be trained as it is\n"
        "  epochs: must be at least 1, got 0\n"
        "    write: epochs: 1\n"
        "  learning_rate: must be at least 0, got -1.0\n"
        "    write: learning_rate: 0\n"
        "  warmup_ratio: must be less than 1, got 1.0\n"
        "    write: warmup_ratio: a number below 1\n"
        "  lora.rank: must be at least 1, got 0\n"
        "    write: lora.rank: 1\n"
        "  select: needs evaluations during training, and eval_every is 0\n"
        "    write: eval_every: 1"
    )


def test_nothing_is_raised_where_nothing_is_wrong() -> None:
    refuse([], "recipe mine")


@pytest.mark.parametrize(
    ("held_out", "share"),
    [
        ("0.1", 0.1),
        ("0", 0.0),
        ("0.000", 0.0),
        ("", 0.0),
        (" 0.25 ", 0.25),
        ("1e-2", 0.01),
        ("rows.jsonl", None),
        ("split:test", None),
    ],
)
def test_held_out_is_a_share_or_a_data_set(held_out: str, share: float | None) -> None:
    assert held_out_share(recipe({"held_out": held_out})) == share


def test_the_metrics_that_are_measured() -> None:
    evaluations = [{**MATCH, "name": "held_out"}, {"name": "sums", "dataset": "x.jsonl", "scorer": "numeric"}]
    assert measured_metrics(recipe({"evaluations": evaluations, "held_out": "0"})) == [
        "held_out/exact_match",
        "held_out/exact_match_passed",
        "sums/numeric",
        "sums/numeric_passed",
    ]
    assert measured_metrics(recipe()) == ["held_out/loss", "held_out/perplexity"]


def test_the_fields_that_a_launch_can_set() -> None:
    names = field_names(SupervisedRecipe)
    assert names[:2] == ["model", "chat_template"]
    assert names[-2:] == ["train_on", "packing"]
    assert set(names) - set(field_names(Recipe)) == {"train_on", "packing"}
    assert names == field_names(type(recipe()))


def test_a_plain_object_is_checked_as_a_bound_one() -> None:
    plain = SupervisedRecipe(**NAMED, epochs=0, export="both")
    bound = bind(SupervisedRecipe, {**NAMED, "epochs": 0, "export": "both"}, RecipeDefinition(name="mine"))
    assert check_values(plain) == check_values(bound)
    assert [field for field, _, _ in check_values(plain)] == ["epochs", "export"]
