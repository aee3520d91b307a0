"""The contract of primitive clients, run over every adapter."""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.embedded.tokenizer import PAD_ID
from kitchen_resources.errors import BackendError
from kitchen_resources.training.noop import NoopTrainingClient
from kitchen_resources.training.port import (
    LOSSES,
    AdamParams,
    Datum,
    ModelInput,
    SampledSequence,
    SamplingParams,
    TrainingClient,
)
from tests.tiny_models import write_tiny_model


def _local(**how: Any) -> TrainingClient:
    from kitchen_resources.training.local.client import LocalSettings
    from kitchen_resources.training.local.opening import open_client

    return open_client(_tiny_model(), LocalSettings(seed=0, pad_token_id=PAD_ID), **how)


def _local_lora() -> TrainingClient:
    from peft import LoraConfig

    return _local(lora=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))


@lru_cache(maxsize=1)
def _tiny_model() -> Path:
    return write_tiny_model(Path(tempfile.mkdtemp()) / "model")


ADAPTERS: dict[str, Callable[[], TrainingClient]] = {
    "noop": NoopTrainingClient,
    "local": _local,
    "local, LoRA": _local_lora,
}
SIMULATED = {"noop"}
ADAM = AdamParams(learning_rate=0.01)
PROMPT = ModelInput([10, 11, 12, 13])


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make(adapter: str) -> Iterator[Callable[[], TrainingClient]]:
    """Makes clients in the same first state; all are closed in the end."""
    made: list[TrainingClient] = []

    def make() -> TrainingClient:
        made.append(ADAPTERS[adapter]())
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make: Callable[[], TrainingClient]) -> TrainingClient:
    return make()


def datum(tokens: Sequence[int], weights: Sequence[float] | None = None, **inputs: Sequence[float]) -> Datum:
    """Tokens as an example of themselves: each position predicts the next one."""
    targets = list(tokens[1:])
    given: dict[str, Sequence[float]] = {
        "target_tokens": targets,
        "weights": weights or [1.0] * len(targets),
        **inputs,
    }
    return Datum(ModelInput(list(tokens[:-1])), given)


BATCH = [datum([1, 2, 3, 4, 5]), datum([7, 8, 9], [0.0, 1.0])]


def logprobs_of(client: TrainingClient, data: Sequence[Datum] = BATCH) -> list[list[float]]:
    return [list(row) for row in client.forward_backward(data, "cross_entropy").result().logprobs]


def step(client: TrainingClient, data: Sequence[Datum] = BATCH) -> None:
    client.forward_backward(data, "cross_entropy").result()
    client.optim_step(ADAM).result()


def sampled(client: TrainingClient, count: int = 1, **params: Any) -> list[SampledSequence]:
    return client.sample(PROMPT, count, SamplingParams(**{"max_tokens": 12, **params})).result()


def test_it_is_a_training_client(client: TrainingClient) -> None:
    assert isinstance(client, TrainingClient)


def test_every_call_returns_a_future(client: TrainingClient, tmp_path: Path) -> None:
    futures = [
        client.forward_backward(BATCH, "cross_entropy"),
        client.forward_backward_custom(BATCH, lambda data, logprobs: (sum(map(sum, logprobs)), {})),
        client.optim_step(ADAM),
        client.sample(PROMPT, 1, SamplingParams(max_tokens=1)),
        client.compute_logprobs(PROMPT),
        client.save_state(tmp_path / "state"),
        client.load_state(tmp_path / "state"),
    ]
    assert all(isinstance(future, Future) for future in futures)
    # Work is sent ahead: it is done in the order that it was sent in, whatever is awaited first.
    for future in reversed(futures):
        future.result()


# Losses.


def test_a_log_probability_for_each_target(client: TrainingClient) -> None:
    rows = logprobs_of(client)
    assert [len(row) for row in rows] == [4, 2]
    assert all(logprob < 0 and math.isfinite(logprob) for row in rows for logprob in row)


def test_the_loss_is_the_weighted_sum(client: TrainingClient) -> None:
    result = client.forward_backward(BATCH, "cross_entropy").result()
    expected = -sum(result.logprobs[0]) - result.logprobs[1][1]
    assert result.metrics["loss:sum"] == pytest.approx(expected, rel=1e-6)
    doubled = [datum([1, 2, 3, 4, 5], [2.0] * 4), datum([7, 8, 9], [0.0, 2.0])]
    result = client.forward_backward(doubled, "cross_entropy").result()
    assert result.metrics["loss:sum"] == pytest.approx(2 * expected, rel=1e-6)


def test_a_forward_pass_moves_nothing(client: TrainingClient) -> None:
    first = logprobs_of(client)
    assert logprobs_of(client) == [pytest.approx(row) for row in first]
    assert logprobs_of(client, BATCH[::-1]) == [pytest.approx(row) for row in first[::-1]]
    assert logprobs_of(client, BATCH[:1]) == [pytest.approx(first[0])]


