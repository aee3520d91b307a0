"""Sampling in evaluations: the right distribution, whatever batch a completion is made in."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from kitchen_resources.evaluation.sampling import Sampler, Sampling, _Draw
from tests.tiny_models import load_plain, write_tiny_model

pytestmark = pytest.mark.heavy

SAMPLING = Sampling(
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    max_tokens=6,
    stop_token_ids=(),
    pad_token_id=256,
    batch_size=4,
    seed="seed",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_plain(write_tiny_model(tmp_path_factory.mktemp("model") / "base", scale=2.0))


def drawn_contexts(count: int = 8, seed: int = 0) -> list[list[int]]:
    """Contexts of 1 to 20 tokens; the last two are the same."""
    generator = random.Random(seed)
    contexts = [[generator.randrange(32, 127) for _ in range(generator.randrange(1, 21))] for _ in range(count - 1)]
    return [*contexts, list(contexts[-1])]


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({}, [8, 4, 2, 1, 1]),
        ({"temperature": 0.5}, [64, 16, 4, 1, 1]),
        ({"top_k": 2}, [8, 4, 0, 0, 0]),
        ({"top_p": 0.8}, [8, 4, 2, 0, 0]),
        # The temperature comes first: at 0.5 the first token alone has 74 % of the mass.
        ({"temperature": 0.5, "top_p": 0.7}, [1, 0, 0, 0, 0]),
        ({"temperature": 2.0, "top_k": 3, "top_p": 0.99}, [8**0.5, 2, 2**0.5, 0, 0]),
    ],
    ids=str,
)
def test_tokens_are_drawn_by_their_shares(changes: dict[str, Any], weights: list[float]) -> None:
    rows = 20_000
    scores = torch.log(torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0])).repeat(rows, 1)
    generators = [random.Random(row) for row in range(rows)]
    drawn = _Draw(replace(SAMPLING, **changes), generators)(None, scores)
    assert torch.isfinite(drawn).sum(-1).tolist() == [1] * rows
    counts = Counter(drawn.argmax(-1).tolist())
    for token, weight in enumerate(weights):
        share = weight / sum(weights)
        # Five standard deviations.
        assert abs(counts[token] / rows - share) <= 5 * (share * (1 - share) / rows) ** 0.5


def test_the_ends_of_the_random_numbers_draw_a_token_that_can_be() -> None:
    class Fixed(random.Random):
        def __init__(self, bits: int) -> None:
            super().__init__()
            self._bits = bits

        def getrandbits(self, k: int, /) -> int:
            return self._bits

    scores = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).repeat(2, 1)
    drawn = _Draw(SAMPLING, [Fixed(0), Fixed(2**32 - 1)])(None, scores)
    assert drawn.argmax(-1).tolist() == [1, 3]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_completion_is_the_same_in_every_batch(model: Any, batch_size: int) -> None:
    contexts = drawn_contexts()
    expected = Sampler(model, SAMPLING)(contexts)
    assert Sampler(model, replace(SAMPLING, batch_size=batch_size))(contexts) == expected
    assert all(len(tokens) == 6 for tokens in expected)
    # The same context again is another completion.
    assert len({tuple(tokens) for tokens in expected}) == 8


def test_the_order_of_the_contexts_is_of_no_matter(model: Any) -> None:
    contexts = drawn_contexts()
    forwards, backwards = Sampler(model, SAMPLING)(contexts), Sampler(model, SAMPLING)(contexts[::-1])
    assert sorted(backwards) == sorted(forwards)
    assert backwards[2:] == forwards[:6][::-1]


def test_a_sampler_goes_on_where_it_was(model: Any) -> None:
    contexts = drawn_contexts()
    sampler = Sampler(model, SAMPLING)
    assert [*sampler(contexts[:7]), *sampler(contexts[7:])] == Sampler(model, SAMPLING)(contexts)
    assert Sampler(model, replace(SAMPLING, seed="other"))(contexts) != Sampler(model, SAMPLING)(contexts)


def test_a_cold_sampler_takes_the_likeliest(model: Any) -> None:
    from transformers import GenerationConfig

    (context, *_) = drawn_contexts()
    config = GenerationConfig(do_sample=False, max_new_tokens=6, pad_token_id=256)
    ids = torch.tensor([context])
    greedy = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0].tolist()
    assert Sampler(model, replace(SAMPLING, temperature=1e-4))([context]) == [greedy[len(context) :]]


def test_a_completion_ends_with_its_stop_token(model: Any) -> None:
    contexts = drawn_contexts()
    free = Sampler(model, SAMPLING)(contexts)
    stops = (free[0][2], free[3][0])
    ends = [min((tokens.index(stop) for stop in stops if stop in tokens), default=5) for tokens in free]
    assert len(set(ends)) >= 3
    stopped = Sampler(model, replace(SAMPLING, stop_token_ids=stops))(contexts)
    assert stopped == [tokens[: end + 1] for tokens, end in zip(free, ends, strict=True)]
    # The filler may be one of them.
    filled = Sampler(model, replace(SAMPLING, stop_token_ids=(*stops, 256)))(contexts)
    assert filled == stopped


def test_the_random_numbers_of_the_process_are_left_alone(model: Any) -> None:
    states = random.getstate(), torch.random.get_rng_state().tolist()
    Sampler(model, SAMPLING)(drawn_contexts())
    assert (random.getstate(), torch.random.get_rng_state().tolist()) == states


def test_what_moves_the_completions_is_in_the_spec() -> None:
    moved: list[dict[str, Any]] = [
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"top_k": 3},
        {"max_tokens": 7},
        {"stop_token_ids": (1,)},
        {"seed": "other"},
    ]
    assert all(replace(SAMPLING, **change).spec() != SAMPLING.spec() for change in moved)
    assert replace(SAMPLING, batch_size=1).spec() == SAMPLING.spec()
