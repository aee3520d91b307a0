"""What the local client adds to the contract of clients: batches, micro-batches, dropout of its own, refusals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kitchen_resources.embedded.tokenizer import PAD_ID
from kitchen_resources.errors import BackendError
from kitchen_resources.training.local.client import LocalSettings, LocalTrainingClient
from kitchen_resources.training.local.opening import open_client
from kitchen_resources.training.port import AdamParams, Datum, ModelInput, SamplingParams
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.heavy

ROWS = [[65 + row, 66, 67, 68 + row, 69][: 3 + row % 3] for row in range(5)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "model")


def client_of(model: Path, *, dropout: float | None = None, **settings: Any) -> LocalTrainingClient:
    from peft import LoraConfig

    lora = None
    if dropout is not None:
        lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    return open_client(model, LocalSettings(**{"seed": 0, "pad_token_id": PAD_ID, **settings}), lora=lora)


def datum(tokens: Sequence[int], **inputs: Sequence[float]) -> Datum:
    targets = list(tokens[1:])
    return Datum(ModelInput(list(tokens[:-1])), {"target_tokens": targets, "weights": [1.0] * len(targets), **inputs})


DATA = [datum(row) for row in ROWS]


def weights(client: LocalTrainingClient) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in client._trained]


def squared(data: Sequence[Datum], logprobs: Sequence[Any]) -> tuple[Any, dict[str, float]]:
    """A loss that ties all rows together."""
    total = torch.cat(list(logprobs)).mean()
    return total * total, {"mean": float(total.detach())}


@pytest.mark.parametrize("named", [True, False], ids=["named", "custom"])
@pytest.mark.parametrize("rows_at_a_time", [1, 2, 8])
def test_micro_batches_add_up(model: Path, rows_at_a_time: int, named: bool) -> None:
    made = []
    for size in (5, rows_at_a_time):
        client = client_of(model, rows_at_a_time=size)
        before = weights(client)
        asked = (
            client.forward_backward(DATA, "cross_entropy") if named else client.forward_backward_custom(DATA, squared)
        )
        loss = asked.result().metrics["loss:sum"]
        norm = client.optim_step(AdamParams(learning_rate=0.01)).result()["grad_norm"]
        assert any(not torch.equal(a, b) for a, b in zip(before, weights(client), strict=True))
        made.append((loss, norm))
        client.close()
    assert made[1] == pytest.approx(made[0], rel=1e-4)


@pytest.mark.parametrize("rows_at_a_time", [2, 5])
def test_both_passes_of_a_custom_loss_draw_the_same_dropout(model: Path, rows_at_a_time: int) -> None:
    # The gradient of a loss that is the cross entropy is that of the named one only if the second pass is the first again.
    def entropy(data: Sequence[Datum], logprobs: Sequence[Any]) -> tuple[Any, dict[str, float]]:
        return -sum(row.sum() for row in logprobs), {}

    moved = []
    for named in (True, False):
        client = client_of(model, dropout=0.5, rows_at_a_time=rows_at_a_time)
        for weight in client._trained:
            torch.nn.init.constant_(weight, 0.05)
        asked = (
            client.forward_backward(DATA, "cross_entropy") if named else client.forward_backward_custom(DATA, entropy)
        )
        asked.result()
        client.optim_step(AdamParams(learning_rate=0.01)).result()
        moved.append(weights(client))
        client.close()
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*moved, strict=True))


def test_dropout_is_the_clients_own(model: Path) -> None:
    made = []
    for disturbed in (False, True):
        client = client_of(model, dropout=0.5)
        for weight in client._trained:
            torch.nn.init.constant_(weight, 0.05)
        losses = []
        for _ in range(3):
            if disturbed:
                torch.manual_seed(99)
                torch.rand(7)
            before = torch.random.get_rng_state()
            losses.append(client.forward_backward(DATA, "cross_entropy").result().metrics["loss:sum"])
            assert torch.equal(before, torch.random.get_rng_state())
        made.append(losses)
        client.close()
    assert made[0] == made[1]
    assert len(set(made[0])) == 3


def test_prompts_that_were_sent_together_are_one_batch(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(model)
    calls: list[tuple[int, int]] = []
    real = client._model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(tuple(kwargs["input_ids"].shape))
        return real(*args, **kwargs)

    monkeypatch.setattr(client._model, "forward", counted)
    params = SamplingParams(max_tokens=3, seed=1)
    futures = [client.sample(ModelInput(row), 2, params) for row in ROWS]
    assert not any(future.done() for future in futures)
    found = [future.result() for future in futures]
    longest = max(map(len, ROWS))
    # Each prompt is read once, and then each of its two continuations grows by a token a pass.
    assert calls == [(5, longest), (10, 1), (10, 1)]
    assert all(future.done() for future in futures)
    calls.clear()
    alone = client.sample(ModelInput(ROWS[0]), 2, params).result()
    assert [sequence.tokens for sequence in alone] == [sequence.tokens for sequence in found[0]]
    logprobs = [client.compute_logprobs(ModelInput(row)) for row in ROWS]
    calls.clear()
    assert [len(future.result()) for future in logprobs] == [len(row) for row in ROWS]
    assert calls == [(5, longest - 1)]


def test_what_was_asked_before_a_step_is_answered_by_the_weights_before_it(model: Path) -> None:
    client = client_of(model)
    now = client.compute_logprobs(ModelInput(ROWS[0])).result()
    asked = client.compute_logprobs(ModelInput(ROWS[0]))
    client.forward_backward(DATA, "cross_entropy")
    client.optim_step(AdamParams(learning_rate=0.1))
    assert asked.result() == now
    assert client.compute_logprobs(ModelInput(ROWS[0])).result() != now


@pytest.mark.parametrize(
    ("data", "loss", "config", "said"),
    [
        ([], "cross_entropy", {}, "the batch is empty"),
        (DATA, "ppo", {}, "a datum has no logprobs"),
        (DATA, "cross_entropy", {"beta": 1.0}, "cross_entropy has no setting 'beta'"),
    ],
)
def test_refusals(model: Path, data: list[Datum], loss: str, config: dict[str, float], said: str) -> None:
    client = client_of(model)
    with pytest.raises(BackendError, match=said):
        client.forward_backward(data, loss, config).result()
    with pytest.raises(BackendError, match="the prompt is empty"):
        client.sample(ModelInput([]), 1, SamplingParams(max_tokens=1)).result()


def test_a_loss_of_ones_own_that_raises_fails_in_its_future(model: Path) -> None:
    client = client_of(model)

    def wrong(data: Sequence[Datum], logprobs: Sequence[Any]) -> tuple[Any, dict[str, float]]:
        raise ZeroDivisionError("nothing here")

    with pytest.raises(BackendError, match="ZeroDivisionError: nothing here"):
        client.forward_backward_custom(DATA, wrong).result()
    assert client.forward_backward(DATA, "cross_entropy").result().metrics["loss:sum"] > 0