def test_log_probabilities_are_those_that_are_computed_alone(client: TrainingClient) -> None:
    computed = client.compute_logprobs(ModelInput([1, 2, 3, 4, 5])).result()
    assert computed[0] is None
    assert computed[1:] == pytest.approx(logprobs_of(client, [datum([1, 2, 3, 4, 5])])[0])


@pytest.mark.parametrize("tokens", [[], [5]])
def test_what_nothing_goes_before_has_no_log_probability(client: TrainingClient, tokens: list[int]) -> None:
    assert client.compute_logprobs(ModelInput(tokens)).result() == [None] * len(tokens)


def test_a_log_probability_depends_on_token_and_place(client: TrainingClient) -> None:
    rows = [client.compute_logprobs(ModelInput(tokens)).result() for tokens in ([1, 2], [1, 3], [1, 2, 2])]
    assert rows[0][1] == pytest.approx(rows[2][1])
    assert rows[0][1] != rows[1][1]
    assert rows[2][1] != rows[2][2]


@pytest.mark.parametrize("loss", LOSSES)
def test_named_losses(client: TrainingClient, loss: str) -> None:
    inputs = {"logprobs": [-1.0] * 4, "advantages": [0.5] * 4}
    result = client.forward_backward([datum([1, 2, 3, 4, 5], **inputs)], loss).result()
    assert math.isfinite(result.metrics["loss:sum"])
    assert len(result.logprobs[0]) == 4


def test_a_loss_of_ones_own_is_given_the_log_probabilities(client: TrainingClient) -> None:
    seen: list[Any] = []

    def squared(data: Sequence[Datum], logprobs: Sequence[Any]) -> tuple[Any, dict[str, float]]:
        seen.extend([data, [row.tolist() if hasattr(row, "tolist") else list(row) for row in logprobs]])
        return sum(value * value for row in logprobs for value in row), {"of mine": 7.0}

    result = client.forward_backward_custom(BATCH, squared).result()
    expected = logprobs_of(client)
    assert list(seen[0]) == BATCH
    assert seen[1] == [pytest.approx(row) for row in expected]
    assert result.metrics["of mine"] == 7.0
    assert result.metrics["loss:sum"] == pytest.approx(sum(value**2 for row in expected for value in row), rel=1e-6)
    assert [list(row) for row in result.logprobs] == [pytest.approx(row) for row in expected]


@pytest.mark.parametrize(
    ("data", "loss", "said"),
    [
        (BATCH, "cross_entropi", "cross_entropi"),
        ([Datum(ModelInput([1, 2]), {"weights": [1.0, 1.0]})], "cross_entropy", "target_tokens"),
        ([Datum(ModelInput([1, 2]), {"target_tokens": [2]})], "cross_entropy", "target_tokens has length 1"),
        ([datum([1, 2, 3], [1.0])], "cross_entropy", "weights has length 1"),
    ],
    ids=["loss", "no targets", "targets", "weights"],
)
def test_a_refused_request_fails_in_its_future(
    client: TrainingClient, data: list[Datum], loss: str, said: str
) -> None:
    future = client.forward_backward(data, loss)
    with pytest.raises(BackendError, match=said) as refused:
        future.result()
    assert refused.value.fix
    assert not refused.value.mendable


# Steps.


def test_an_optimiser_step_moves_the_model(client: TrainingClient) -> None:
    before = logprobs_of(client)
    metrics = client.optim_step(ADAM).result()
    assert all(math.isfinite(value) for value in metrics.values())
    assert logprobs_of(client) != before


def test_the_same_calls_give_the_same_numbers(make: Callable[[], TrainingClient]) -> None:
    first, second = make(), make()
    for client in (first, second):
        step(client)
        step(client, BATCH[:1])
    assert logprobs_of(first) == logprobs_of(second)


@pytest.mark.parametrize("change", ["data", "learning rate", "accumulation"])
def test_a_step_follows_from_gradients_and_parameters(make: Callable[[], TrainingClient], change: str) -> None:
    first, second = make(), make()
    step(first)
    if change == "data":
        step(second, [datum([1, 2, 3, 4, 6]), BATCH[1]])
    elif change == "learning rate":
        second.forward_backward(BATCH, "cross_entropy").result()
        second.optim_step(AdamParams(learning_rate=0.02)).result()
    else:
        second.forward_backward(BATCH, "cross_entropy").result()
        second.forward_backward([datum([3, 2, 1])], "cross_entropy").result()
        second.optim_step(ADAM).result()
    assert logprobs_of(first) != logprobs_of(second)


