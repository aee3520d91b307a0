"""Fetching from a hub: the real client against a small hub on loopback."""

import json
import logging
import shutil
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import _tree_cache, close_session, constants, get_session

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loopback_hub import LoopbackHub, loopback_hub

from kitchen_resources.errors import ConfigError, DiskFull, HubError
from kitchen_resources.hub import HubUnreachable, Snapshot, fetch_dataset, fetch_model, is_repo_id
from kitchen_resources.hub.files import wanted_files
from kitchen_resources.hub.patience import bound_waits

TOKEN = "hf_thisTokenIsNeverShown"
WEIGHTS = bytes(range(256)) * 40
MODEL = {
    "config.json": b'{"model_type": "tiny"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"pad_token": "x"}',
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "model.safetensors": WEIGHTS,
}
NOT_FETCHED = {
    "pytorch_model.bin": b"a pickle",
    "modeling_tiny.py": b"import os",
    "README.md": b"# tiny",
    "onnx/model.safetensors": b"other weights",
    "training_args.bin": b"another pickle",
}
ROWS = {"README.md": b"---\n---\n", "data/train.jsonl": b'{"text": "a"}\n', "data/test.parquet": b"PAR1" * 9}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that the client asks for; none is waited."""
    asked: list[float] = []
    monkeypatch.setattr("time.sleep", asked.append)
    return asked


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: list[float]) -> Iterator[LoopbackHub]:
    """A running hub that the environment points to, with an empty cache and no token."""
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_OIDC_RESOURCE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "never"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    close_session()
    with loopback_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running
        close_session()
    assert not (tmp_path / "never").exists()


@pytest.fixture
def go_offline(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Point the environment to a port where nothing listens, as a new process would find it."""

    def leave() -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        _tree_cache._IN_MEMORY_TREE_CACHE.clear()
        return endpoint

    return leave


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def full_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def sharded(**files: bytes) -> dict[str, bytes]:
    shards = {f"model-0000{n}-of-00002.safetensors": WEIGHTS + bytes([n]) for n in (1, 2)}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    others = {name: data for name, data in MODEL.items() if name != "model.safetensors"}
    return others | shards | {"model.safetensors.index.json": json.dumps(index).encode()} | files


# What is fetched


def test_a_model_arrives_whole_and_without_what_training_does_not_read(hub: LoopbackHub) -> None:
    commit = hub.model("org/tiny").commit(MODEL | NOT_FETCHED)
    snapshot = fetch_model("org/tiny")
    assert snapshot == Snapshot(snapshot.folder, "org/tiny", commit, cached=False, note="")
    assert snapshot.folder.name == commit
    assert content(snapshot.folder) == MODEL
    for name in NOT_FETCHED:
        assert not any(path.endswith(f"/{name}") for path in hub.paths())


def test_a_second_fetch_asks_one_question_and_downloads_nothing(hub: LoopbackHub) -> None:
    hub.model("org/tiny").commit(MODEL)
    first = fetch_model("org/tiny")
    hub.asked.clear()
    assert fetch_model("org/tiny") == first
    assert hub.paths() == ["/api/models/org/tiny/revision/main"]


def test_a_dataset_arrives_without_its_scripts(hub: LoopbackHub) -> None:
    hub.page_size = 2
    commit = hub.dataset("org/rows").commit(ROWS | {"rows.py": b"import os", "a.bin": b"x", "b.txt": b"y"})
    snapshot = fetch_dataset("org/rows")
    assert (snapshot.commit, snapshot.cached, snapshot.note) == (commit, False, "")
    assert content(snapshot.folder) == ROWS
    hub.asked.clear()
    assert fetch_dataset("org/rows") == snapshot
    assert hub.paths() == ["/api/datasets/org/rows/revision/main"]


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: LoopbackHub) -> None:
    repo = hub.model("org/tiny")
    old = repo.commit(MODEL | {"config.json": b'{"old": 1}'}, "v1", "refs/pr/3")
    new = repo.commit(MODEL)
    for revision, commit in (("v1", old), ("refs/pr/3", old), ("main", new), (None, new)):
        snapshot = fetch_model("org/tiny", revision=revision)
        assert (snapshot.commit, snapshot.cached) == (commit, False)
        assert content(snapshot.folder) == repo.commits[commit]


def test_a_commit_that_is_cached_whole_needs_no_network(hub: LoopbackHub) -> None:
    commit = hub.model("org/tiny").commit(MODEL)
    first = fetch_model("org/tiny", revision=commit)
    assert not first.cached
    hub.asked.clear()
    second = fetch_model("org/tiny", revision=commit)
    assert second == Snapshot(first.folder, "org/tiny", commit, cached=True, note="")
    assert hub.asked == []


