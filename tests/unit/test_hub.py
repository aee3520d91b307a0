"""Fetching from a hub: what arrives. The real client against a small hub on loopback."""

import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

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

from kitchen_resources.hub import Snapshot, fetch_dataset, fetch_model
from kitchen_resources.hub.files import DATASET_FILES, download_patterns, wanted_files

NOT_FETCHED = {
    "pytorch_model.bin": b"a pickle",
    "modeling_tiny.py": b"import os",
    "README.md": b"# tiny",
    "onnx/model.safetensors": b"other weights",
    "training_args.bin": b"another pickle",
}


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


@pytest.mark.parametrize("lost", ["model.safetensors", "../../trees"])
def test_a_commit_that_is_not_surely_whole_is_fetched(
    hub: LoopbackHub, go_offline: Callable[[], str], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    commit = hub.model("org/tiny").commit(MODEL)
    path = fetch_model("org/tiny").folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    go_offline()
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    snapshot = fetch_model("org/tiny", revision=commit)
    assert not snapshot.cached
    assert content(snapshot.folder) == MODEL


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
    assert len([path for path in hub.paths("GET") if "/api/" not in path]) == len(files)


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


def test_download_patterns_select_the_wanted_files_and_no_others() -> None:
    assert download_patterns("model", ["model[1].safetensors"]) == ["model[[]1].safetensors"]
    assert download_patterns("dataset", ["a/b.csv"]) == list(DATASET_FILES)


def test_several_fetches_at_once_give_the_same_snapshot(hub: LoopbackHub) -> None:
    hub.model("org/tiny").commit(MODEL)
    with ThreadPoolExecutor(4) as pool:
        snapshots = list(pool.map(fetch_model, ["org/tiny"] * 4))
    assert len(set(snapshots)) == 1
    assert content(snapshots[0].folder) == MODEL
