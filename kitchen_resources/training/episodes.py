"""The episodes of an epoch: what a run asks of its environment, whatever samples the answers."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kitchen_resources.environments.pool import EnvironmentPool
from kitchen_resources.environments.rollouts import GroupRequest, Rollout, Sample, episode_seed, run_groups
from kitchen_resources.errors import EpisodesFailed
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.training.port import TrainingJob

_TRANSCRIBED = 64
"""Episodes of an epoch that are kept beside its checkpoint."""


class Episodes:
    """Rolls out draws of a reinforcement job; its environments run in processes that live as long as this does.

    Attributes:
        renderer: How its conversations are written in tokens.
    """

    def __init__(self, job: TrainingJob) -> None:
        from kitchen_resources.datasets.renderers import renderer_of

        recipe = job.recipe
        assert isinstance(recipe, ReinforcementRecipe)
        self._job = job
        self._recipe = recipe
        self.renderer = renderer_of(job.base, job.data.extra.get("template"))
        self._dialogue = self.renderer.dialogue()
        self._pool = EnvironmentPool(
            recipe.environment_spec(),
            workers=recipe.environment.workers,
            time_limit_s=recipe.environment.time_limit_s,
        )
        self._epoch = self._draw = 0
        self._failed: list[str] = []

    def start(self, epoch: int) -> None:
        """Begin an epoch."""
        self._epoch, self._draw, self._failed = epoch, 0, []

    def roll_out(self, rows: Sequence[Mapping[str, Any]], sample: Sample, max_context: int | None) -> list[Rollout]:
        """The episodes of one draw, a group for each row.

        Raises:
            EpisodesFailed: More of the epoch's episodes have failed than the recipe allows.
        """
        groups = [self._group(row, place) for place, row in enumerate(rows)]
        self._draw += 1
        rollouts = run_groups(
            self._pool,
            groups,
            sample,
            self._dialogue,
            max_turns=self._recipe.environment.max_turns,
            max_context=max_context,
        )
        self._require_few_failures(rollouts)
        return rollouts

    def lines(self, rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
        """Some of a draw's episodes, for people: so many that those of an epoch stay few."""
        room = max(1, _TRANSCRIBED // self._recipe.steps_per_epoch)
        shown = rollouts[:room]
        prompts = self.renderer.tokenizer.batch_decode([rollout.prompt_ids for rollout in shown])
        return [
            {"prompt": prompt, **_line(rollout, self._epoch, self._draw)}
            for prompt, rollout in zip(prompts, shown, strict=True)
        ]

    def close(self) -> None:
        """End the environments; may be called twice."""
        self._pool.close()

    def _group(self, row: Mapping[str, Any], place: int) -> GroupRequest:
        recipe = self._recipe
        group = self._draw * recipe.groups_per_batch + place
        seeds = [episode_seed(recipe.seed, self._epoch, group, sample) for sample in range(recipe.group_size)]
        return GroupRequest(f"{self._epoch}/{group}", json.loads(row["problem"]), row["prompt_ids"], seeds)

    def _require_few_failures(self, rollouts: list[Rollout]) -> None:
        """Stop where more of the epoch's episodes have failed than the recipe allows, done or not."""
        self._failed += [f"{r.failure.kind}: {r.failure.message}" for r in rollouts if r.failure is not None]
        draws = self._recipe.draws(self._job.plan.rows)
        episodes = draws.prompts * draws.count * self._recipe.group_size
        if len(self._failed) > self._recipe.environment.max_failed * episodes:
            raise EpisodesFailed(
                f"{len(self._failed)} of the {episodes} episodes of an epoch have failed, and max_failed is "
                f"{self._recipe.environment.max_failed:g}; the last with {self._failed[-1]}",
                where=f"environment {self._recipe.environment.name}, epoch {self._epoch}",
                fix="correct the environment or its time_limit_s; nothing of this epoch was published",
            )


def episode_measures(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Numbers of a draw: failed episodes, and of the others the share solved, turns, and the mean of each reward."""
    scored = [rollout for rollout in rollouts if rollout.failure is None]
    found = {"failed_episodes": float(len(rollouts) - len(scored))}
    if scored:
        found["solved"] = sum(rollout.solved for rollout in scored) / len(scored)
        found["turns"] = sum(len(rollout.turns) for rollout in scored) / len(scored)
    for name in sorted({name for rollout in scored for name in rollout.rewards}):
        values = [rollout.rewards[name] for rollout in scored if name in rollout.rewards]
        found[f"reward/{name}"] = math.fsum(values) / len(values)
    return found


def _line(rollout: Rollout, epoch: int, draw: int) -> dict[str, Any]:
    """An episode as one line of the transcript."""
    return {
        "epoch": epoch,
        "draw": draw,
        "group": rollout.group,
        "sample": rollout.sample,
        "turns": [dict(turn) for turn in rollout.turns],
        "reward": rollout.reward,
        "rewards": dict(rollout.rewards),
        "solved": rollout.solved,
        "failure": f"{rollout.failure.kind}: {rollout.failure.message}" if rollout.failure else None,
    }
