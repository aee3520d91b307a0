"""Sampling many prompts at once, and remembering with what log-probability each token came."""

from collections.abc import Sequence

from kitchen_resources.environments.rollouts import Rollout
from kitchen_resources.formulas.seeds import derived_seed
from kitchen_resources.training.port import ModelInput, SampledSequence, SamplingParams, TrainingClient


class Sampler:
    """Samples one continuation of each context; all requests are sent before the first is waited for.

    Args:
        client: Samples by its weights of this moment.
        max_tokens: Longest continuation.
        temperature: Of sampling.
        stop: Tokens at which one ends.
        seed: Of this draw; contexts that are asked several times get other numbers each time.
    """

    def __init__(
        self, client: TrainingClient, *, max_tokens: int, temperature: float, stop: Sequence[int], seed: int
    ) -> None:
        self._client = client
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._stop = list(stop)
        self._seed = seed
        self._turns = 0
        self._logprobs: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}

    def __call__(self, contexts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The tokens of one continuation of each context."""
        return [list(sequence.tokens) for sequence in self.sequences(contexts)]

    def sequences(self, contexts: Sequence[Sequence[int]]) -> list[SampledSequence]:
        """One continuation of each context. Equal contexts are one request for several."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, context in enumerate(contexts):
            places.setdefault(tuple(context), []).append(place)
        params = SamplingParams(
            max_tokens=self._max_tokens,
            temperature=self._temperature,
            stop=self._stop,
            seed=derived_seed(self._seed, self._turns),
        )
        self._turns += 1
        asked = {
            context: self._client.sample(ModelInput(list(context)), len(wanted), params)
            for context, wanted in places.items()
        }
        found: dict[int, SampledSequence] = {}
        for context, wanted in places.items():
            for place, sequence in zip(wanted, asked[context].result(), strict=True):
                found[place] = sequence
                self._logprobs[context, tuple(sequence.tokens)] = list(sequence.logprobs)
        return [found[place] for place in range(len(contexts))]

    def logprobs_of(self, rollout: Rollout) -> list[float]:
        """Log-probability of each token of a rollout's completion as it was sampled; 0 for the environment's tokens."""
        tokens, mask = list(rollout.completion_ids), list(rollout.mask)
        found: list[float] = []
        while len(found) < len(tokens):
            start = len(found)
            if not mask[start]:
                found.append(0.0)
                continue
            end = next((place for place in range(start, len(mask)) if not mask[place]), len(mask))
            context = (*rollout.prompt_ids, *tokens[:start])
            found += self._logprobs[context, tuple(tokens[start:end])]
        return found
