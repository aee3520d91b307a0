"""What a model gets done: episodes of held-out problems in an environment."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from kitchen_resources.environments.options import identity_of
from kitchen_resources.environments.pool import EnvironmentPool
from kitchen_resources.environments.port import EnvironmentFailure, EnvironmentSpec
from kitchen_resources.environments.registry import OWN_COMPONENT
from kitchen_resources.environments.rollouts import Dialogue, GroupRequest, Rollout, episode_seed, run_groups
from kitchen_resources.errors import EvaluationError
from kitchen_resources.evaluation.local import SAMPLES
from kitchen_resources.evaluation.port import EvaluationResult, LoadedModel, Measure
from kitchen_resources.evaluation.sampling import Sampler, Sampling, longest_prompt
from kitchen_resources.formulas.metrics import mean_interval, pass_at_k

_BLOCK = -1
"""In the place of a block of rollouts: no episode of an evaluation has the seed of one that is trained on."""


@dataclass(frozen=True)
class HeldOutProblem:
    """A problem to evaluate.

    Attributes:
        where: Its place, for people.
        problem: What is asked.
        prompt_ids: Its initial observation in tokens.
    """

    where: str
    problem: Mapping[str, Any]
    prompt_ids: list[int]


@dataclass(frozen=True)
class EpisodesTask:
    """`reward`, `pass@1` and `pass@<episodes>`, each the mean over problems of what is estimated from their episodes.

    `reward` is the environment's own, without the recipe's further rewards. A failed episode is left out, and so is a
    problem without enough scored ones: for a mean one, for pass@k k.

    Attributes:
        name: Prefix of its metrics.
        digest: Digest of its rows.
        rows: Parquet file with `where`, `prompt_ids` and `problem` (JSON).
        samples: The most problems to read, the first ones; None for all.
        environment: Where the episodes take place.
        workers: Processes in which the environment runs.
        time_limit_s: Seconds for one step of an episode.
        max_turns: Turns after which an episode is over.
        max_failed: Share of the episodes that may fail.
        episodes: Episodes of a problem.
        seed: Seed of the episodes.
        sampling: How the model's turns are sampled.
        dialogue: How turns are written in tokens.
    """

    name: str
    digest: str
    rows: Path
    samples: int | None
    environment: EnvironmentSpec
    workers: int
    time_limit_s: float
    max_turns: int
    max_failed: float
    episodes: int
    seed: int
    sampling: Sampling
    dialogue: Dialogue = field(repr=False, compare=False)

    def spec(self) -> dict[str, Any]:
        """See `Task.spec`."""
        return {
            "name": self.name,
            "measure": "episodes",
            "rows": self.digest,
            "samples": self.samples,
            "environment": identity_of(self.environment),
            "max_turns": self.max_turns,
            "episodes": self.episodes,
            "seed": self.seed,
            "sampling": self.sampling.spec(),
        }

    def measure(self, model: LoadedModel) -> EvaluationResult:
        """See `Task.measure`.

        Raises:
            EvaluationError: More than `max_failed` of the episodes failed.
        """
        problems = self._read()
        with EnvironmentPool(self.environment, workers=self.workers, time_limit_s=self.time_limit_s) as pool:
            rollouts = run_groups(
                pool,
                [self._group(index, problem) for index, problem in enumerate(problems)],
                Sampler(model.model, self.sampling),
                self.dialogue,
                max_turns=self.max_turns,
                max_context=longest_prompt(model.model, self.sampling.max_tokens),
            )
        self._require_few_failures(rollouts)
        groups = [rollouts[start : start + self.episodes] for start in range(0, len(rollouts), self.episodes)]
        scored = [[rollout for rollout in group if rollout.failure is None] for group in groups]
        return EvaluationResult(self._measures(scored), self._shown(model, problems, scored))

    def _read(self) -> list[HeldOutProblem]:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(self.rows, columns=["where", "prompt_ids", "problem"])
        return [
            HeldOutProblem(row["where"], json.loads(row["problem"]), row["prompt_ids"])
            for row in islice(table.to_pylist(), self.samples)
        ]

    def _group(self, index: int, problem: HeldOutProblem) -> GroupRequest:
        seeds = [episode_seed(self.seed, _BLOCK, index, sample) for sample in range(self.episodes)]
        return GroupRequest(index, problem.problem, problem.prompt_ids, seeds)

    def _require_few_failures(self, rollouts: Sequence[Rollout]) -> None:
        failures = [rollout.failure for rollout in rollouts if rollout.failure is not None]
        if len(failures) <= self.max_failed * len(rollouts):
            return
        raise EvaluationError(
            f"{len(failures)} of {len(rollouts)} episodes failed, and max_failed is {self.max_failed:g}: "
            f"{_counted(failures)}; the first with {failures[0].kind}: {failures[0].message}",
            where=f"evaluation {self.name}, environment {self.environment.name}",
            fix="correct the environment, or raise its time_limit_s",
        )

    def _measures(self, scored: Sequence[Sequence[Rollout]]) -> dict[str, Measure]:
        """Over the problems, of the scored episodes of each."""
        values = {
            "reward": [
                math.fsum(rollout.rewards[OWN_COMPONENT] for rollout in group) / len(group)
                for group in scored
                if group
            ]
        }
        for k in sorted({1, self.episodes}):
            values[f"pass@{k}"] = [
                pass_at_k(len(group), sum(rollout.solved for rollout in group), k)
                for group in scored
                if len(group) >= k
            ]
        return {
            f"{self.name}/{metric}": Measure(math.fsum(found) / len(found), len(found), *mean_interval(found))
            for metric, found in values.items()
            if found
        }

    def _shown(
        self, model: LoadedModel, problems: Sequence[HeldOutProblem], scored: Sequence[Sequence[Rollout]]
    ) -> list[dict[str, Any]]:
        """The first scored episode of a few problems."""
        first = [(problem, group[0]) for problem, group in zip(problems, scored, strict=True) if group]
        return [
            {
                "evaluation": self.name,
                "where": problem.where,
                "prompt": model.tokenizer.decode(problem.prompt_ids),
                "expected": "",
                "answer": _conversation(rollout),
                "score": rollout.rewards[OWN_COMPONENT],
            }
            for problem, rollout in first[:SAMPLES]
        ]


def _counted(failures: Sequence[EnvironmentFailure]) -> str:
    kinds = sorted({failure.kind for failure in failures})
    return ", ".join(f"{sum(failure.kind == kind for failure in failures)} {kind}" for kind in kinds)


def _conversation(rollout: Rollout) -> str:
    """The turns after the prompt; what the environment said is quoted."""
    said = []
    for turn in rollout.turns:
        said.append(turn["text"])
        if turn["observation"]:
            said.append("\n".join(f"> {line}" for line in turn["observation"].splitlines()))
    return "\n".join(said)
