"""Reinforcement learning: groups of episodes by the weights of the moment, centred rewards, the clipped surrogate."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from kitchen_resources.environments.rollouts import Rollout
from kitchen_resources.formulas.advantages import group_centered
from kitchen_resources.formulas.seeds import derived_seed
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.training.episodes import Episodes, episode_measures
from kitchen_resources.training.loops.data import per_token, shifted, trained_tokens
from kitchen_resources.training.loops.frame import Batch, Epoch, StepDone, optim_step, step_done
from kitchen_resources.training.loops.sampling import Sampler
from kitchen_resources.training.loops.stages import batch_stages
from kitchen_resources.training.port import Datum, ForwardBackwardResult, ModelInput, TrainingClient

ALGORITHM_VERSION = 1
"""Raised by hand when this loop's arithmetic changes."""


def train(epoch: Epoch) -> Iterator[StepDone]:
    """Train a block of rollouts, one optimiser step at a time."""
    recipe = epoch.recipe
    assert isinstance(recipe, ReinforcementRecipe)
    episodes: Episodes = epoch.lives.setdefault("episodes", None) or Episodes(epoch.job)
    epoch.lives["episodes"] = episodes
    episodes.start(epoch.number)
    gradients_of, move = batch_stages(recipe.definition.batch_stages, forward_backward, optim_step)
    for draw in epoch.draws():
        sampler = Sampler(
            epoch.client,
            max_tokens=recipe.max_tokens,
            temperature=recipe.temperature,
            stop=epoch.job.data.stop_token_ids,
            seed=derived_seed(recipe.seed, draw[0].step),
        )
        rollouts = episodes.roll_out(draw[0].rows, sampler, epoch.clients.longest_prompt())
        advantages, measured = _advantages(rollouts, recipe)
        data = [_datum(rollout, advantages[place], sampler) for place, rollout in enumerate(rollouts)]
        if recipe.kl_coef:
            data, penalty = _penalized(data, _base(epoch), recipe.kl_coef)
            measured.update(penalty)
        # A group whose rewards are all the same teaches nothing.
        data = [datum for datum in data if any(datum.loss_fn_inputs["advantages"])] or data
        measured.update(episode_measures(rollouts))
        lines = episodes.lines(rollouts)
        for batch in draw:
            gradients = gradients_of(epoch, batch, data)
            moved = move(epoch, batch)
            yield step_done(
                batch,
                gradients.result(),
                moved.result(),
                tokens=trained_tokens(data),
                extra=measured,
                lines=lines if batch is draw[0] else (),
            )


def forward_backward(epoch: Epoch, batch: Batch, data: Sequence[Datum]) -> "Future[ForwardBackwardResult]":
    """Submit the gradients of a draw's episodes, by the recipe's clipped loss."""
    recipe = epoch.recipe
    assert isinstance(recipe, ReinforcementRecipe)
    return epoch.client.forward_backward(per_token(data, "advantages"), _loss(recipe), _settings(recipe))


def _advantages(rollouts: Sequence[Rollout], recipe: ReinforcementRecipe) -> tuple[list[float], dict[str, float]]:
    """The centred reward of each episode, and what is logged of them; 0 for one that failed."""
    advantages = [0.0] * len(rollouts)
    constant = 0
    groups: dict[Any, list[int]] = {}
    for place, rollout in enumerate(rollouts):
        if rollout.reward is not None:
            groups.setdefault(rollout.group, []).append(place)
    for places in groups.values():
        rewards = [reward for place in places if (reward := rollouts[place].reward) is not None]
        centred = group_centered(rewards)
        constant += max(rewards) == min(rewards)
        deviation = (sum(value * value for value in centred) / max(1, len(centred) - 1)) ** 0.5
        scale = deviation + 1e-4 if recipe.scale_rewards == "group" else 1.0
        for place, value in zip(places, centred, strict=True):
            advantages[place] = value / scale
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    mean = sum(rewards) / len(rewards) if rewards else 0.0
    return advantages, {"reward": mean, "constant_groups": constant / max(1, len(groups))}


def _datum(rollout: Rollout, advantage: float, sampler: Sampler) -> Datum:
    """An episode: its sampled tokens share its advantage."""
    prompt, answer = list(rollout.prompt_ids), list(rollout.completion_ids)
    sampled = [False] * len(prompt) + [bool(flag) for flag in rollout.mask]
    logprobs = [0.0] * len(prompt) + sampler.logprobs_of(rollout)
    datum = shifted([*prompt, *answer], sampled)
    given = {
        "logprobs": logprobs[1:],
        "advantages": [advantage * weight for weight in datum.loss_fn_inputs["weights"]],
    }
    return Datum(datum.model_input, {**datum.loss_fn_inputs, **given})


def _base(epoch: Epoch) -> TrainingClient:
    """The base, which the policy is kept near to; opened once a session."""
    if "base" not in epoch.lives:
        epoch.lives["base"] = epoch.clients.frozen("reference")
    client: TrainingClient = epoch.lives["base"]
    return client


def _penalized(
    data: Sequence[Datum], base: TrainingClient, coefficient: float
) -> tuple[list[Datum], dict[str, float]]:
    """The data with the divergence from the base in each token's advantage.

    With `d` the log-ratio of the base to the policy, the divergence is estimated as `exp(d) - d - 1` (Schulman 2020), as
    TRL's loss has it. Its gradient is `1 - exp(d)` times that of the log-probability, so that much is taken away.
    """
    whole = [
        ModelInput([datum.model_input.tokens[0], *map(int, datum.loss_fn_inputs["target_tokens"])]) for datum in data
    ]
    asked = [base.compute_logprobs(tokens) for tokens in whole]
    penalized, divergence = [], 0.0
    for datum, future in zip(data, asked, strict=True):
        given = datum.loss_fn_inputs
        ratios = [
            (reference or 0.0) - policy if weight else 0.0
            for policy, reference, weight in zip(
                given["logprobs"], future.result()[1:], given["weights"], strict=True
            )
        ]
        divergence += sum(math.exp(ratio) - ratio - 1.0 for ratio in ratios)
        advantages = [
            advantage - coefficient * (1.0 - math.exp(ratio))
            for advantage, ratio in zip(given["advantages"], ratios, strict=True)
        ]
        penalized.append(Datum(datum.model_input, {**given, "advantages": advantages}))
    return penalized, {"kl": divergence / max(1, trained_tokens(data))}


def _loss(recipe: ReinforcementRecipe) -> str:
    return "cispo" if recipe.loss_type == "cispo" else "ppo"


def _settings(recipe: ReinforcementRecipe) -> dict[str, float]:
    high = recipe.clip_epsilon_high or recipe.clip_epsilon
    if recipe.loss_type == "cispo":
        return {"clip_low_threshold": 0.0, "clip_high_threshold": 1.0 + high}
    return {"clip_low_threshold": 1.0 - recipe.clip_epsilon, "clip_high_threshold": 1.0 + high}
