"""Fetching from a hub that can't be reached, breaks off or answers badly."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import constants, get_session

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loopback_hub import (
    MODEL,
    ROWS,
    WEIGHTS,
    LoopbackHub,
    content,
    hub_in_use,
    leave_network,
    record_waits,
    sharded,
)

from kitchen_resources.errors import HubError
from kitchen_resources.hub import HubUnreachable, fetch_dataset, fetch_model
from kitchen_resources.hub.patience import bound_waits


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return record_waits(monkeypatch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: list[float]) -> Iterator[LoopbackHub]:
    with hub_in_use(monkeypatch, tmp_path) as running:
        yield running


@pytest.fixture
def go_offline(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    return lambda: leave_network(monkeypatch)


def test_without_network_the_cached_copy_is_used_and_said(hub: LoopbackHub, go_offline: Callable[[], str]) -> None:
    commit = hub.model("org/tiny").commit(MODEL)
    hub.dataset("org/rows").commit(ROWS)
    folder = fetch_model("org/tiny").folder
    fetch_dataset("org/rows")
    endpoint = go_offline()
    snapshot = fetch_model("org/tiny")
    assert (snapshot.folder, snapshot.commit, snapshot.cached) == (folder, commit, True)
    assert snapshot.note.startswith(f"{endpoint} could not be reached (ConnectError: ")
    assert snapshot.note.endswith(f"; using the cached copy of {commit} from {folder}")
    assert content(snapshot.folder) == MODEL
    assert fetch_dataset("org/rows").cached


def test_without_network_a_copy_that_another_tool_cached_is_judged_by_itself(
    hub: LoopbackHub, go_offline: Callable[[], str]
) -> None:
    hub.model("org/tiny").commit(sharded())
    hub.dataset("org/rows").commit(ROWS)
    folder = fetch_model("org/tiny").folder
    shutil.rmtree(folder.parents[1] / "trees")
    shutil.rmtree(fetch_dataset("org/rows").folder.parents[1] / "trees")
    go_offline()
    assert fetch_model("org/tiny").folder == folder
    with pytest.raises(HubUnreachable, match="cached without its list of files"):
        fetch_dataset("org/rows")


def test_without_network_and_copy_it_is_refused(
    hub: LoopbackHub, go_offline: Callable[[], str], waits: list[float], tmp_path: Path
) -> None:
    hub.model("org/tiny").commit(MODEL)
    fetch_model("org/tiny")
    endpoint = go_offline()
    for fetch, repo_id, revision in (
        (fetch_model, "org/other", None),
        (fetch_model, "org/tiny", "v1"),
        (fetch_dataset, "org/tiny", None),
    ):
        waits.clear()
        with pytest.raises(HubUnreachable) as caught:
            fetch(repo_id, revision=revision)
        assert f"{endpoint} could not be reached" in caught.value.what
        assert f"no copy of that revision is cached in {tmp_path / 'cache'}" in caught.value.what
        assert f"HF_ENDPOINT (in use: {endpoint})" in caught.value.fix
        assert caught.value.mendable
        assert waits == [1, 2, 4, 8, 8]


def test_without_network_a_cached_copy_is_used_at_once(
    hub: LoopbackHub, go_offline: Callable[[], str], waits: list[float]
) -> None:
    hub.model("org/tiny").commit(MODEL)
    fetch_model("org/tiny")
    go_offline()
    assert fetch_model("org/tiny").cached
    assert waits == []


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        ("model.safetensors.index.json", "index"),
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_an_incomplete_cached_copy_is_refused(
    hub: LoopbackHub, go_offline: Callable[[], str], name: str, what: str, listed: bool
) -> None:
    files = sharded()
    files.pop("tokenizer_config.json")
    hub.model("org/tiny").commit(files)
    folder = fetch_model("org/tiny").folder
    (folder / name).unlink()
    if not listed:
        shutil.rmtree(folder.parents[1] / "trees")
    go_offline()
    with pytest.raises(HubUnreachable, match=rf"can't be used: .*{what}"):
        fetch_model("org/tiny")


def test_a_cached_file_of_another_size_is_refused_offline_and_fetched_anew_online(
    hub: LoopbackHub, go_offline: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("org/tiny").commit(MODEL)
    folder = fetch_model("org/tiny").folder
    (folder / "model.safetensors").resolve().write_bytes(WEIGHTS[:-1])
    go_offline()
    with pytest.raises(HubUnreachable, match=r"model.safetensors has 10,239 bytes instead of 10,240"):
        fetch_model("org/tiny")
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    assert content(fetch_model("org/tiny").folder) == MODEL


def test_a_cached_copy_with_pickled_weights_is_refused_without_network(
    hub: LoopbackHub, go_offline: Callable[[], str]
) -> None:
    commit = hub.model("org/tiny").commit(MODEL)
    folder = fetch_model("org/tiny").folder
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    tree = folder.parents[1] / "trees" / f"{commit}.json"
    tree.write_text(tree.read_text().replace("model.safetensors", "pytorch_model.bin"))
    go_offline()
    for revision in (None, commit):
        with pytest.raises(HubError, match="only there as pickles"):
            fetch_model("org/tiny", revision=revision)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_by_the_user_uses_only_the_cache(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    commit = hub.model("org/tiny").commit(MODEL)
    folder = fetch_model("org/tiny").folder
    hub.asked.clear()
    monkeypatch.setenv(variable, "1")
    for revision in (None, commit):
        snapshot = fetch_model("org/tiny", revision=revision)
        assert snapshot.cached
        assert snapshot.note == f"{variable} is set; using the cached copy of {commit} from {folder}"
    with pytest.raises(HubError, match=f"{variable} is set, and no copy of that revision is cached") as caught:
        fetch_model("org/other")
    assert f"unset {variable}" in caught.value.fix
    assert not caught.value.mendable
    assert hub.asked == []


# When the connection or the hub is bad


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client keeps whole chunks of a broken download, of 10 MiB each."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)


@pytest.mark.usefixtures("small_chunks")
def test_a_connection_that_breaks_in_mid_file_is_resumed(hub: LoopbackHub) -> None:
    hub.model("org/tiny").commit(MODEL)
    hub.fault("GET /[0-9a-f]{64}", times=1, cut_at=3000)
    assert content(fetch_model("org/tiny").folder) == MODEL
    assert [asked.range for asked in hub.asked if asked.server == "cdn"] == ["", "bytes=3000-"]


@pytest.mark.usefixtures("small_chunks")
def test_a_server_that_ignores_the_range_sends_the_file_anew(hub: LoopbackHub) -> None:
    hub.model("org/tiny").commit(MODEL)
    hub.fault("GET /[0-9a-f]{64}", times=1, cut_at=3000)
    hub.fault("GET /[0-9a-f]{64}", times=1, ignore_range=True)
    assert content(fetch_model("org/tiny").folder) == MODEL


@pytest.mark.usefixtures("small_chunks")
def test_a_connection_that_stays_broken_leaves_no_half_file(
    hub: LoopbackHub, tmp_path: Path, go_offline: Callable[[], str]
) -> None:
    repo = hub.model("org/tiny")
    old = repo.commit(MODEL)
    fetch_model("org/tiny")
    new = repo.commit(MODEL | {"model.safetensors": WEIGHTS + b"new"})
    hub.fault("GET /[0-9a-f]{64}", times=1, cut_at=3000)
    hub.fault("GET /[0-9a-f]{64}", times=6, cut_at=0)
    with pytest.raises(HubUnreachable, match=rf"could not be reached .*the cached copy of {new} .* is missing"):
        fetch_model("org/tiny")
    assert not (tmp_path / "cache/models--org--tiny/snapshots" / new / "model.safetensors").exists()
    assert list(tmp_path.rglob("*.incomplete")) == []
    assert content(fetch_model("org/tiny").folder) == MODEL | {"model.safetensors": WEIGHTS + b"new"}
    assert new != old


def test_an_interrupted_update_leaves_the_copy_before_for_use_without_network(
    hub: LoopbackHub, go_offline: Callable[[], str]
) -> None:
    repo = hub.model("org/tiny")
    old = repo.commit(MODEL)
    fetch_model("org/tiny")
    repo.commit(MODEL | {"model.safetensors": WEIGHTS + b"new"})
    hub.fault("GET /[0-9a-f]{64}", cut_at=0)
    with pytest.raises(HubUnreachable):
        fetch_model("org/tiny")
    go_offline()
    assert fetch_model("org/tiny").commit == old


def test_a_file_of_another_size_than_listed_is_not_taken(hub: LoopbackHub) -> None:
    hub.model("org/tiny").commit(MODEL)
    hub.fault("GET /org/tiny/resolve/.*/config.json", status=200, body=b"{}")
    with pytest.raises(HubUnreachable, match="Consistency check failed"):
        fetch_model("org/tiny")


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
def test_an_error_that_passes_is_waited_out(hub: LoopbackHub, waits: list[float], status: int) -> None:
    hub.model("org/tiny").commit(MODEL)
    hub.fault("/revision/", times=2, status=status)
    assert content(fetch_model("org/tiny").folder) == MODEL
    assert waits == [1, 2]


@pytest.mark.parametrize("place", ["GET .*/config.json", "GET /[0-9a-f]{64}"])
def test_a_busy_storage_server_is_waited_for(hub: LoopbackHub, waits: list[float], place: str) -> None:
    hub.model("org/tiny").commit(MODEL)
    hub.fault(place, times=3, status=503)
    assert content(fetch_model("org/tiny").folder) == MODEL
    assert waits == [1, 2, 4]
    assert len(hub.paths("GET", "cdn")) == (4 if "64" in place else 1)


@pytest.mark.parametrize(
    "place", ["/revision/", "/tree/", "HEAD .*/model.safetensors", "GET .*/config.json", "GET /[0-9a-f]{64}"]
)
def test_an_error_that_stays_is_told_after_bounded_retries(hub: LoopbackHub, waits: list[float], place: str) -> None:
    hub.model("org/tiny").commit(MODEL)
    hub.fault(place, status=503)
    with pytest.raises(HubUnreachable, match=r"could not be reached \(HTTP 503, also after retries\)"):
        fetch_model("org/tiny")
    assert waits == [1, 2, 4, 8, 8]


def test_an_error_that_stays_gives_way_to_the_cached_copy(hub: LoopbackHub) -> None:
    hub.model("org/tiny").commit(MODEL)
    folder = fetch_model("org/tiny").folder
    hub.fault("", status=500)
    snapshot = fetch_model("org/tiny")
    assert (snapshot.folder, snapshot.cached) == (folder, True)
    assert "could not be reached (HTTP 500, also after retries); using the cached copy" in snapshot.note


def test_the_wait_that_the_hub_asks_for_is_kept_when_it_is_short(hub: LoopbackHub, waits: list[float]) -> None:
    hub.model("org/tiny").commit(MODEL)
    hub.fault("/revision/", times=1, status=429, headers={"Retry-After": "3"})
    hub.fault("HEAD .*/config.json", times=2, status=429, headers={"ratelimit": '"resolvers";r=0;t=300'})
    assert content(fetch_model("org/tiny").folder) == MODEL
    # The client adds a second; its first HEAD request is repeated without a wait.
    assert waits == [4, 301]


@pytest.mark.parametrize("headers", [{"Retry-After": "301"}, {"ratelimit": '"api";r=0;t=86400'}])
@pytest.mark.parametrize("place", ["/revision/", "/tree/", "HEAD .*/config.json", "GET .*/config.json"])
def test_the_wait_that_the_hub_asks_for_is_refused_when_it_is_long(
    hub: LoopbackHub, waits: list[float], place: str, headers: dict[str, str]
) -> None:
    hub.model("org/tiny").commit(MODEL)
    hub.fault(place, status=429, headers=headers)
    with pytest.raises(HubUnreachable, match=r"it asks to wait (301|86400) s, and at most 300 s are waited"):
        fetch_model("org/tiny")
    assert waits == []


def test_every_request_has_a_time_out(hub: LoopbackHub) -> None:
    hub.model("org/tiny").commit(MODEL)
    timeouts: list[float | None] = []
    bound_waits()
    hooks = get_session().event_hooks["request"]
    hooks.append(lambda request: timeouts.extend(request.extensions["timeout"].values()))
    fetch_model("org/tiny")
    assert len(timeouts) == 4 * len(hub.asked)
    assert all(timeout and timeout <= 60 for timeout in timeouts)


def test_the_bounds_leave_requests_of_others_alone(hub: LoopbackHub) -> None:
    bound_waits()
    bound_waits()
    seen: list[httpx2.Request] = []
    session = get_session()
    assert len(session.event_hooks["response"]) == 1
    session.event_hooks["request"].append(seen.append)
    hub.fault("/other", status=429, headers={"Retry-After": "86400"})
    assert session.get(f"{hub.endpoint}/other", timeout=None).status_code == 429
    assert set(seen[0].extensions["timeout"].values()) == {None}


def test_a_server_that_is_no_hub_is_named(hub: LoopbackHub) -> None:
    hub.fault("", status=200, headers={"Content-Type": "text/html"}, body=b"<html>Welcome to the hotel</html>")
    with pytest.raises(HubUnreachable, match=f"{hub.endpoint} gave no usable answer"):
        fetch_model("org/tiny")
    hub.faults.clear()
    hub.fault("", status=200, body=b"[1, 2]")
    with pytest.raises(HubUnreachable, match="names no commit"):
        fetch_model("org/tiny")
