"""Identity: which fields move the fingerprint, and that committed fingerprints stay where they are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recipe_cases import BLOCKS, NAMED, OTHER, launch, nested, paths, recipe
from recipe_identities import BASE, FINGERPRINTS, committed, identity, plan, resolution, start

from kitchen_resources.recipes.binding import rebind
from kitchen_resources.recipes.blocks import LoraConfig
from kitchen_resources.recipes.identity import IDENTITY_VERSION, Identity
from kitchen_resources.recipes.supervised import SupervisedRecipe

STORED: dict[str, Any] = json.loads(FINGERPRINTS.read_text())


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """The committed fingerprints, computed here and now."""
    return committed()


def fingerprint(values: dict[str, Any] | None = None, **others: Any) -> str:
    return identity(recipe(values), **others).fingerprint


# Committed fingerprints.


@pytest.mark.parametrize("name", STORED)
def test_a_committed_fingerprint_stays(made: dict[str, Any], name: str) -> None:
    """A moved fingerprint trains every finished run of such a recipe anew.

    A new field enters only where it differs from the value that reproduces what was done before
    (`recipe_field(..., added_in=2, neutral=...)`); arithmetic that changed raises an algorithm version. Only a change
    that is meant to move identities writes `fingerprints.json` anew.
    """
    assert made[name]["identity"] == STORED[name]["identity"]
    assert made[name]["fingerprint"] == STORED[name]["fingerprint"]


def test_the_committed_fingerprints_are_those_of_all_variants_and_all_differ(made: dict[str, Any]) -> None:
    assert set(STORED) == set(made)
    assert len(STORED) >= 14
    assert len({stored["fingerprint"] for stored in STORED.values()}) == len(STORED)


def test_a_fingerprint_is_the_digest_of_its_identity() -> None:
    for stored in STORED.values():
        assert Identity(stored["identity"]).fingerprint == stored["fingerprint"]
        assert stored["identity"]["version"] == IDENTITY_VERSION == 1


# Every field flipped.

READ_UNDER: dict[str, dict[str, Any]] = {
    "lr_power": {"lr_schedule": "polynomial"},
    "lr_decay_rate": {"lr_schedule": "exponential"},
    "lr_cycles": {"lr_schedule": "cosine"},
}
"""Fields that have an effect only under another field's value, and that value."""


def flipped(path: str) -> tuple[str, str]:
    """The fingerprints without and with the other value of a field, where the field is read."""
    under = {"lora": {}} if path.startswith("lora.") else READ_UNDER.get(path, {})
    values = {**under, **nested(path, OTHER[path])}
    return fingerprint(under), fingerprint(values)


@pytest.mark.parametrize("path", OTHER)
def test_exactly_the_fields_that_move_weights_move_the_fingerprint(path: str) -> None:
    (facts,) = (facts for name, _, facts in paths() if name == path)
    before, after = flipped(path)
    assert (before != after) == (facts.moves == "weights")


def test_the_fields_that_move_weights_are_these() -> None:
    """Written out: a field that is declared wrongly would pass the test above."""
    assert {path for path, _, facts in paths() if facts.moves == "weights"} == {
        "epochs",
        "max_steps",
        "batch_size",
        "gradient_accumulation_steps",
        "optimizer",
        "learning_rate",
        "lr_schedule",
        "lr_final",
        "lr_power",
        "lr_decay_rate",
        "lr_cycles",
        "warmup_ratio",
        "warmup_steps",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_eps",
        "max_grad_norm",
        "lora",
        "lora.rank",
        "lora.alpha",
        "lora.dropout",
        "lora.target_modules",
        "lora.rslora",
        "quantization",
        "precision",
        "gradient_checkpointing",
        "attention",
        "seed",
        "deterministic",
        "trainer_args",
    }
    assert {path for path, _, facts in paths() if facts.moves == "base"} == {"model", "continue_from", "carry"}
    assert {path for path, _, facts in paths() if facts.moves == "data"} == {
        "chat_template",
        "dataset",
        "split",
        "max_rows",
        "columns",
        "held_out",
        "max_length",
        "train_on",
        "packing",
    }


