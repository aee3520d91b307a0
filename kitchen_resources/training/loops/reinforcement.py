"""Reinforcement learning: groups of episodes by the weights of the moment, centred rewards, the clipped surrogate."""

from collections.abc import Iterator, Sequence
from typing import Any

from kitchen_resources.environments.rollouts import Rollout
from kitchen_resources.formulas.advantages import group_centered
from kitchen_resources.formulas.seeds import derived_seed
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.training.episodes import Episodes, episode_measures
from kitchen_resources.training.loops.data import per_token, shifted, trained_tokens
from kitchen_resources.training.loops.frame import Epoch, StepDone, step_done
from kitchen_resources.training.loops.sampling import Sampler
from kitchen_resources.training.port import Datum, ModelInput, TrainingClient

ALGORITHM_VERSION = 1
"""Raised by hand when this loop's arithmetic changes."""


def train(epoch: Epoch) -> Iterator[StepDone]:
    """Train a block of rollouts, one optimiser step at a time."""
    recipe = epoch.recipe
    assert isinstance(recipe, ReinforcementRecipe)
    episodes: Episodes = epoch.lives.setdefault("episodes", None) or Episodes(epoch.job)
    epoch.lives["episodes"] = episodes
    episodes.start(epoch.number)
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
        data = [datum for datum in data if any(datum.loss_fn_inputs["advantages"])] or data
        if recipe.kl_coef:
            data, penalty = _penalized(data, _base(epoch), recipe.kl_coef)
            measured.update(penalty)
        measured.update(episode_measures(rollouts))
        lines = episodes.lines(rollouts)
        for batch in draw:
            sent = per_token(data, "advantages")
            gradients = epoch.client.forward_backward(sent, _loss(recipe), _settings(recipe))
            moved = epoch.client.optim_step(epoch.adam(batch))
            yield step_done(
                batch,
                gradients.result(),
                moved.result(),
                tokens=trained_tokens(data),
                extra=measured,
                lines=lines if batch is draw[0] else (),
            )


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
    """The data with the divergence from the base taken from each token's advantage, centred over the batch."""
    whole = [
        ModelInput([datum.model_input.tokens[0], *map(int, datum.loss_fn_inputs["target_tokens"])]) for datum in data
    ]
    asked = [base.compute_logprobs(tokens) for tokens in whole]
    distances = [
        [
            (policy - (reference or 0.0)) * weight
            for policy, reference, weight in zip(
                datum.loss_fn_inputs["logprobs"],
                future.result()[1:],
                datum.loss_fn_inputs["weights"],
                strict=True,
            )
        ]
        for datum, future in zip(data, asked, strict=True)
    ]
    mean = sum(map(sum, distances)) / max(1, trained_tokens(data))
    penalized = [
        Datum(
            datum.model_input,
            {
                **datum.loss_fn_inputs,
                "advantages": [
                    advantage + coefficient * (mean - distance) * weight
                    for advantage, distance, weight in zip(
                        datum.loss_fn_inputs["advantages"], row, datum.loss_fn_inputs["weights"], strict=True
                    )
                ],
            },
        )
        for datum, row in zip(data, distances, strict=True)
    ]
    return penalized, {"kl": mean}


def _loss(recipe: ReinforcementRecipe) -> str:
    return "cispo" if recipe.loss_type == "cispo" else "ppo"


def _settings(recipe: ReinforcementRecipe) -> dict[str, float]:
    high = recipe.clip_epsilon_high or recipe.clip_epsilon
    if recipe.loss_type == "cispo":
        return {"clip_low_threshold": 0.0, "clip_high_threshold": 1.0 + high}
    return {"clip_low_threshold": 1.0 - recipe.clip_epsilon, "clip_high_threshold": 1.0 + high}
