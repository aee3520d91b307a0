"""Fetching from a hub: what is refused, and that nothing was written or sent before."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loopback_hub import MODEL, ROWS, TOKEN, WEIGHTS, LoopbackHub, hub_in_use, record_waits, sharded

from kitchen_resources.errors import ConfigError, DiskFull, HubError
from kitchen_resources.hub import fetch_dataset, fetch_model, is_repo_id


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return record_waits(monkeypatch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: list[float]) -> Iterator[LoopbackHub]:
    with hub_in_use(monkeypatch, tmp_path) as running:
        yield running


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


def test_an_index_that_names_a_file_that_is_not_there_is_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    snapshots = tmp_path / "cache/models--org--tiny/snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / "outside.safetensors").write_bytes(WEIGHTS)
    for shard in ("model-00009-of-00009.safetensors", "../outside.safetensors"):
        index = json.dumps({"weight_map": {"a": shard}}).encode()
        hub.model("org/tiny").commit(sharded(**{"model.safetensors.index.json": index}))
        with pytest.raises(HubError, match=r"not whole: .*which model.safetensors.index.json names, is missing"):
            fetch_model("org/tiny")


@pytest.mark.parametrize("name", ["", "a/b/c", "/abs", "../up", "a--b", "name.git", "a b", "café"])
def test_a_name_that_no_hub_has_is_refused_before_anything_is_sent(hub: LoopbackHub, name: str) -> None:
    with pytest.raises(ConfigError, match="not the name of a model"):
        fetch_model(name)
    assert hub.asked == []


@pytest.mark.parametrize(
    "revision",
    ["", "../../../evil", "a/../b", "a..b", "/abs", "-x", "a b", "a\n", "x.lock", "a~1", "a//b", "v" * 300],
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


def test_an_endpoint_that_is_not_allowed_gets_nothing(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a request was sent")

    monkeypatch.setattr(httpx2.Client, "send", refuse)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "https://huggingface.co.evil.com")
    monkeypatch.delenv("KITCHEN_ALLOWED_ENDPOINTS", raising=False)
    for fetch in (fetch_model, fetch_dataset):
        with pytest.raises(ConfigError, match=r"HF_ENDPOINT: https://huggingface\.co\.evil\.com is not an endpoint"):
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
