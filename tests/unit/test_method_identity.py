"""Identity of preference, reinforcement and distillation: which of their fields move it, and what beside the recipe does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from method_cases import BLOCKS, METHODS, OTHER, made, other, own_paths
from method_identities import ENVIRONMENT, REFERENCE, TEACHER, VARIANTS, method_identity
from recipe_identities import FINGERPRINTS

from kitchen_resources.embedded import write_model
from kitchen_resources.environments import options, references
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.identity import changes
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.rules import check_values
from kitchen_resources.training.run import TrainingRun
from tests.engine import Told
from tests.rail import Rail, launch_of

FIELDS = [(method, path, facts) for method in METHODS for path, _, facts in own_paths(method)]


def fingerprint(method: type[Recipe], values: dict[str, Any] | None = None, **others: Any) -> str:
    return method_identity(method, values, **{"besides": {}, **others}).fingerprint


def test_every_variant_is_a_recipe_that_can_be_trained_and_is_committed() -> None:
    stored = json.loads(FINGERPRINTS.read_text())
    for name, (method, values) in VARIANTS.items():
        assert check_values(made(method, values)) == [], name
        assert stored[name]["identity"]["method"] == method.method == name.partition(",")[0]


# Every field flipped.

READ_IN = {
    "alpha": "logit",
    "kd_temperature": "logit",
    "divergence": "on_policy",
    "max_tokens": "on_policy",
    "temperature": "on_policy",
}
"""Fields that have an effect on the weights in one mode of distillation only; a teacher's answers are part of the data."""


def test_every_field_has_another_value() -> None:
    for method in METHODS:
        assert {path for owner, path, _ in FIELDS if owner is method} == set(OTHER[method])


@pytest.mark.parametrize(("method", "path", "facts"), FIELDS, ids=lambda value: getattr(value, "method", None))
def test_exactly_the_fields_that_move_weights_move_the_fingerprint(
    method: type[Recipe], path: str, facts: Any
) -> None:
    under: dict[str, Any] = {"rewards": [{}]} if path.startswith("rewards.0.") else {}
    under |= {} if path not in READ_IN or method is not DistillationRecipe else {"mode": READ_IN[path]}
    before, after = fingerprint(method, under), fingerprint(method, {**under, **other(method, path)})
    assert (before != after) == (facts.moves == "weights"), path