def test_a_branch_that_moved_is_followed_and_only_changed_files_are_downloaded(hub: LoopbackHub) -> None:
    repo = hub.model("org/tiny")
    repo.commit(MODEL)
    fetch_model("org/tiny")
    new = repo.commit(MODEL | {"config.json": b'{"changed": true}'})
    hub.asked.clear()
    snapshot = fetch_model("org/tiny")
    assert snapshot.commit == new
    assert content(snapshot.folder) == MODEL | {"config.json": b'{"changed": true}'}
    downloads = [path for path in hub.paths("GET") if "/api/" not in path]
    assert downloads == [f"/org/tiny/resolve/{new}/config.json"]


def test_an_adapter_and_shards_are_models_too(hub: LoopbackHub) -> None:
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS}
    hub.model("org/adapter").commit(adapter)
    hub.model("org/shards").commit(sharded())
    assert content(fetch_model("org/adapter").folder) == adapter
    assert content(fetch_model("org/shards").folder) == sharded()


def test_a_file_name_with_glob_characters_is_fetched_as_it_is(hub: LoopbackHub) -> None:
    files = MODEL | {"model[1]*.safetensors": b"more"}
    hub.model("org/tiny").commit(files)
    assert content(fetch_model("org/tiny").folder) == files


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["consolidated.safetensors", "model-1.safetensors"], ["model-1.safetensors"]),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors"]),
        (
            ["vocab.txt", "vocab.bin", "merges.txt", "spiece.model"],
            ["merges.txt", "spiece.model", "vocab.txt"],
        ),
        (["sub/config.json", "a/additional_chat_templates/x", "model.pt"], []),
    ],
)
def test_wanted_files_of_a_model(names: list[str], wanted: list[str]) -> None:
    assert wanted_files("model", names) == wanted


def test_several_fetches_at_once_give_the_same_snapshot(hub: LoopbackHub) -> None:
    hub.model("org/tiny").commit(MODEL)
    with ThreadPoolExecutor(4) as pool:
        snapshots = list(pool.map(fetch_model, ["org/tiny"] * 4))
    assert len(set(snapshots)) == 1
    assert content(snapshots[0].folder) == MODEL


# What is refused


@pytest.mark.parametrize(
    ("files", "what", "fix"),
    [
        (
            {"config.json": b"{}", "pytorch_model.bin": b"p"},
            "only there as pickles (pytorch_model.bin)",
            "save_pretrained",
        ),
        (
            {"config.json": b"{}", "a.pth": b"", "b.ckpt": b"", "c.pt": b""},
            "pickles (a.pth, b.ckpt, c.pt)",
            "pickle",
        ),
        ({"tiny-q4.gguf": b"GGUF"}, "only there as GGUF (tiny-q4.gguf)", "base_model"),
        (
            {"config.json": b"{}", "README.md": b""},
            "no weights: no .safetensors file, only README.md, config.json",
            "tree",
        ),
        ({}, "no weights: no .safetensors file, only nothing", "tree"),
        ({"config.json": b"{}", "sub/a.safetensors": b""}, "not in the top folder but in sub", "top folder"),
        ({"model.safetensors": b"w"}, "neither config.json nor adapter_config.json", "transformers layout"),
    ],
)
def test_a_model_without_usable_weights_is_refused_before_any_download(
    hub: LoopbackHub, files: dict[str, bytes], what: str, fix: str
) -> None:
    hub.model("org/tiny").commit(files)
    with pytest.raises(HubError) as caught:
        fetch_model("org/tiny")
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where == "model org/tiny at main"
    assert not any("/resolve/" in path for path in hub.paths())


def test_a_dataset_without_data_files_is_refused(hub: LoopbackHub) -> None:
    hub.dataset("org/rows").commit({"rows.py": b"import os", "README.md": b""})
    with pytest.raises(
        HubError, match=r"no data files .*only README.md, rows.py; scripts of data sets are never run"
    ):
        fetch_dataset("org/rows")


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.safetensors",
        "/tmp/evil.json",
        "a/../../evil.json",
        "..\\evil.json",
        "additional_chat_templates/../x",
    ],
)
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_file_name_that_leads_out_is_refused_and_nothing_is_written(
    hub: LoopbackHub, tmp_path: Path, kind: str, name: str
) -> None:
    (hub.model if kind == "model" else hub.dataset)("org/evil").commit(MODEL | ROWS | {name: b"evil"})
    with pytest.raises(HubError, match="written outside its folder"):
        (fetch_model if kind == "model" else fetch_dataset)("org/evil")
    assert list(tmp_path.rglob("*")) == []
    assert not any("/resolve/" in path for path in hub.paths())


