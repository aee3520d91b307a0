"""What is measured of a recipe's held-out rows by its method, beside the recipe's own evaluations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kitchen_resources.datasets.port import PreparedSplit
from kitchen_resources.evaluation.episodes import EpisodesTask
from kitchen_resources.evaluation.pairs import PairsTask
from kitchen_resources.evaluation.port import EvaluationTask, Question, Task
from kitchen_resources.evaluation.sampling import Sampling
from kitchen_resources.evaluation.teacher import TeacherTask
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.blocks import EvaluationConfig
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe

HELD_OUT = "held_out"

METHODS_WITHOUT_ANSWERS = frozenset({ReinforcementRecipe.method})
"""Their held-out rows have no answer to compare with: the environment says what one is worth."""

METHODS_WITHOUT_LABELS = frozenset({PreferenceRecipe.method, ReinforcementRecipe.method})
"""Their held-out rows have no loss of their own."""


@dataclass(frozen=True)
class HeldOutRows:
    """The held-out rows of a launch.

    Attributes:
        split: What they are in the store.
        path: The same as a local Parquet file.
        asked: The recipe's own evaluation of them that is named as they are, if it has one.
    """

    split: PreparedSplit
    path: Path
    asked: EvaluationConfig | None

    @property
    def settings(self) -> EvaluationConfig:
        """How many rows to measure, and how many at a time."""
        return self.asked or EvaluationConfig(name=HELD_OUT)


def measures_of_method(launch: Launch, rows: HeldOutRows) -> list[Task]:
    """The tasks on held-out rows that a method has, whatever evaluations the recipe names."""
    return _TASKS.get(launch.recipe.method, _loss)(launch, rows)


def row_task(
    launch: Launch, evaluation: EvaluationConfig, digest: str, questions: list[Question], scored: Path | None
) -> EvaluationTask:
    """Questions to answer and score, and rows for the loss."""
    renderer = launch.rendering.renderer
    return EvaluationTask(
        name=evaluation.name,
        digest=digest,
        questions=questions,
        scored=scored,
        scorer=evaluation.scorer,
        scorer_args=evaluation.scorer_args,
        max_tokens=evaluation.max_tokens,
        batch_size=evaluation.batch_size,
        stop_token_ids=renderer.stop_token_ids,
        stop_strings=renderer.stop_strings,
        pad_token_id=renderer.pad_token_id,
    )


def _loss(launch: Launch, rows: HeldOutRows) -> list[Task]:
    if rows.asked is not None:
        # The loss comes with its answers.
        return []
    return [row_task(launch, rows.settings, rows.split.digest, [], rows.path)]


def _pairs(launch: Launch, rows: HeldOutRows) -> list[Task]:
    recipe = launch.recipe
    assert isinstance(recipe, PreferenceRecipe)
    return [
        PairsTask(
            name=HELD_OUT,
            digest=rows.split.digest,
            rows=rows.path,
            samples=rows.settings.samples,
            beta=recipe.beta,
            reference=launch.models.get("reference", launch.base),
            batch_size=rows.settings.batch_size,
            pad_token_id=launch.rendering.renderer.pad_token_id,
            content=launch.content,
        )
    ]


def _episodes(launch: Launch, rows: HeldOutRows) -> list[Task]:
    recipe, renderer = launch.recipe, launch.rendering.renderer
    assert isinstance(recipe, ReinforcementRecipe)
    sampling = Sampling(
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        top_k=recipe.top_k,
        max_tokens=recipe.max_tokens,
        stop_token_ids=renderer.stop_token_ids,
        pad_token_id=renderer.pad_token_id,
        batch_size=rows.settings.batch_size,
        seed=f"{recipe.seed}/{rows.split.digest}",
    )
    return [
        EpisodesTask(
            name=HELD_OUT,
            digest=rows.split.digest,
            rows=rows.path,
            samples=rows.settings.samples,
            # Its own reward alone is measured, so that recipes with other rewards compare.
            environment=replace(recipe.environment_spec(), rewards=()),
            workers=recipe.environment.workers,
            time_limit_s=recipe.environment.time_limit_s,
            max_turns=recipe.environment.max_turns,
            max_failed=recipe.environment.max_failed,
            episodes=recipe.pass_at,
            seed=recipe.seed,
            sampling=sampling,
            dialogue=renderer.dialogue(),
        )
    ]


def _teacher(launch: Launch, rows: HeldOutRows) -> list[Task]:
    teacher = TeacherTask(
        name=HELD_OUT,
        digest=rows.split.digest,
        rows=rows.path,
        teacher=launch.models["teacher"],
        batch_size=rows.settings.batch_size,
        pad_token_id=launch.rendering.renderer.pad_token_id,
    )
    return [*_loss(launch, rows), teacher]


_TASKS: Mapping[str, Callable[[Launch, HeldOutRows], list[Task]]] = {
    "preference": _pairs,
    "reinforcement": _episodes,
    "distillation": _teacher,
}
