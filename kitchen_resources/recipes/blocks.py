"""The nested blocks of a recipe: LoRA, evaluations, row limits, the promotion rule."""

from typing import Any, Dict, List, Literal, Optional

import dagster as dg
from pydantic import ConfigDict

from kitchen_resources.recipes.fields import recipe_field

HARNESS = "lm_eval"
"""The scorer of an evaluation whose rows and score are a task of lm-evaluation-harness."""


class Block(dg.Config):
    """Fields of a recipe that belong together; an unknown one is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class LoraConfig(Block):
    """Low-rank adaptation (Hu et al. 2021): train a low-rank update and leave the base frozen."""

    rank: int = recipe_field(16, "Rank of the update.", moves="weights", minimum=1, maximum=4096)
    alpha: int = recipe_field(32, "Scale: the update is multiplied by alpha / rank.", moves="weights", minimum=1)
    dropout: float = recipe_field(
        0.0, "Dropout on the adapter's input while training.", moves="weights", minimum=0, below=1
    )
    target_modules: List[str] = recipe_field(
        ["all-linear"],
        "Names of the modules to adapt, or [all-linear]: every linear layer but the output head.",
        moves="weights",
        unordered=True,
    )
    rslora: bool = recipe_field(False, "Scale by alpha / sqrt(rank) instead (rank-stabilised).", moves="weights")


class EvaluationConfig(Block):
    """One evaluation: the rows, how an answer is scored, and how much of it to do."""

    name: str = recipe_field("held_out", "Name under which its metrics are reported.", moves="nothing")
    dataset: str = recipe_field(
        "held_out",
        "`held_out` (the recipe's own split), or a file, folder, hub id or procedural set like `dataset`.",
        moves="nothing",
    )
    split: str = recipe_field("train", "Split to read, when `dataset` has several.", moves="nothing")
    columns: Dict[str, str] = recipe_field(
        {}, "Names of its columns, {ours: theirs}, like the recipe's `columns`.", moves="nothing"
    )
    scorer: str = recipe_field(
        "exact_match",
        "Registered name of the scorer: exact_match, contains, regex, numeric, token_f1, judge, lm_eval, or your own.",
        moves="nothing",
    )
    scorer_args: Dict[str, Any] = recipe_field({}, "Options of the scorer.", moves="nothing")
    samples: Optional[int] = recipe_field(
        None, "Evaluate at most this many rows (the first ones); null for all.", moves="nothing", minimum=1
    )
    max_tokens: int = recipe_field(128, "Longest answer to generate, in tokens.", moves="nothing", minimum=1)
    batch_size: int = recipe_field(64, "Answers generated at a time.", moves="nothing", minimum=1)


class RowLimits(Block):
    """The share of rows, from 0 to 1, at which each kind of finding blocks training. Findings below it are reported.

    Rows that are invalid or train nothing are never trained on: the share only decides whether the others are.
    """

    invalid: float = recipe_field(
        0.0, "Rows with a wrong type, role or shape.", moves="nothing", minimum=0, maximum=1
    )
    untrained: float = recipe_field(
        0.0, "Rows in which no token would be trained.", moves="nothing", minimum=0, maximum=1
    )
    truncated: float = recipe_field(
        0.1, "Rows longer than `max_length`, which are cut.", moves="nothing", minimum=0, maximum=1
    )
    duplicates: float = recipe_field(
        0.5, "Rows that repeat an earlier row exactly.", moves="nothing", minimum=0, maximum=1
    )
    overlap: float = recipe_field(
        0.0, "Held-out rows whose prompt is also trained on.", moves="nothing", minimum=0, maximum=1
    )
    near_duplicates: float = recipe_field(
        0.5,
        "Rows, held-out ones too, that nearly repeat an earlier one: four fifths of both, by runs of five words.",
        moves="nothing",
        minimum=0,
        maximum=1,
    )
    contaminated: float = recipe_field(
        0.0,
        "Training rows that hold a question of an evaluation's own data set, or 13 words of one of its rows.",
        moves="nothing",
        minimum=0,
        maximum=1,
    )
    template_drift: float = recipe_field(
        0.0,
        "Conversations whose last answer is learned after other tokens than a server gives the model.",
        moves="nothing",
        minimum=0,
        maximum=1,
    )


class PromotionRule(Block):
    """When `<recipe>_promote` may move the `production` alias to a version.

    Part of a recipe's definition and not of its launch config, so that no launch overrides it. What it is measured on
    may differ from launch to launch, and is recorded with each version.
    """

    metric: str = recipe_field("held_out/loss", "Metric that decides: <evaluation>/<metric>.", moves="nothing")
    minimum: Optional[float] = recipe_field(
        None, "Refuse a version whose metric is worse than this.", moves="nothing"
    )
    better_than: Literal["base", "production", "nothing"] = recipe_field(
        "base",
        "Refuse a version that isn't better than the base, or than what is in production.",
        moves="nothing",
    )
    by: Literal["value", "interval"] = recipe_field(
        "value",
        "Compare values; or 95 % intervals, by their unfavourable ends: better is what the intervals keep apart.",
        moves="nothing",
    )
    automatic: bool = recipe_field(
        False, "Whether a sensor runs the promotion job for each new candidate.", moves="nothing"
    )
