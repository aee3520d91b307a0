"""Sampling with log-probabilities, over a key-value cache: many prompts in one batch, each with random numbers of its own."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kitchen_resources.digests import digest_json
from kitchen_resources.training.port import ModelInput, SampledSequence, SamplingParams

if TYPE_CHECKING:
    import torch


@dataclass
class _Row:
    """A continuation under way."""

    params: SamplingParams
    chance: random.Random
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def stopped(self) -> bool:
        return bool(self.tokens) and self.tokens[-1] in self.params.stop

    @property
    def done(self) -> bool:
        return self.stopped or len(self.tokens) >= self.params.max_tokens

    def take(self, token: int, logprob: float) -> None:
        if not self.done:
            self.tokens.append(token)
            self.logprobs.append(logprob)

    def sequence(self) -> SampledSequence:
        return SampledSequence(self.tokens, self.logprobs, "stop" if self.stopped else "length")


@dataclass(frozen=True)
class SampleRequest:
    """So many continuations of one prompt."""

    prompt: ModelInput
    count: int
    params: SamplingParams

    def rows(self) -> list[_Row]:
        """Its continuations, each with a generator that follows from seed, prompt and number alone."""
        return [
            _Row(self.params, random.Random(digest_json([self.params.seed, index, list(self.prompt.tokens)])))
            for index in range(self.count)
        ]


def sample(
    model: Any, requests: Sequence[SampleRequest], *, pad_token_id: int, rows_at_a_time: int
) -> list[list[SampledSequence]]:
    """Sample what some requests ask for.

    Args:
        model: A causal language model in evaluation mode.
        requests: What is asked for.
        pad_token_id: Filler of short prompts.
        rows_at_a_time: Continuations in one batch. Which ones share a batch moves the last bits of their logits.

    Returns:
        The continuations of each request, in order. Log-probabilities are the model's own, whatever the temperature.
    """
    rows = [request.rows() for request in requests]
    waiting = [(request.prompt, row) for request, made in zip(requests, rows, strict=True) for row in made]
    # Of prompts of like length little of a batch is filler.
    waiting.sort(key=lambda pair: len(pair[0].tokens))
    for start in range(0, len(waiting), rows_at_a_time):
        _run(model, waiting[start : start + rows_at_a_time], pad_token_id)
    return [[row.sequence() for row in made] for made in rows]


def _run(model: Any, batch: Sequence[tuple[ModelInput, _Row]], pad_token_id: int) -> None:
    """Sample one batch to its end."""
    import torch

    rows = [row for _, row in batch]
    if all(row.done for row in rows):
        return
    # A prompt is read once, however many continuations it has.
    prompts = list({id(prompt): list(prompt.tokens) for prompt, _ in batch}.values())
    places = {name: place for place, name in enumerate(dict.fromkeys(id(prompt) for prompt, _ in batch))}
    longest = max(len(prompt) for prompt in prompts)
    fill = [longest - len(prompt) for prompt in prompts]
    device = model.device
    tokens = torch.tensor([[pad_token_id] * n + p for n, p in zip(fill, prompts, strict=True)], device=device)
    mask = torch.tensor([[0] * n + [1] * (longest - n) for n in fill], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    expand = torch.tensor([places[id(prompt)] for prompt, _ in batch], device=device)
    cache = out.cache
    cache.batch_select_indices(expand)
    logits, mask, position = out.logits[expand, -1], mask[expand], positions[expand, -1:]
    while True:
        chosen = _choose(logits.float(), rows)
        if all(row.done for row in rows):
            return
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
        position = position + 1
        out = model(
            input_ids=chosen,
            attention_mask=mask,
            position_ids=position,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, logits = out.cache, out.logits[:, -1]


def _choose(logits: "torch.Tensor", rows: Sequence[_Row]) -> "torch.Tensor":
    """The next token of each row, shape (rows, 1), by inverting its cumulative distribution at its next random number."""
    import torch

    logprobs = logits.log_softmax(-1)
    heat = torch.tensor([row.params.temperature or 1.0 for row in rows], device=logits.device).unsqueeze(-1)
    cumulative = (logits / heat).double().softmax(-1).cumsum(-1)
    # 32 bits: a number of 53 could round to the whole mass, behind which there is no token.
    drawn = [row.chance.getrandbits(32) / 2**32 for row in rows]
    below = torch.tensor(drawn, dtype=torch.float64, device=logits.device).unsqueeze(-1) * cumulative[:, -1:]
    greedy = torch.tensor([row.params.temperature == 0 for row in rows], device=logits.device).unsqueeze(-1)
    token = torch.where(greedy, logits.argmax(-1, keepdim=True), torch.searchsorted(cumulative, below, right=True))
    chosen = logprobs.gather(-1, token)
    for row, number, logprob in zip(rows, token[:, 0].tolist(), chosen[:, 0].tolist(), strict=True):
        row.take(number, logprob)
    return token
