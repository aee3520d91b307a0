"""Fetching from a hub: who may fetch what, and that the token is never shown."""

import logging
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loopback_hub import MODEL, ROWS, TOKEN, LoopbackHub, content, hub_in_use, record_waits

from kitchen_resources.errors import HubError
from kitchen_resources.hub import fetch_dataset, fetch_model


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return record_waits(monkeypatch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: list[float]) -> Iterator[LoopbackHub]:
    with hub_in_use(monkeypatch, tmp_path) as running:
        yield running


def full_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_gated_without_and_with_a_token(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.model("org/gated", gated=True).commit(MODEL)
    with pytest.raises(HubError, match="it is gated, and no token was sent") as caught:
        fetch_model("org/gated")
    assert f"ask for access at {hub.endpoint}/org/gated, then export HF_TOKEN=" in caught.value.fix
    assert "hf auth login" in caught.value.fix

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.access[TOKEN] = set()
    with pytest.raises(HubError, match="the token that was sent has no access") as caught:
        fetch_model("org/gated")
    assert f"ask for access at {hub.endpoint}/org/gated with the token's account" in caught.value.fix
    assert "Access to org/gated is restricted" in caught.value.what
    assert not caught.value.mendable

    hub.access[TOKEN] = {"org/gated"}
    assert content(fetch_model("org/gated").folder) == MODEL


def test_the_page_of_a_gated_dataset(hub: LoopbackHub) -> None:
    hub.dataset("org/gated", gated=True).commit(ROWS)
    with pytest.raises(HubError) as caught:
        fetch_dataset("org/gated")
    assert f"{hub.endpoint}/datasets/org/gated" in caught.value.fix


@pytest.mark.parametrize("private", [True, False])
def test_a_private_and_a_missing_repository(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, private: bool) -> None:
    if private:
        hub.model("org/tiny", private=True).commit(MODEL)
    with pytest.raises(HubError, match=r"no such model on .* or it is private and no token was sent") as caught:
        fetch_model("org/tiny")
    assert "nor is there a local path" in caught.value.what
    assert "export HF_TOKEN=" in caught.value.fix
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.access[TOKEN] = {"org/another"}
    with pytest.raises(HubError, match=r"no such model on .* that the token that was sent may see"):
        fetch_model("org/tiny")


def test_a_token_that_is_not_valid_or_may_not_read(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.model("org/tiny").commit(MODEL)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(
        HubError, match=r"the token that was sent is not valid \(HTTP 401: Invalid credentials"
    ) as caught:
        fetch_model("org/tiny")
    assert "mistyped, expired or revoked" in caught.value.fix

    hub.access[TOKEN] = set()
    hub.fault("/revision/", status=403, headers={"X-Error-Message": "the token lacks a scope"})
    with pytest.raises(HubError, match=r"has no access to it \(HTTP 403: the token lacks a scope\)") as caught:
        fetch_model("org/tiny")
    assert f"{hub.endpoint}/settings/tokens" in caught.value.fix
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"wants to know who asks \(HTTP 403\), and no token was sent"):
        fetch_model("org/tiny")


def test_a_revision_that_the_repository_lacks(hub: LoopbackHub) -> None:
    hub.model("org/tiny").commit(MODEL)
    for revision in ("v9", "0" * 40):
        with pytest.raises(HubError, match=f"exists, but has no revision {revision}") as caught:
            fetch_model("org/tiny", revision=revision)
        assert f"{hub.endpoint}/org/tiny/tree/main" in caught.value.fix


def test_a_login_is_used_and_the_storage_server_never_sees_the_token(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.access[TOKEN] = {"org/tiny"}
    hub.model("org/tiny", private=True).commit(MODEL)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert content(fetch_model("org/tiny").folder) == MODEL
    assert {asked.token for asked in hub.asked if asked.server == "hub"} == {TOKEN}
    assert [asked.token for asked in hub.asked if asked.server == "cdn"] == [""]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500])
@pytest.mark.parametrize("place", ["/revision/", "/tree/", "HEAD", "GET /org/tiny/resolve"])
def test_the_token_is_never_shown_even_when_the_server_sends_it_back(
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int,
    place: str,
) -> None:
    # At DEBUG the HTTP library logs the answer's headers, which here hold the token.
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.access[TOKEN] = set()
    hub.model("org/tiny").commit(MODEL)
    echo = {"X-Error-Message": "you sent {token}", "Content-Type": "text/plain"}
    hub.fault(place, status=status, headers=echo, body=b"x" * 190 + b"{token}")
    with pytest.raises(HubError) as caught:
        fetch_model("org/tiny")
    assert any(asked.token == TOKEN for asked in hub.asked)
    chained: BaseException | None = caught.value
    while chained is not None:
        assert isinstance(chained, HubError)
        assert chained.__cause__ is None
        chained = chained.__context__
    assert TOKEN[:8] not in full_text(caught.value) + repr(caught.value) + caplog.text


def test_the_token_is_not_in_any_log(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.access[TOKEN] = {"org/tiny"}
    hub.model("org/tiny", private=True).commit(MODEL)
    hub.fault("", times=1, status=500)
    fetch_model("org/tiny")
    assert "/api/models/org/tiny/revision/main" in caplog.text
    assert TOKEN[:8] not in caplog.text


@pytest.mark.parametrize("token", ["hf_secret\x01tail", "hf_secret tail", "hf_sécret", "hf_secret\ttail"])
def test_a_token_that_can_not_be_sent_is_not_shown(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    hub.model("org/tiny").commit(MODEL)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match="the token holds a space or another character") as caught:
        fetch_model("org/tiny")
    assert token not in full_text(caught.value)
    assert "cret" not in str(caught.value)
    assert hub.asked == []