MOVES: dict[type[Recipe], dict[str, set[str]]] = {
    PreferenceRecipe: {
        "weights": {"learning_rate", "beta", "loss_type", "loss_weights", "label_smoothing", "precompute_reference"},
        "base": {"reference_model"},
        "data": set(),
        "nothing": {"select_metric"},
    },
    ReinforcementRecipe: {
        "weights": {
            *("learning_rate", "lr_schedule", "batch_size", "environment", "generation", "max_tokens", "ppo_epochs"),
            *("environment.max_turns", "environment.time_limit_s", "generation.engine", "generation.options"),
            *("group_size", "groups_per_batch", "steps_per_epoch", "temperature", "top_p", "top_k", "loss_type"),
            *("clip_epsilon", "clip_epsilon_high", "importance_level", "kl_coef", "scale_rewards"),
        },
        # By what they are: see `environments.options.identity_of`.
        "base": {
            *("environment.name", "environment.args"),
            *("rewards", "rewards.0.name", "rewards.0.weight", "rewards.0.args"),
        },
        "data": {"dataset"},
        "nothing": {"environment.workers", "environment.max_failed", "pass_at", "select_metric"},
    },
    DistillationRecipe: {
        "weights": {"mode", "alpha", "kd_temperature", "divergence", "max_tokens", "temperature"},
        "base": {"teacher"},
        "data": {"train_on"},
        "nothing": set(),
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_the_fields_that_move_something_are_these(method: type[Recipe]) -> None:
    """Written out: a field that is declared wrongly would pass the test above."""
    for moves, paths in MOVES[method].items():
        assert {path for owner, path, facts in FIELDS if owner is method and facts.moves == moves} == paths, moves


@pytest.mark.parametrize("method", METHODS)
def test_all_else_changed_at_once_moves_nothing(method: type[Recipe]) -> None:
    values = {
        path: OTHER[method][path]
        for owner, path, facts in FIELDS
        if owner is method and facts.moves != "weights" and "." not in path
    }
    if method is ReinforcementRecipe:
        still = {
            path.partition(".")[2]: OTHER[method][path] for path in MOVES[method]["nothing"] if "environment." in path
        }
        values["environment"] = {"name": "arithmetic", **still}
        assert set(still) == {"workers", "max_failed"} < set(BLOCKS["environment"].model_fields)
    assert values
    assert fingerprint(method, values) == fingerprint(method)


@pytest.mark.parametrize("path", READ_IN)
def test_a_field_that_a_mode_does_not_read_moves_nothing(path: str) -> None:
    for mode in ("sequence", "logit", "on_policy"):
        under = {"mode": mode}
        moved = fingerprint(DistillationRecipe, under) != fingerprint(
            DistillationRecipe, {**under, path: OTHER[DistillationRecipe][path]}
        )
        assert moved == (mode == READ_IN[path]), mode


@pytest.mark.parametrize(
    ("method", "one", "other"),
    [
        (PreferenceRecipe, {"loss_weights": None}, {"loss_weights": [1.0]}),
        (PreferenceRecipe, {"loss_type": ["ipo", "sft"]}, {"loss_type": ["ipo", "sft"], "loss_weights": [1, 1]}),
        (ReinforcementRecipe, {"clip_epsilon": 0.3}, {"clip_epsilon": 0.3, "clip_epsilon_high": 0.3}),
    ],
)
def test_two_ways_to_say_one_thing_are_one_run(
    method: type[Recipe], one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert fingerprint(method, one) == fingerprint(method, other)


def test_the_order_of_losses_is_part_of_it() -> None:
    def losses(*names: str) -> str:
        return fingerprint(PreferenceRecipe, {"loss_type": list(names), "loss_weights": [1.0, 0.2]})

    assert losses("sigmoid", "sft") != losses("sft", "sigmoid")


# What is beside the recipe.


def test_models_and_environment_move_it_by_their_digests() -> None:
    cases: list[tuple[type[Recipe], list[dict[str, Any]]]] = [
        (PreferenceRecipe, [{}, {"reference": REFERENCE}, {"reference": TEACHER}]),
        (DistillationRecipe, [{"teacher": TEACHER}, {"teacher": REFERENCE}]),
        (
            ReinforcementRecipe,
            [
                {"environment": ENVIRONMENT},
                {"environment": {**ENVIRONMENT, "source": "4" * 64}},
                {"environment": {**ENVIRONMENT, "version": 2}},
                {"environment": {**ENVIRONMENT, "args": {}}},
                {"environment": {**ENVIRONMENT, "rewards": [{"name": "ended", "source": "5" * 64}]}},
            ],
        ),
    ]
    for method, besides in cases:
        assert len({fingerprint(method, besides=each) for each in besides}) == len(besides)


def test_what_moved_is_told_by_its_name() -> None:
    old = method_identity(ReinforcementRecipe).value
    new = method_identity(
        ReinforcementRecipe, {"kl_coef": 0.1}, besides={"environment": {**ENVIRONMENT, "source": "4" * 64}}
    ).value
    assert changes(old, new) == [
        "environment.source: 333333333333… -> 444444444444…",
        "kl_coef: 0.0 -> 0.1",
    ]


def test_a_launch_puts_beside_it_what_it_reads(tmp_path: Path) -> None:
    write_model(tmp_path / "other", seed=3)
    named = str(tmp_path / "other")
    reference = launch_of(PreferenceRecipe, reference_model=named)
    teacher = launch_of(DistillationRecipe, teacher=named)
    environment = launch_of(ReinforcementRecipe)
    digest = reference.models["reference"].digest
    assert (reference.besides(), teacher.besides()) == ({"reference": digest}, {"teacher": digest})
    assert launch_of(PreferenceRecipe).besides() == {}
    assert environment.besides() == {"environment": options.identity_of(environment.recipe.environment_spec())}  # type: ignore[attr-defined]
    for launch in (reference, teacher, environment):
        identity = planned(launch)
        assert {name: identity[name] for name in launch.besides()} == launch.besides()


def planned(launch: Any) -> Any:
    """The identity of a launch's run."""
    run = TrainingRun(launch, Told())
    run.planned()
    (noted,) = launch.known_runs()
    assert noted["fingerprint"] == run.fingerprint
    return noted["identity"]


def test_an_environment_s_code_is_part_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rail = Rail()
    rail.add("mine", ReinforcementRecipe)

    def fresh(**fields: Any) -> tuple[str, tuple[str, ...]]:
        run = TrainingRun(rail.launch("mine", **fields), Told())
        return run.fingerprint, run.planned().notes

    before, _ = fresh()
    still = {"name": "arithmetic", "args": {"count": 6, "maximum": 99}, "workers": 2, "max_failed": 0.9}
    assert fresh(environment=still, pass_at=9)[0] == before
    monkeypatch.setattr(references, "digest_file", lambda path: "4" * 64)
    after, (said, *_) = fresh()
    assert after != before
    assert re.fullmatch(
        rf"run {after[:12]} is new; since run {before[:12]} moved: environment.source: [0-9a-f]{{12}}… -> 4{{12}}…",
        said,
    )