def test_a_step_clears_the_gradients(make: Callable[[], TrainingClient]) -> None:
    first, second = make(), make()
    for client in (first, second):
        step(client)
    # Whatever was added before the first step plays no part in the second.
    step(first, BATCH[:1])
    step(second, BATCH[:1])
    assert logprobs_of(first) == logprobs_of(second)


# Samples.


def test_samples(client: TrainingClient) -> None:
    sequences = sampled(client, 3)
    assert len(sequences) == 3
    for sequence in sequences:
        assert len(sequence.tokens) == len(sequence.logprobs) == 12
        assert sequence.stop_reason == "length"
    # A group of equal samples would have no advantages.
    assert len({tuple(sequence.tokens) for sequence in sequences}) > 1


def test_a_samples_log_probabilities_are_those_of_the_next_forward_pass(client: TrainingClient) -> None:
    (sequence,) = sampled(client)
    whole = [*PROMPT.tokens, *sequence.tokens]
    forward = logprobs_of(client, [datum(whole)])[0]
    assert forward[len(PROMPT.tokens) - 1 :] == pytest.approx(list(sequence.logprobs))
    step(client)
    assert logprobs_of(client, [datum(whole)])[0][len(PROMPT.tokens) - 1 :] != pytest.approx(list(sequence.logprobs))


def test_samples_follow_from_seed_and_prompt(client: TrainingClient) -> None:
    first = sampled(client, 2, seed=1)
    assert sampled(client, 2, seed=1) == first
    assert sampled(client, 2, seed=2) != first
    other = client.sample(ModelInput([10, 11, 12, 14]), 2, SamplingParams(max_tokens=12, seed=1)).result()
    assert other != first


def test_greedy_samples_are_all_the_same(client: TrainingClient) -> None:
    sequences = sampled(client, 3, temperature=0.0, seed=1)
    assert len({tuple(sequence.tokens) for sequence in sequences}) == 1
    (alone,) = sampled(client, 1, temperature=0.0, seed=2)
    assert alone.tokens == sequences[0].tokens
    assert list(alone.logprobs) == pytest.approx(list(sequences[0].logprobs))


def test_a_sample_ends_with_its_stop_token(client: TrainingClient) -> None:
    (free,) = sampled(client, temperature=0.0)
    stop = free.tokens[5]
    end = list(free.tokens).index(stop)
    (stopped,) = sampled(client, temperature=0.0, stop=[stop])
    assert stopped == SampledSequence(free.tokens[: end + 1], free.logprobs[: end + 1], "stop")
    (within,) = sampled(client, temperature=0.0, stop=[stop], max_tokens=end)
    assert within.stop_reason == "length"
    assert list(within.tokens) == list(free.tokens[:end])


def test_no_token_is_asked_for(client: TrainingClient) -> None:
    assert sampled(client, max_tokens=0) == [SampledSequence([], [], "length")]
    assert sampled(client, 0) == []


# State.


def test_a_state_is_taken_over(make: Callable[[], TrainingClient], tmp_path: Path) -> None:
    first, second = make(), make()
    step(first)
    first.save_state(tmp_path / "new" / "folder").result()
    step(first)
    ahead = logprobs_of(first)
    # Another client, and the same one gone back, come out where the first one did.
    step(second, BATCH[:1])
    for client in (second, first):
        client.load_state(tmp_path / "new" / "folder").result()
        step(client)
        assert logprobs_of(client) == ahead
    # Only safetensors and JSON.
    assert {path.suffix for path in (tmp_path / "new" / "folder").iterdir()} <= {".safetensors", ".json"}


def test_gradients_are_no_part_of_a_state(client: TrainingClient, tmp_path: Path) -> None:
    step(client)
    client.save_state(tmp_path / "state").result()
    step(client)
    ahead = logprobs_of(client)
    client.forward_backward([datum([9, 9, 9])], "cross_entropy").result()
    client.load_state(tmp_path / "state").result()
    step(client)
    assert logprobs_of(client) == ahead


def test_a_state_that_is_not_there(client: TrainingClient, tmp_path: Path) -> None:
    before = logprobs_of(client)
    future = client.load_state(tmp_path / "missing")
    with pytest.raises(BackendError, match="missing"):
        future.result()
    assert logprobs_of(client) == before


def test_simulated_numbers_say_so(client: TrainingClient, adapter: str) -> None:
    results = [
        client.forward_backward(BATCH, "cross_entropy").result().metrics,
        client.forward_backward_custom(BATCH, lambda data, logprobs: (sum(map(sum, logprobs)), {})).result().metrics,
        client.optim_step(ADAM).result(),
    ]
    marked = [metrics.get("simulated") == 1.0 for metrics in results]
    assert marked == [adapter in SIMULATED] * 3


def test_closed_twice(client: TrainingClient) -> None:
    client.close()
    client.close()