def test_all_else_changed_at_once_moves_nothing() -> None:
    values = {path: OTHER[path] for path, _, facts in paths() if facts.moves != "weights" and "." not in path}
    assert set(BLOCKS) - {"lora", "evaluations.0"} <= set(values)
    assert fingerprint(values) == fingerprint()
    assert identity(recipe(name="other", description="other", owners=("team:x",), tags={"a": "b"})) == identity(
        recipe()
    )


@pytest.mark.parametrize("path", READ_UNDER)
def test_a_field_that_is_not_read_moves_nothing(path: str) -> None:
    for schedule in ("constant", "linear", "cosine", "polynomial", "exponential"):
        under = {"lr_schedule": schedule}
        is_read = under == READ_UNDER[path]
        assert (fingerprint(under) != fingerprint({**under, path: OTHER[path]})) == is_read


def test_the_final_learning_rate_is_read_by_three_schedules() -> None:
    reading = {
        schedule
        for schedule in ("constant", "linear", "cosine", "polynomial", "exponential")
        if fingerprint({"lr_schedule": schedule}) != fingerprint({"lr_schedule": schedule, "lr_final": 1.0e-6})
    }
    assert reading == {"linear", "cosine", "polynomial"}


# Fields that enter by what they come to.

SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "auto is what it comes to: precision": ({"precision": "auto"}, {"precision": "fp32"}),
    "auto is what it comes to: attention": ({"attention": "auto"}, {"attention": "sdpa"}),
    "no bound is one that isn't reached": ({"max_steps": None}, {"max_steps": 39}),
    "one beyond the end": ({"max_steps": 39}, {"max_steps": 1000}),
    "epochs beyond the bound": ({"epochs": 2, "max_steps": 20}, {"epochs": 9, "max_steps": 20}),
    "a share of warm-up is its steps": ({"warmup_ratio": 0.1}, {"warmup_steps": 4}),
    "no warm-up is none": ({"warmup_steps": None}, {"warmup_steps": 0}),
    "warm-up beyond the end": ({"warmup_steps": 39}, {"warmup_steps": 500}),
}


@pytest.mark.parametrize("case", SAME)
def test_two_ways_to_say_one_thing_are_one_run(case: str) -> None:
    one, other = ({"batch_size": 16, **values} for values in SAME[case])
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"max_steps": 39}, {"max_steps": 38}),
        ({"epochs": 3}, {"epochs": 4}),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 5}),
        ({"warmup_steps": 38}, {"warmup_steps": 39}),
        ({"precision": "fp32"}, {"precision": "bf16"}),
        ({"attention": "sdpa"}, {"attention": "eager"}),
        ({"optimizer": "adamw"}, {"optimizer": "adamw_fused"}),
    ],
    ids=str,
)
def test_what_comes_to_something_else_is_another_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert fingerprint({"batch_size": 16, **one}) != fingerprint({"batch_size": 16, **other})


# What else is in it, and what isn't.


def test_what_is_around_the_recipe_moves_it_where_it_moves_weights() -> None:
    made = resolution(recipe())
    moving: list[dict[str, Any]] = [
        {"base": replace(BASE, digest="0" * 64)},
        {"data_digest": "0" * 64},
        {"pad_token_id": 0},
        {"start": start()},
        {"plan": replace(plan(recipe()), steps_per_epoch=14)},
        {"plan": replace(plan(recipe()), total_steps=40)},
        {"plan": replace(plan(recipe()), epochs=2)},
        {"plan": replace(plan(recipe()), warmup_steps=1)},
        {"resolution": replace(made, algorithm={**made.algorithm, "trl": 2})},
        *({"resolution": replace(made, values={**made.values, key: "other"})} for key in made.values),
    ]
    assert len({fingerprint(), *(fingerprint(**others) for others in moving)}) == 1 + len(moving)


