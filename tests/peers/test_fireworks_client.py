"""Primitives by Fireworks' Training SDK on a real server of its wire: values, and not only that nothing is raised."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from kitchen_resources.errors import BackendError, CapabilityError, ConfigError, StateLost
from kitchen_resources.training.fireworks.service import FireworksService
from kitchen_resources.training.loops.data import shifted
from kitchen_resources.training.port import ModelInput
from kitchen_resources.training.remote.asking import ServiceSettings
from kitchen_resources.training.remote.client import RemoteBaseClient, RemoteTrainingClient
from tests.peers.hatchery import Hatchery
from tests.peers.hatchery_app import KEY, MODEL
from tests.peers.primitives import batch, local_client, train

RATE = 5.0e-3
CLOSE = 5.0e-3
"""How far a mean loss of its bfloat16 and of this machine's fp32 may lie apart, in nats. Measured: 1.6e-3."""

Open = Callable[[], RemoteTrainingClient]


def settings(url: str, model: str = MODEL, deadline_s: float = 120.0) -> ServiceSettings:
    return ServiceSettings(url, model, rank=8, seed=3, deadline_s=deadline_s, keep_days=None, label="tests")


@pytest.fixture
def service(hatchery: Hatchery) -> Iterator[FireworksService]:
    found = FireworksService(settings(hatchery.trainers))
    yield found
    found.close()


@pytest.fixture
def open_client(service: FireworksService) -> Iterator[Open]:
    opened: list[RemoteTrainingClient] = []

    def open_client() -> RemoteTrainingClient:
        opened.append(RemoteTrainingClient(service, batch(9)))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


def test_the_first_loss_is_the_bases_and_it_falls(open_client: Open, base: Path) -> None:
    client = open_client()
    losses = train(client, 10, rate=RATE)
    here = local_client(base).forward_backward(batch(), "cross_entropy").result()
    assert losses[0] == pytest.approx(here.metrics["loss:sum"], abs=CLOSE)
    assert losses[-2] < losses[0] - 0.3
    assert losses[-1] < losses[1] - 0.3


def test_a_state_comes_back_with_its_moments_and_as_an_adapter_that_is_the_model(
    open_client: Open, hatchery: Hatchery, base: Path, tmp_path: Path
) -> None:
    first = open_client()
    train(first, 4, rate=RATE)
    (external,) = first.save_state(tmp_path / "state").result()
    assert external.uri.startswith("kitchen-tests/run-")
    assert external.expires == ""
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "fireworks.json",
    ]
    with urlopen(f"{hatchery.url}/count") as answer:
        assert json.load(answer)["models"] == [], "the model that the weights were handed out by is there no more"
    going_on = train(first, 4, first=4, rate=RATE)

    second = open_client()
    second.load_state(tmp_path / "state").result()
    assert train(second, 4, first=4, rate=RATE) == pytest.approx(going_on, abs=CLOSE)

    weights_alone = open_client()
    weights_alone.load_state(tmp_path / "state", weights_only=True).result()
    afresh = train(weights_alone, 4, first=4, rate=RATE)
    assert afresh[0] == pytest.approx(going_on[0], abs=CLOSE)
    assert max(abs(a - b) for a, b in zip(afresh, going_on, strict=True)) > 4 * CLOSE

    here = local_client(base, tmp_path / "state").forward_backward(batch(), "cross_entropy").result()
    third = open_client()
    third.load_state(tmp_path / "state").result()
    there = third.forward_backward(batch(), "cross_entropy").result()
    assert here.metrics["loss:sum"] == pytest.approx(there.metrics["loss:sum"], abs=CLOSE)


def test_a_state_that_is_gone_or_another_is_refused(open_client: Open, tmp_path: Path) -> None:
    first = open_client()
    train(first, 1, rate=RATE)
    first.save_state(tmp_path / "state").result()
    record = tmp_path / "state" / "fireworks.json"
    text = record.read_text()
    record.write_text(text.replace('"probe_loss":', '"probe_loss":1'))
    with pytest.raises(StateLost, match="probe loss"):
        open_client().load_state(tmp_path / "state").result()
    record.write_text(text.replace("/tests-", "/gone-"))
    with pytest.raises(StateLost, match="no more"):
        open_client().load_state(tmp_path / "state").result()


def test_the_base_says_how_likely_a_text_is(service: FireworksService, base: Path) -> None:
    tokens = list(range(40, 60))
    there = RemoteBaseClient(service, MODEL).compute_logprobs(ModelInput(tokens)).result()
    here = local_client(base).forward_backward([shifted(tokens, [True] * len(tokens))], "cross_entropy").result()
    assert there[0] is None
    assert [value or 0.0 for value in there[1:]] == pytest.approx(here.logprobs[0], abs=5.0e-2)


def test_samples_are_refused(open_client: Open, service: FireworksService) -> None:
    with pytest.raises(CapabilityError, match="doesn't sample"):
        open_client().compute_logprobs(ModelInput([1, 2])).result()
    with pytest.raises(CapabilityError, match="doesn't sample"):
        service.base_sampler(MODEL).sample(ModelInput([1, 2]), 1, None)


@pytest.mark.parametrize("model", ["accounts/fireworks/models/none-such", "accounts/somebody/models/tiny", "tiny"])
def test_a_base_that_it_has_not_is_refused(hatchery: Hatchery, model: str) -> None:
    service = FireworksService(settings(hatchery.trainers, model))
    with pytest.raises(CapabilityError, match=f"no base model '{model}'"):
        service.require_base_model()


def test_without_a_key_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, hatchery: Hatchery) -> None:
    monkeypatch.delenv("FIREWORKS_API_KEY")
    with pytest.raises(ConfigError, match="FIREWORKS_API_KEY isn't set"):
        FireworksService(settings(hatchery.trainers))


def test_another_key_is_refused_and_not_told(monkeypatch: pytest.MonkeyPatch, hatchery: Hatchery) -> None:
    monkeypatch.setenv("FIREWORKS_API_KEY", "fw_secret-of-somebody")
    service = FireworksService(settings(hatchery.trainers))
    with pytest.raises(BackendError, match="FIREWORKS_API_KEY to a valid key") as told:
        service.require_base_model()
    assert not told.value.mendable
    client = RemoteTrainingClient(service)
    with pytest.raises(BackendError) as refused:
        client.forward_backward(batch(), "cross_entropy").result()
    assert not refused.value.mendable
    for error in (told.value, refused.value):
        assert "secret-of-somebody" not in f"{error}{error.__cause__}"


def test_the_key_goes_nowhere_that_only_tinkers_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
    service = FireworksService(ServiceSettings(None, MODEL, rank=8, seed=0, deadline_s=3.0))
    assert service._url == "https://api.fireworks.ai/training/v1/serverless"
    assert str(service._account.rest.base_url).rstrip("/") == "https://api.fireworks.ai"


def test_a_server_that_is_away_is_told_within_the_deadline() -> None:
    service = FireworksService(settings("http://127.0.0.1:9/training/v1/serverless", deadline_s=3.0))
    with pytest.raises(BackendError) as told:
        service.require_base_model()
    assert told.value.mendable
    client = RemoteTrainingClient(service)
    with pytest.raises(BackendError, match="no answer within 3 s") as told:
        client.forward_backward(batch(), "cross_entropy").result()
    assert told.value.mendable
    assert KEY not in str(told.value)