def test_a_commit_that_is_no_commit_is_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.model("org/tiny").commit(MODEL)
    hub.fault("/revision/", status=200, body=b'{"sha": "../../../evil"}')
    with pytest.raises(HubError, match="names no commit"):
        fetch_model("org/tiny")
    assert list(tmp_path.rglob("*")) == []


def test_an_index_that_names_a_file_that_is_not_there_is_refused(hub: LoopbackHub) -> None:
    for shard in ("model-00009-of-00009.safetensors", "../../outside.safetensors"):
        index = json.dumps({"weight_map": {"a": shard}}).encode()
        hub.model("org/tiny").commit(sharded(**{"model.safetensors.index.json": index}))
        with pytest.raises(
            HubError, match=r"not whole: .*which model.safetensors.index.json names, is missing"
        ):
            fetch_model("org/tiny")


@pytest.mark.parametrize("name", ["", "a/b/c", "/abs", "../up", "a--b", "name.git", "a b", "café"])
def test_a_name_that_no_hub_has_is_refused_before_anything_is_sent(hub: LoopbackHub, name: str) -> None:
    with pytest.raises(ConfigError, match="not the name of a model"):
        fetch_model(name)
    assert hub.asked == []


@pytest.mark.parametrize(
    "revision",
    ["", "../../../evil", "a/../b", "/abs", "-x", "a b", "a\n", "x.lock", "a~1", "a//b", "v" * 300],
)
def test_a_revision_that_git_could_not_have_is_refused_before_anything_is_sent(
    hub: LoopbackHub, revision: str
) -> None:
    with pytest.raises(ConfigError, match="is not a revision"):
        fetch_model("org/tiny", revision=revision)
    assert hub.asked == []


def test_is_repo_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("gpt2", "org/tiny", "Qwen/Qwen3-0.6B", "a_b/c.d"):
        assert is_repo_id(text)
    for text in ("", "./org/tiny", "/models/tiny", "a/b/c", "~/tiny", "s3://bucket/x", "a..b", "a\0b"):
        assert not is_repo_id(text)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert not is_repo_id("org/tiny")


def test_an_endpoint_that_is_not_allowed_gets_nothing(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a request was sent")

    monkeypatch.setattr(httpx2.Client, "send", refuse)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "https://huggingface.co.evil.com")
    monkeypatch.delenv("KITCHEN_ALLOWED_ENDPOINTS", raising=False)
    for fetch in (fetch_model, fetch_dataset):
        with pytest.raises(
            ConfigError, match=r"HF_ENDPOINT: https://huggingface\.co\.evil\.com is not an endpoint"
        ):
            fetch("org/tiny")


def test_a_disk_without_room_is_refused_before_any_download(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("org/tiny").commit(MODEL)
    needed = sum(len(data) for data in MODEL.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, needed - 1))
    with pytest.raises(DiskFull, match=f"{needed:,} bytes are to be downloaded"):
        fetch_model("org/tiny")
    assert not any("/resolve/" in path for path in hub.paths())


# Who may fetch what


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
def test_a_private_and_a_missing_repository(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    if private:
        hub.model("org/tiny", private=True).commit(MODEL)
    with pytest.raises(
        HubError, match=r"no such model on .* or it is private and no token was sent"
    ) as caught:
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
    with pytest.raises(
        HubError, match=r"has no access to it \(HTTP 403: the token lacks a scope\)"
    ) as caught:
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


def test_a_login_is_used_and_the_storage_server_never_sees_the_token(
    hub: LoopbackHub, tmp_path: Path
) -> None:
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
    assert caught.value.__cause__ is None
    assert isinstance(caught.value.__context__, (HubUnreachable, type(None)))
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


# When the hub can't be asked


def test_without_network_the_cached_copy_is_used_and_said(
    hub: LoopbackHub, go_offline: Callable[[], str]
) -> None:
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
    with pytest.raises(
        HubError, match=f"{variable} is set, and no copy of that revision is cached"
    ) as caught:
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
    with pytest.raises(
        HubUnreachable, match=rf"could not be reached .*the cached copy of {new} .* is missing"
    ):
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
def test_an_error_that_stays_is_told_after_bounded_retries(
    hub: LoopbackHub, waits: list[float], place: str
) -> None:
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


def test_the_wait_that_the_hub_asks_for_is_kept_when_it_is_short(
    hub: LoopbackHub, waits: list[float]
) -> None:
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
    hub.fault(
        "", status=200, headers={"Content-Type": "text/html"}, body=b"<html>Welcome to the hotel</html>"
    )
    with pytest.raises(HubUnreachable, match=f"{hub.endpoint} gave no usable answer"):
        fetch_model("org/tiny")
    hub.faults.clear()
    hub.fault("", status=200, body=b"[1, 2]")
    with pytest.raises(HubUnreachable, match="names no commit"):
        fetch_model("org/tiny")