def test_where_it_runs_and_where_things_lie_moves_nothing() -> None:
    made = resolution(recipe())
    still: list[dict[str, Any]] = [
        {"base": replace(BASE, reference="x/y", folder=Path("/x"), revision="1", note="n", bytes=1, parameters=2)},
        {"resolution": replace(made, threads=64, device="cuda:0", memory_bytes=9, state_bytes=9)},
        {"resolution": replace(made, environment={"torch": "9"})},
        {"plan": replace(plan(recipe()), rows=199)},
    ]
    assert {fingerprint(**others) for others in still} == {fingerprint()}


def test_a_start_is_known_by_its_state_and_not_by_its_run() -> None:
    made = identity(recipe(), start=start())
    assert made.value["start"] == {"state": "e" * 64, "carry": "all", "step": 39}
    assert identity(recipe(), start=start("weights")).value["start"] == {
        "state": "e" * 64,
        "carry": "weights",
        "step": 0,
    }
    moved = [
        start(state_digest="0" * 64),
        start(global_step=40),
        start("weights"),
        start("weights", state_digest="0" * 64),
    ]
    assert len({fingerprint(start=s) for s in [start(), *moved]}) == 5
    same = [start(folder=Path("/x")), replace(start(), fingerprint="0" * 64)]
    assert {fingerprint(start=s) for s in same} == {made.fingerprint}
    assert fingerprint(start=start("weights", global_step=1)) == fingerprint(start=start("weights"))


# Spelling.


def test_the_order_of_keys_does_not_matter() -> None:
    values = {
        "seed": 1,
        "lora": {"rank": 4, "alpha": 8},
        "trainer_args": {"loss_type": "dft", "neftune_noise_alpha": 5},
    }
    reverse = {key: values[key] for key in reversed(values)}
    reverse["lora"] = {"alpha": 8, "rank": 4}
    reverse["trainer_args"] = {"neftune_noise_alpha": 5, "loss_type": "dft"}
    assert fingerprint(values) == fingerprint(reverse)


@pytest.mark.parametrize("field", ["learning_rate", "lr_final", "weight_decay", "max_grad_norm", "adam_beta1"])
def test_a_whole_number_in_a_float_field_is_that_float(field: str) -> None:
    values = {"learning_rate": 1.0}
    by_file = fingerprint({**values, field: 0})
    assert by_file == fingerprint({**values, field: 0.0})
    launched = launch(recipe(values), {field: 0})
    assert identity(launched).fingerprint == by_file
    assert identity(rebind(SupervisedRecipe(**{**NAMED, **values, field: 0}))).fingerprint == by_file


def test_the_modules_of_a_lora_are_a_set() -> None:
    def of(*modules: str) -> str:
        return fingerprint({"lora": {"target_modules": list(modules)}})

    assert of("q", "v") == of("v", "q") == of("q", "v", "q")
    assert len({of("q"), of("v"), of("q", "v"), of("all-linear")}) == 4


def test_the_order_within_a_list_of_arguments_does_matter() -> None:
    assert fingerprint({"trainer_args": {"a": [1, 2]}}) != fingerprint({"trainer_args": {"a": [2, 1]}})


def test_every_way_to_make_a_recipe_is_one_identity() -> None:
    values: dict[str, Any] = {"epochs": 2, "learning_rate": 3.0e-4, "lora": {"rank": 4}}
    plain = SupervisedRecipe(**NAMED, epochs=2, learning_rate=3.0e-4, lora=LoraConfig(rank=4))
    launched = launch(recipe({"lora": {"rank": 8}}), values)
    made = [plain, recipe(values), rebind(plain), rebind(recipe(values), name="renamed"), launched]
    assert {identity(one).fingerprint for one in made} == {fingerprint(values)}
