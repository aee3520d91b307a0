"""Recipes of preference, reinforcement and distillation that break a rule, what is said of them, and what mends them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import LOSSES, PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.rules import Problem

ENVIRONMENTS = "arithmetic, math, reasoning_gym"
REWARDS = "contains, ended, exact_match, format, length_penalty"
OPERATIONS = 'write operations: ["+", "-", "*"]'


@dataclass(frozen=True)
class Rule:
    """A recipe that breaks a rule.

    Attributes:
        method: Whose recipe.
        values: Its values.
        problem: The only problem that it has.
        mended: Values beside these that make it valid, each as the problem suggests.
    """

    method: type[Recipe]
    values: Mapping[str, Any]
    problem: Problem
    mended: Sequence[Mapping[str, Any]]


RULES: dict[str, Rule] = {
    "an unknown loss": Rule(
        PreferenceRecipe,
        {"loss_type": ["sft", "sigmod"]},
        ("loss_type.1", "there is no loss 'sigmod'", f"one of {', '.join(LOSSES)}"),
        [{"loss_type": ["sft", "sigmoid"]}],
    ),
    "no loss": Rule(
        PreferenceRecipe,
        {"loss_type": []},
        ("loss_type", "names no loss, or one twice", "loss_type: [sigmoid]"),
        [{"loss_type": ["sigmoid"]}],
    ),
    "one loss twice": Rule(
        PreferenceRecipe,
        {"loss_type": ["ipo", "ipo"]},
        ("loss_type", "names no loss, or one twice", "loss_type: [sigmoid]"),
        [{"loss_type": ["sigmoid"]}, {"loss_type": ["ipo"]}],
    ),
    "more weights than losses": Rule(
        PreferenceRecipe,
        {"loss_weights": [1.0, 0.2]},
        ("loss_weights", "has 2 weights for 1 losses", "one weight for each loss_type, or null"),
        [{"loss_weights": [1.0]}, {"loss_weights": None}, {"loss_type": ["sigmoid", "sft"]}],
    ),
    "fewer weights than losses": Rule(
        PreferenceRecipe,
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]},
        ("loss_weights", "has 1 weights for 2 losses", "one weight for each loss_type, or null"),
        [{"loss_weights": [1.0, 0.0]}, {"loss_weights": None}],
    ),
    "a weight below 0": Rule(
        PreferenceRecipe,
        {"loss_weights": [-0.5]},
        ("loss_weights", "has a weight that is below 0 or not finite", "loss_weights: numbers from 0"),
        [{"loss_weights": [0.0]}],
    ),
    "a weight without end": Rule(
        PreferenceRecipe,
        {"loss_weights": [float("inf")]},
        ("loss_weights", "has a weight that is below 0 or not finite", "loss_weights: numbers from 0"),
        [{"loss_weights": [1.0e6]}],
    ),
    "a weight that is no number": Rule(
        PreferenceRecipe,
        {"loss_weights": [float("nan")]},
        ("loss_weights", "has a weight that is below 0 or not finite", "loss_weights: numbers from 0"),
        [{"loss_weights": [0.5]}],
    ),
    "smoothing that nothing reads": Rule(
        PreferenceRecipe,
        {"loss_type": ["sigmoid", "sft"], "label_smoothing": 0.1},
        (
            "label_smoothing",
            "isn't read by sigmoid, sft",
            "label_smoothing: 0, or a loss_type of aot, aot_unpaired, exo_pair, robust",
        ),
        [
            {"label_smoothing": 0.0},
            *({"loss_type": [name]} for name in ("aot", "aot_unpaired", "exo_pair", "robust")),
        ],
    ),
    "no smoothing where the loss needs it": Rule(
        PreferenceRecipe,
        {"loss_type": ["exo_pair"]},
        ("label_smoothing", "must be above 0 for exo_pair", "label_smoothing: 1.0e-3"),
        [{"label_smoothing": 1.0e-3}],
    ),
    "smoothing by half": Rule(
        PreferenceRecipe,
        {"loss_type": ["robust"], "label_smoothing": 0.5},
        ("label_smoothing", "must be below 0.5 for robust", "label_smoothing: 0.1"),
        [{"label_smoothing": 0.1}, {"label_smoothing": 0.0}],
    ),
    "a reference without a name": Rule(
        PreferenceRecipe,
        {"reference_model": " "},
        ("reference_model", "names no model", "reference_model: null for the run's own base"),
        [{"reference_model": None}],
    ),
    "no environment": Rule(
        ReinforcementRecipe,
        {"environment": {}},
        ("environment.name", "no environment is named", f"environment: {{name: one of {ENVIRONMENTS}}}"),
        [{"environment": {"name": "arithmetic"}}, {"environment": {"name": "math"}, "dataset": "rows.jsonl"}],
    ),
    "an unknown environment": Rule(
        ReinforcementRecipe,
        {"environment": {"name": "arithmetics"}},
        (
            "environment.name",
            "there is no environment 'arithmetics'",
            f"arithmetic? Known are {ENVIRONMENTS}; or register_environment(…) yours",
        ),
        [{"environment": {"name": "arithmetic"}}],
    ),
    "an unknown option of it": Rule(
        ReinforcementRecipe,
        {"environment": {"name": "arithmetic", "args": {"digits": 3}}},
        (
            "environment",
            "arithmetic has no option 'digits'; it has operations, maximum, count, seed, format_coef",
            f"environment: {{name: one of {ENVIRONMENTS}, args: its own options}}",
        ),
        [{"environment": {"name": "arithmetic", "args": {"maximum": 3, "count": 4}}}],
    ),
    "an option that it can't take": Rule(
        ReinforcementRecipe,
        {"environment": {"name": "arithmetic", "args": {"operations": ["/"]}}},
        (
            "environment",
            f"arithmetic can't take these options: ['/'] are no operations; {OPERATIONS}",
            f"environment: {{name: one of {ENVIRONMENTS}, args: its own options}}",
        ),
        [{"environment": {"name": "arithmetic", "args": {"operations": ["+", "-", "*"]}}}],
    ),
    "an unknown reward": Rule(
        ReinforcementRecipe,
        {"rewards": [{"name": "contains"}, {"name": "end"}]},
        (
            "rewards.1.name",
            "there is no reward 'end'",
            f"ended? Known are {REWARDS}; or register_reward(…) yours",
        ),
        [{"rewards": [{"name": "contains"}, {"name": "ended"}]}],
    ),
    "a reward without what it needs": Rule(
        ReinforcementRecipe,
        {"rewards": [{"name": "format"}]},
        ("rewards.0", "format needs the option 'pattern'", f"name: one of {REWARDS}, args: its own options"),
        [{"rewards": [{"name": "format", "args": {"pattern": "[0-9]+"}}]}],
    ),
    "a pattern that is none": Rule(
        ReinforcementRecipe,
        {"rewards": [{"name": "format", "args": {"pattern": "("}}]},
        (
            "rewards.0",
            "format can't take these options: pattern '(' can't be read: missing ), unterminated subpattern at position 0; "
            "write a Python pattern",
            f"name: one of {REWARDS}, args: its own options",
        ),
        [{"rewards": [{"name": "format", "args": {"pattern": r"\("}}]}],
    ),
    "one reward twice": Rule(
        ReinforcementRecipe,
        {"rewards": [{"name": "ended"}, {"name": "contains"}, {"name": "ended", "weight": 2.0}]},
        ("rewards", "the reward 'ended' is named twice", "each reward once, with the sum of the weights"),
        [{"rewards": [{"name": "contains"}, {"name": "ended", "weight": 3.0}]}],
    ),
    "one completion of a problem": Rule(
        ReinforcementRecipe,
        {"group_size": 1, "groups_per_batch": 16},
        ("group_size", "must be at least 2, got 1", "group_size: 2"),
        [{"group_size": 2}],
    ),
    "tokens weighed where the loss weighs sequences": Rule(
        ReinforcementRecipe,
        {"loss_type": "luspo"},
        ("importance_level", "must be sequence for luspo", "importance_level: sequence"),
        [{"importance_level": "sequence"}],
    ),
    "sequences weighed twice": Rule(
        ReinforcementRecipe,
        {"loss_type": "vespo", "importance_level": "sequence"},
        ("importance_level", "must be token for vespo, which weighs sequences itself", "importance_level: token"),
        [{"importance_level": "token"}],
    ),
    "options of an engine that isn't chosen": Rule(
        ReinforcementRecipe,
        {"generation": {"options": {"mode": "colocate"}}},
        ("generation.options", "are vllm's, and the engine is transformers", "generation: {engine: vllm}"),
        [{"generation": {"engine": "vllm", "options": {"mode": "colocate"}}}, {"generation": {}}],
    ),
    "an evaluation of problems without answers": Rule(
        ReinforcementRecipe,
        {"evaluations": [{"name": "own", "dataset": "held_out"}]},
        (
            "evaluations.0.dataset",
            "is held_out, whose problems the environment scores by itself (held_out/reward)",
            "a data set with answers; or name: held_out, which says how many problems are measured at a time",
        ),
        [
            {"evaluations": [{"name": "own", "dataset": "answers.jsonl"}]},
            {"evaluations": [{"name": "held_out", "dataset": "held_out"}]},
        ],
    ),
    "no teacher": Rule(
        DistillationRecipe,
        {"teacher": " "},
        (
            "teacher",
            "no teacher is named",
            "teacher: a local folder or a hub id, or teacher_from: another recipe, in the recipe's file",
        ),
        [{"teacher": "org/large"}],
    ),
    "on policy without chance": Rule(
        DistillationRecipe,
        {"mode": "on_policy", "temperature": 0.0},
        ("temperature", "is 0, and on_policy samples", "temperature: 1.0"),
        [{"temperature": 1.0}, {"mode": "sequence"}, {"mode": "logit"}],
    ),
}

UNEVEN: dict[str, tuple[dict[str, int], str, str]] = {
    "one step to the batch": (
        {"batch_size": 24},
        "24 x gradient_accumulation_steps 1 is 24 completions, and groups_per_batch 4 x group_size 8 is 32",
        "batch_size: 32, or groups_per_batch: 3, or group_size: 6",
    ),
    "several passes": (
        {"batch_size": 10, "gradient_accumulation_steps": 2, "group_size": 4},
        "10 x gradient_accumulation_steps 2 is 20 completions, and groups_per_batch 4 x group_size 4 is 16",
        "batch_size: 8, or groups_per_batch: 5, or group_size: 5",
    ),
    "passes that could be fewer": (
        {"batch_size": 8, "gradient_accumulation_steps": 3},
        "8 x gradient_accumulation_steps 3 is 24 completions, and groups_per_batch 4 x group_size 8 is 32",
        "gradient_accumulation_steps: 4, or groups_per_batch: 3, or group_size: 6",
    ),
    "groups of one are none": (
        {"batch_size": 5, "groups_per_batch": 5, "group_size": 2, "gradient_accumulation_steps": 1},
        "5 x gradient_accumulation_steps 1 is 5 completions, and groups_per_batch 5 x group_size 2 is 10",
        "batch_size: 10, or gradient_accumulation_steps: 2",
    ),
    "nothing fits by one field": (
        {"batch_size": 7, "gradient_accumulation_steps": 5, "groups_per_batch": 3, "group_size": 4},
        "7 x gradient_accumulation_steps 5 is 35 completions, and groups_per_batch 3 x group_size 4 is 12",
        "groups_per_batch: 9, batch_size: 36, gradient_accumulation_steps: 1",
    ),
}
"""Batches that the groups don't fill."""
