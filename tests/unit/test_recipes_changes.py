"""What is said of two identities that differ, fields that are added later, and drift of the environment."""

import json
from typing import Any, ClassVar, List, Optional

import pytest
from recipe_cases import NAMED, recipe
from recipe_identities import identity, resolution, start

from kitchen_resources.digests import canonical_json
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.blocks import Block
from kitchen_resources.recipes.fields import recipe_field
from kitchen_resources.recipes.identity import changes
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe


def stored(made: Any) -> dict[str, Any]:
    """An identity as it comes back from the store."""
    value: dict[str, Any] = json.loads(canonical_json(dict(made.value)))
    return value


MOVED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a number": ({"learning_rate": 1.0e-4}, ["learning_rate: 2e-05 -> 0.0001"]),
    "a flag": ({"deterministic": True}, ["deterministic: false -> true"]),
    "a word": ({"lr_schedule": "constant"}, ["lr_final: 0.0 -> not set", "lr_schedule: linear -> constant"]),
    "more epochs": (
        {"epochs": 5},
        ["plan.epochs: 3 -> 5", "plan.total_steps: 75 -> 125"],
    ),
    "what it comes to": (
        {"precision": "bf16", "optimizer": "sgd"},
        ["numerics.optimizer: adamw_torch -> sgd", "numerics.precision: fp32 -> bf16"],
    ),
    "a block that wasn't there": (
        {"lora": {"rank": 8}},
        [
            'lora: null -> {"alpha":32,"dropout":0.0,"rank":8,"rslora":false,"target_modules":["all-linear"]}',
        ],
    ),
    "an argument that wasn't there": (
        {"trainer_args": {"a": {"b": None}}},
        ['trainer_args.a: not set -> {"b":null}'],
    ),
    "several": (
        {"seed": 1, "weight_decay": 0.1, "batch_size": 16},
        [
            "plan.steps_per_epoch: 25 -> 13",
            "plan.total_steps: 75 -> 39",
            "batch_size: 8 -> 16",
            "seed: 0 -> 1",
            "weight_decay: 0.0 -> 0.1",
        ],
    ),
}


@pytest.mark.parametrize("case", MOVED)
def test_what_moved_is_said_literally(case: str) -> None:
    values, said = MOVED[case]
    assert changes(stored(identity(recipe())), identity(recipe(values)).value) == said


def test_nothing_is_said_where_nothing_moved() -> None:
    values: dict[str, Any] = {"lora": {"target_modules": ["v", "q"]}, "trainer_args": {"a": {"b": [1, 2.0]}}}
    made = identity(recipe(values), start=start())
    assert changes(stored(made), made.value) == []
    assert changes(stored(made), identity(recipe({**values, "keep_last": 9}), start=start()).value) == []


def test_a_value_inside_a_block_is_named_by_its_path() -> None:
    old, new = (identity(recipe({"lora": {"rank": rank, "alpha": 8}})) for rank in (4, 16))
    assert changes(stored(old), new.value) == ["lora.rank: 4 -> 16"]


def test_digests_are_shortened_and_in_full_where_they_begin_alike() -> None:
    old = identity(recipe())
    other = identity(recipe(), data_digest="0123456789abcdef" * 4)
    assert changes(stored(old), other.value) == ["data: dddddddddddd… -> 0123456789ab…"]
    alike = identity(recipe(), data_digest="d" * 63 + "0")
    assert changes(stored(old), alike.value) == [f'data: "{"d" * 64}" -> "{"d" * 63}0"']


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (0, 0.0, "0 -> 0.0"),
        (1, True, "1 -> true"),
        (1, "1", '1 -> "1"'),
        (None, "null", 'null -> "null"'),
        (None, 0, "null -> 0"),
        ([1], [1, 2], "[1] -> [1,2]"),
        ({}, [], "{} -> []"),
        ("ä", "b", "ä -> b"),
    ],
)
def test_whatever_moves_the_fingerprint_is_said(old: Any, new: Any, said: str) -> None:
    one, other = (identity(recipe({"trainer_args": {"a": {"b": value}}})) for value in (old, new))
    assert one.fingerprint != other.fingerprint
    assert changes(stored(one), other.value) == [f"trainer_args.a.b: {said}"]


