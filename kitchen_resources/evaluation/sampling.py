"""Sampling completions so that each depends on its context and the seed alone, and not on the batch it is made in."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kitchen_resources.digests import digest_json


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled.

    Attributes:
        temperature: What the logits are divided by; 0 takes the likeliest token.
        top_p: Only the most likely tokens of this mass; 1 for all.
        top_k: Only so many most likely tokens; 0 for all.
        max_tokens: Longest completion.
        stop_token_ids: Where one ends.
        pad_token_id: Filler of short rows.
        batch_size: Rows at a time.
        seed: What the random numbers come from.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop_token_ids: Sequence[int]
    pad_token_id: int
    batch_size: int
    seed: str

    def spec(self) -> dict[str, Any]:
        """What moves the completions."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_tokens": self.max_tokens,
            "stop_token_ids": list(self.stop_token_ids),
            "seed": self.seed,
        }


class Sampler:
    """Samples from a model.

    A completion takes one random number a token, of a generator of its own that is seeded by the context and by how often
    that context was asked before. So neither the order of the contexts nor the size of the batches moves it (but for the
    last bits of a logit), and two models are compared by the same numbers.

    Args:
        model: The model, in evaluation mode.
        sampling: How.
    """

    def __init__(self, model: Any, sampling: Sampling) -> None:
        self._model = model
        self._sampling = sampling
        self._asked: Counter[tuple[int, ...]] = Counter()

    def __call__(self, contexts: Sequence[Sequence[int]]) -> list[list[int]]:
        """A completion for each context, up to and with its stop token."""
        generators = [self._generator(context) for context in contexts]
        order = sorted(range(len(contexts)), key=lambda index: len(contexts[index]))
        completions: list[list[int]] = [[] for _ in contexts]
        for start in range(0, len(order), self._sampling.batch_size):
            indices = order[start : start + self._sampling.batch_size]
            made = self._generate([contexts[index] for index in indices], [generators[index] for index in indices])
            for index, tokens in zip(indices, made, strict=True):
                completions[index] = tokens
        return completions

    def _generator(self, context: Sequence[int]) -> random.Random:
        asked = tuple(context)
        self._asked[asked] += 1
        return random.Random(digest_json([self._sampling.seed, self._asked[asked], asked]))

    def _generate(self, contexts: Sequence[Sequence[int]], generators: Sequence[random.Random]) -> list[list[int]]:
        sampling = self._sampling
        output = generate(
            self._model,
            contexts,
            max_tokens=sampling.max_tokens,
            stop_token_ids=sampling.stop_token_ids,
            pad_token_id=sampling.pad_token_id,
            # What is drawn is left as the only choice.
            logits_processor=[_Draw(sampling, generators)] if sampling.temperature else [],
        )
        return [self._cut(tokens) for tokens in output]

    def _cut(self, tokens: list[int]) -> list[int]:
        ends = [tokens.index(stop) for stop in self._sampling.stop_token_ids if stop in tokens]
        return tokens[: min(ends) + 1] if ends else tokens


class _Draw:
    """Draws the next token of each row, by inverting its cumulative distribution at the row's next random number."""

    def __init__(self, sampling: Sampling, generators: Sequence[random.Random]) -> None:
        self._generators = generators
        self._warpers = _warpers(sampling)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores of which only the drawn token's is finite. Shape [rows, vocabulary]."""
        import torch

        scores = scores.float()
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        cumulative = scores.double().softmax(-1).cumsum(-1)
        # 32 bits: a number of 53 could round to the whole mass, behind which there is no token.
        drawn = [generator.getrandbits(32) / 2**32 for generator in self._generators]
        below = torch.tensor(drawn, dtype=torch.float64, device=scores.device).unsqueeze(-1) * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, below, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


def generate(
    model: Any,
    contexts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    stop_strings: Sequence[str] = (),
    **others: Any,
) -> list[list[int]]:
    """The likeliest completion of each context, in one batch, whatever the model's own generation_config.json says.

    Args:
        model: The model, in evaluation mode.
        contexts: Token ids.
        max_tokens: Longest completion.
        stop_token_ids: Where one ends.
        pad_token_id: Filler of short rows.
        stop_strings: Texts where one ends; they need `tokenizer`.
        others: For `model.generate`.

    Returns:
        Token ids behind each context, with whatever the batch has behind their end.
    """
    import torch
    from transformers import GenerationConfig

    longest = max(len(context) for context in contexts)
    fill = [longest - len(context) for context in contexts]
    ids = [[pad_token_id] * n + list(context) for n, context in zip(fill, contexts, strict=True)]
    mask = [[0] * n + [1] * (longest - n) for n in fill]
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_tokens,
        eos_token_id=list(stop_token_ids) or None,
        pad_token_id=pad_token_id,
        repetition_penalty=1.0,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        stop_strings=list(stop_strings) or None,
    )
    output = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=settings,
        **others,
    )
    return [row[longest:].tolist() for row in output]


def longest_prompt(model: Any, max_tokens: int) -> int | None:
    """Tokens of a prompt behind which the model can write a whole completion; None where its config has no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions - max_tokens if isinstance(positions, int) else None


def _warpers(sampling: Sampling) -> list[Any]:
    """What transformers itself makes of these settings, in its order."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers: list[Any] = []
    if sampling.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers
