"""Primitives on a real server of the Tinker API: values, and not only that nothing is raised."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.errors import BackendError, CapabilityError, ConfigError, StateLost
from kitchen_resources.training.loops.data import shifted
from kitchen_resources.training.loops.preference import dpo_loss
from kitchen_resources.training.port import AdamParams, Datum, ModelInput, SamplingParams
from kitchen_resources.training.remote.asking import ServiceSettings
from kitchen_resources.training.remote.client import RemoteTrainingClient
from kitchen_resources.training.tinker.service import TinkerService
from tests.peers.primitives import batch, local_client, train
from tests.peers.skyrl import KEY, SkyRL

ADAM = AdamParams(learning_rate=1.0e-2)
SAME = 1.0e-4
"""How far log-probabilities of this machine's torch and the server's JAX may lie apart, in nats."""


@pytest.fixture
def service(server: SkyRL, base: Path) -> Iterator[TinkerService]:
    found = TinkerService(ServiceSettings(server.url, str(base), rank=8, seed=3, deadline_s=120.0, label="tests"))
    yield found
    found.close()


@pytest.fixture
def open_client(service: TinkerService) -> Iterator[Callable[[], RemoteTrainingClient]]:
    opened: list[RemoteTrainingClient] = []

    def open_client() -> RemoteTrainingClient:
        opened.append(RemoteTrainingClient(service, batch(9)))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


def test_the_loss_falls_and_work_is_sent_ahead(open_client: Callable[[], RemoteTrainingClient]) -> None:
    losses = train(open_client(), 10)
    assert losses[-2] < losses[0] - 0.1
    assert losses[-1] < losses[1] - 0.1


def test_the_first_loss_is_that_of_the_base_on_this_machine(
    open_client: Callable[[], RemoteTrainingClient], base: Path
) -> None:
    there = open_client().forward_backward(batch(), "cross_entropy").result()
    here = local_client(base).forward_backward(batch(), "cross_entropy").result()
    assert there.metrics["loss:sum"] == pytest.approx(here.metrics["loss:sum"], abs=SAME)
    for ours, theirs in zip(here.logprobs, there.logprobs, strict=True):
        assert theirs == pytest.approx(ours, abs=10 * SAME)


def test_a_state_comes_back_with_its_moments_and_as_an_adapter_that_is_the_model(
    open_client: Callable[[], RemoteTrainingClient], base: Path, tmp_path: Path
) -> None:
    first = open_client()
    train(first, 4)
    (external,) = first.save_state(tmp_path / "state").result()
    assert external.uri.startswith("tinker://")
    assert external.probe_loss is not None
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "tinker.json",
    ]
    going_on = train(first, 4, first=4)

    second = open_client()
    second.load_state(tmp_path / "state").result()
    assert train(second, 4, first=4) == pytest.approx(going_on, abs=SAME)

    weights_alone = open_client()
    weights_alone.load_state(tmp_path / "state", weights_only=True).result()
    afresh = train(weights_alone, 4, first=4)
    assert afresh[0] == pytest.approx(going_on[0], abs=SAME)
    assert abs(afresh[-1] - going_on[-1]) > 10 * SAME, "the moments make a difference, so that they were restored"

    here = local_client(base, tmp_path / "state").forward_backward(batch(), "cross_entropy").result()
    third = open_client()
    third.load_state(tmp_path / "state").result()
    there = third.forward_backward(batch(), "cross_entropy").result()
    assert here.metrics["loss:sum"] == pytest.approx(there.metrics["loss:sum"], abs=SAME)


def test_another_probe_loss_than_at_the_save_is_refused(
    open_client: Callable[[], RemoteTrainingClient], tmp_path: Path
) -> None:
    first = open_client()
    train(first, 1)
    first.save_state(tmp_path / "state").result()
    record = tmp_path / "state" / "tinker.json"
    text = record.read_text()
    record.write_text(text.replace('"probe_loss":', '"probe_loss":1'))
    with pytest.raises(StateLost, match="probe loss"):
        open_client().load_state(tmp_path / "state").result()
    record.write_text(text.replace("/weights/", "/weights/gone-"))
    with pytest.raises(StateLost, match="no more"):
        open_client().load_state(tmp_path / "state").result()
    record.write_text(text.replace('"service":"http', '"service":"elsewhere'))
    with pytest.raises(ConfigError, match="this run's states are kept by elsewhere"):
        open_client().load_state(tmp_path / "state").result()
    record.write_text(text.replace('"expires":"2', '"expires":"1'))
    with pytest.raises(StateLost, match="kept until"):
        open_client().load_state(tmp_path / "state").result()


def test_a_loss_of_ones_own_has_the_gradients_of_the_named_one(
    open_client: Callable[[], RemoteTrainingClient],
) -> None:
    def own(data: Sequence[Datum], logprobs: Sequence[Any]) -> Any:
        import torch

        weighed = [
            (row * torch.tensor(datum.loss_fn_inputs["weights"])).sum()
            for row, datum in zip(logprobs, data, strict=True)
        ]
        return -torch.stack(weighed).sum(), {"mine": 1.5}

    named, custom = open_client(), open_client()
    expected = train(named, 3)
    found = []
    for step in range(3):
        gradients = custom.forward_backward_custom(batch(step % 2), own)
        moved = custom.optim_step(ADAM)
        result = gradients.result()
        moved.result()
        assert result.metrics["mine"] == 1.5
        found.append(result.metrics["loss:sum"])
    assert found == pytest.approx(expected, abs=SAME)


def test_a_preference_is_learned(open_client: Callable[[], RemoteTrainingClient]) -> None:
    client = open_client()
    pair = batch(4, rows=2)
    reference = [
        tuple(
            sum(lp * (w > 0) for lp, w in zip(row, datum.loss_fn_inputs["weights"], strict=True))
            for row, datum in zip(client.forward_backward(pair, "cross_entropy").result().logprobs, pair, strict=True)
        )
    ]
    data = [
        Datum(
            d.model_input,
            {
                "target_tokens": d.loss_fn_inputs["target_tokens"],
                "weights": [float(w > 0) for w in d.loss_fn_inputs["weights"]],
            },
        )
        for d in pair
    ]
    fresh = open_client()
    losses = []
    for _ in range(5):
        gradients = fresh.forward_backward_custom(data, dpo_loss([(reference[0][0], reference[0][1])], beta=0.5))
        fresh.optim_step(ADAM).result()
        losses.append(gradients.result().metrics["loss:sum"])
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo"])
def test_what_is_sampled_can_be_trained_on(open_client: Callable[[], RemoteTrainingClient], loss: str) -> None:
    client = open_client()
    prompt = [40, 41, 42]
    params = SamplingParams(max_tokens=6, seed=1)
    sampled = client.sample(ModelInput(prompt), 4, params).result()
    assert len(sampled) == 4
    assert len({tuple(sequence.tokens) for sequence in sampled}) > 1
    again = client.sample(ModelInput(prompt), 4, params).result()
    assert [s.tokens for s in again] == [s.tokens for s in sampled]
    data = []
    for index, sequence in enumerate(sampled):
        assert len(sequence.tokens) == len(sequence.logprobs) <= 6
        known = client.compute_logprobs(ModelInput([*prompt, *sequence.tokens])).result()
        assert len(known) == len(prompt) + len(sequence.tokens)
        assert known[0] is None
        assert [value or 0.0 for value in known[len(prompt) :]] == pytest.approx(list(sequence.logprobs), abs=1e-2)
        datum = shifted([*prompt, *sequence.tokens], [False] * 3 + [True] * len(sequence.tokens))
        advantage = 1.0 if index == 0 else -0.3
        given = {
            "logprobs": [0.0, 0.0, *sequence.logprobs],
            "advantages": [0.0, 0.0, *[advantage] * len(sequence.tokens)],
        }
        data.append(Datum(datum.model_input, {**datum.loss_fn_inputs, **given}))
    before = client.compute_logprobs(ModelInput([*prompt, *sampled[0].tokens])).result()
    for _ in range(3):
        client.forward_backward(data, loss).result()
        client.optim_step(ADAM).result()
    after = client.compute_logprobs(ModelInput([*prompt, *sampled[0].tokens])).result()
    assert sum(v or 0.0 for v in after[3:]) > sum(v or 0.0 for v in before[3:])


def test_greedy_samples_end_at_a_stop_token(open_client: Callable[[], RemoteTrainingClient]) -> None:
    client = open_client()
    greedy = SamplingParams(max_tokens=6, temperature=0.0)
    (whole,) = client.sample(ModelInput([50, 51]), 1, greedy).result()
    assert whole.stop_reason == "length"
    stop = whole.tokens[1]
    (ended,) = client.sample(
        ModelInput([50, 51]), 1, SamplingParams(max_tokens=6, temperature=0.0, stop=[stop])
    ).result()
    assert ended.stop_reason == "stop"
    assert list(ended.tokens) == list(whole.tokens[: list(whole.tokens).index(stop) + 1])


def test_places_are_given_back(service: TinkerService) -> None:
    # The server has eight, one of them the base's.
    for _ in range(12):
        client = RemoteTrainingClient(service)
        client.forward_backward(batch(), "cross_entropy").result()
        client.close()
        client.close()
        with pytest.raises(BackendError, match="closed"):
            client.forward_backward(batch(), "cross_entropy").result()


def test_what_would_poison_a_client_is_refused_before_it_is_sent(
    open_client: Callable[[], RemoteTrainingClient],
) -> None:
    client = open_client()
    (row,) = batch(rows=1)
    for data, loss, message in (
        ([], "cross_entropy", "empty"),
        ([row], "hinge", "no loss"),
        ([row], "ppo", "no logprobs"),
        ([Datum(row.model_input, {"target_tokens": [1]})], "cross_entropy", "length 1"),
    ):
        with pytest.raises(BackendError, match=message):
            client.forward_backward(data, loss).result()
    assert client.forward_backward([row], "cross_entropy").result().metrics["loss:sum"] > 0


def test_what_the_server_refuses_is_a_typed_error_without_the_key(
    open_client: Callable[[], RemoteTrainingClient],
) -> None:
    client = open_client()
    row = batch(rows=1)[0]
    given = {**row.loss_fn_inputs, "logprobs": [0.0] * len(row.model_input.tokens)}
    datum = Datum(row.model_input, {**given, "advantages": [0.0] * len(row.model_input.tokens)})
    with pytest.raises(BackendError) as refused:
        client.forward_backward([datum], "dro").result(30)
    assert not refused.value.mendable
    assert KEY not in str(refused.value)


def test_an_unknown_base_is_refused_though_the_server_would_train_another(server: SkyRL) -> None:
    service = TinkerService(ServiceSettings(server.url, "no/such", rank=8, seed=0, deadline_s=60.0))
    try:
        with pytest.raises(CapabilityError, match="no base model 'no/such'"):
            service.require_base_model()
    finally:
        service.close()


def test_without_a_key_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, server: SkyRL) -> None:
    for value in ("", "sk-something-else"):
        monkeypatch.setenv("TINKER_API_KEY", value)
        with pytest.raises(ConfigError) as refused:
            TinkerService(ServiceSettings(server.url, "any", rank=8, seed=0))
        assert "TINKER_API_KEY" in str(refused.value)
        assert not value or value not in str(refused.value)


def test_a_server_that_is_away_is_told_within_the_deadline(base: Path) -> None:
    service = TinkerService(ServiceSettings("http://127.0.0.1:9", str(base), rank=8, seed=0, deadline_s=3.0))
    try:
        with pytest.raises(BackendError, match="no answer within 3 s") as told:
            service.require_base_model()
        assert told.value.mendable
    finally:
        service.close()