def test_a_start_and_its_end() -> None:
    begun, plain = identity(recipe(), start=start("weights")), identity(recipe())
    assert changes(plain.value, begun.value) == [
        f'start: null -> {{"carry":"weights","state":"{"e" * 64}","step":0}}'
    ]
    assert changes(begun.value, identity(recipe(), start=start()).value) == [
        "start.carry: weights -> all",
        "start.step: 0 -> 39",
    ]


def test_drift_of_the_environment_is_said_field_by_field() -> None:
    first = {**resolution(recipe()).environment, "device": "x86_64", "cpu_capability": "AVX2"}
    now = {**first, "torch": "2.14.0", "cpu_capability": "AVX512", "numpy": "2.4.1"}
    now.pop("device")
    assert changes(first, now) == [
        "cpu_capability: AVX2 -> AVX512",
        "device: x86_64 -> not set",
        "numpy: not set -> 2.4.1",
        "torch: 2.13.0 -> 2.14.0",
    ]
    assert changes(first, dict(reversed(first.items()))) == []


# Fields that are added later.


class Early(Block):
    """A block as it was at first."""

    size: int = recipe_field(1, "A size.", moves="weights", minimum=0)


class Late(Early):
    """The block with a field that was added later, and one that moves nothing."""

    scale: float = recipe_field(1.0, "A scale.", moves="weights", added_in=2, neutral=1.0)
    label: str = recipe_field("", "A label.", moves="nothing")


class EarlyRecipe(SupervisedRecipe):
    """A recipe class as it was at first."""

    method: ClassVar[str] = "supervised"
    block: Early = recipe_field(Early(), "A block.", moves="weights")
    several: List[Early] = recipe_field([], "Several blocks.", moves="weights")


class LateRecipe(SupervisedRecipe):
    """The class with fields that were added later."""

    method: ClassVar[str] = "supervised"
    block: Late = recipe_field(Late(), "A block.", moves="weights")
    several: List[Late] = recipe_field([], "Several blocks.", moves="weights")
    smoothing: float = recipe_field(0.1, "Now 0.1; it was 0.", moves="weights", added_in=2, neutral=0.0)
    optional: Optional[int] = recipe_field(None, "None was what was done.", moves="weights", added_in=2, neutral=None)


def of(recipe_class: type[Recipe], **values: Any) -> str:
    return identity(bind(recipe_class, {**NAMED, **values}, RecipeDefinition(name="mine"))).fingerprint


def test_a_later_field_at_the_value_of_before_leaves_the_fingerprint() -> None:
    blocks = {"block": {"size": 2}, "several": [{"size": 3}, {"size": 4}]}
    assert of(EarlyRecipe) == of(LateRecipe, smoothing=0.0)
    assert of(EarlyRecipe, **blocks) == of(LateRecipe, smoothing=0.0, **blocks)
    assert of(EarlyRecipe, **blocks) == of(LateRecipe, smoothing=0, optional=None, **blocks)


def test_a_later_field_at_another_value_moves_the_fingerprint_even_by_default() -> None:
    before = of(EarlyRecipe)
    assert of(LateRecipe) != before
    assert of(LateRecipe, smoothing=0.1) == of(LateRecipe)
    assert of(LateRecipe, smoothing=0.0, optional=0) != before
    assert of(LateRecipe, smoothing=0.0, optional=1) not in (before, of(LateRecipe, smoothing=0.0, optional=0))


def test_a_later_field_of_a_block_follows_the_same_rule() -> None:
    before = of(EarlyRecipe, several=[{"size": 2}])
    still = {"smoothing": 0.0, "several": [{"size": 2}]}
    assert of(LateRecipe, **still, block={"scale": 1, "label": "a"}) == before
    assert of(LateRecipe, **still, block={"scale": 2.0}) != before
    assert of(LateRecipe, smoothing=0.0, several=[{"size": 2, "scale": 2.0}]) != before
    assert of(LateRecipe, smoothing=0.0, several=[{"size": 2, "label": "b"}]) == before


def test_a_field_of_the_first_version_enters_whatever_its_value() -> None:
    made = identity(recipe()).value["recipe"]
    assert made["weight_decay"] == 0.0
    assert made["trainer_args"] == {}
    assert made["lora"] is None


def test_the_identity_of_a_later_field_says_what_moved() -> None:
    early = identity(bind(EarlyRecipe, NAMED, RecipeDefinition(name="mine")))
    late = identity(bind(LateRecipe, NAMED, RecipeDefinition(name="mine")))
    assert changes(early.value, late.value) == ["smoothing: not set -> 0.1"]
