"""The shelf: what runs take up, pruning by hand, and exporting by name; each with what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kitchen_assets as kitchen
from kitchen_assets.shelf import export, prune, storage
from kitchen_resources.blobs.content import content_key
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.head import encode_head, head_key
from kitchen_resources.checkpoints.holder import this_holder
from kitchen_resources.checkpoints.lease import acquire
from kitchen_resources.datasets.sources import NoopDatasets
from kitchen_resources.digests import digest_bytes
from kitchen_resources.errors import CheckpointError, ConfigError, RegistryError
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.storage.room import StoredRun
from kitchen_resources.training.port import BaseModel, LocalCheckpoint, Serving
from kitchen_resources.training.pytorch import export as trl_export
from tests.engine import Engine, Planted, UnmarkedTrainer, failing_at, needed_files, payload_keys, register


@pytest.fixture
def engine() -> Engine:
    """A store with a finished run of three whole checkpoints."""
    engine = Engine()
    engine.finish(keep_last=3)
    return engine


def fingerprint_of(engine: Engine) -> str:
    return engine.head().fingerprint


# Storage


def test_an_empty_store_holds_no_runs() -> None:
    assert list(storage(Engine().blobs)) == []


def test_the_runs_in_the_store_the_largest_first(engine: Engine) -> None:
    first = engine.head()
    with pytest.raises(Planted, match="at step 5"):
        engine.with_(adapter=failing_at(5)).finish(seed=1)
    engine.finish(seed=2, keep_last=1)
    lease = acquire(engine.blobs, "ab" * 32, run="run-9", wait_s=0.0)
    second, third = engine.run(seed=1).fingerprint, engine.run(seed=2).fingerprint
    size = first.entries()[0].bytes
    found = storage(engine.blobs)
    assert found[0] == StoredRun("supervised", first.fingerprint, 3, 3, 3 * size, "completed", "")
    assert sorted(found[1:], key=lambda run: (-run.bytes, run.checkpoints)) == [
        StoredRun("supervised", second, 1, 1, size, "", ""),
        StoredRun("supervised", third, 3, 1, size, "completed", ""),
        StoredRun("", "ab" * 32, 0, 0, 0, "", "run-9"),
    ]
    assert [run.bytes for run in found] == [3 * size, size, size, 0]
    lease.release()
    assert [run.held_by for run in storage(engine.blobs)] == [""] * 4


def test_a_run_whose_process_was_killed_is_held_by_nobody(engine: Engine) -> None:
    head = engine.head()
    key = head_key(head.fingerprint)
    stored = engine.blobs.get(key)
    assert stored is not None
    dead = replace(head, holder=replace(this_holder("run-9"), started=1.0))
    assert engine.blobs.compare_and_swap(key, stored.version, encode_head(dead))
    assert storage(engine.blobs)[0].held_by == ""


def test_a_damaged_manifest_hides_no_run(engine: Engine) -> None:
    entries = engine.head().entries()
    engine.blobs.delete(content_key(entries[0].manifest))
    (found,) = storage(engine.blobs)
    assert (found.recipe, found.checkpoints) == ("supervised", 3)
    for entry in entries[1:]:
        engine.blobs.delete(content_key(entry.manifest))
    (found,) = storage(engine.blobs)
    assert (found.recipe, found.whole) == ("", 3)


def test_the_store_that_runs_use_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(blobs=LocalBlobs(tmp_path / "store"))
    engine.finish()
    monkeypatch.setenv("KITCHEN_STORE", str(tmp_path / "store"))
    fingerprint = fingerprint_of(engine)
    assert [run.fingerprint for run in kitchen.storage()] == [fingerprint]
    assert kitchen.prune().runs == {fingerprint: [6]}
    assert len(payload_keys(engine)) == 1
    with pytest.raises(CheckpointError, match="is simulated and has no weights"):
        kitchen.export(f"{fingerprint[:12]}@9", tmp_path / "model")


# Pruning


def test_pruning_by_hand_keeps_the_newest_of_each_run(engine: Engine) -> None:
    first = fingerprint_of(engine)
    engine.finish(seed=1, keep_last=3)
    second = engine.run(seed=1).fingerprint
    assert prune(blobs=engine.blobs).runs == {first: [3, 6], second: [3, 6]}
    assert prune(blobs=engine.blobs).runs == {}
    assert len(payload_keys(engine)) == needed_files(engine) == 2
    for fingerprint in (first, second):
        head = engine.store.head(fingerprint)
        assert [entry.reason for entry in head.entries()] == ["pruned by hand, keep_last 1"] * 2 + [""]
        assert head.holder is None
    assert engine.finish().steps_done == 0


def test_only_the_named_run_is_pruned(engine: Engine) -> None:
    first = fingerprint_of(engine)
    engine.finish(seed=1, keep_last=3)
    assert prune(first[:8], blobs=engine.blobs).runs == {first: [3, 6]}
    assert len(payload_keys(engine)) == 4


@pytest.mark.parametrize(("keep_last", "gone"), [(0, [3, 6]), (1, [3, 6]), (2, [3]), (3, []), (9, [])])
def test_as_many_are_kept_as_are_asked_for(engine: Engine, keep_last: int, gone: list[int]) -> None:
    expected = {fingerprint_of(engine): gone} if gone else {}
    assert prune(keep_last=keep_last, blobs=engine.blobs).runs == expected
    assert len(payload_keys(engine)) == 3 - len(gone)


def test_of_a_run_without_a_version_the_best_by_each_metric_is_kept(engine: Engine) -> None:
    # Its launch says by which it selects, and may be interrupted.
    lease = acquire(engine.blobs, fingerprint_of(engine), run="test", wait_s=0.0)
    for step, loss, reward in ((3, 0.1, 0.2), (6, 0.5, 0.9), (9, 0.7, 0.4)):
        engine.store.record_evaluation(lease, step, "key", {}, {"held_out/loss": loss, "held_out/reward": reward})
    lease.release()
    assert prune(blobs=engine.blobs, dry_run=True).runs == {}
    assert prune(blobs=engine.blobs).runs == {}
    register(engine, engine.head(), 9)
    assert prune(blobs=engine.blobs).runs == {fingerprint_of(engine): [3, 6]}


def test_of_a_run_with_a_version_none_is_kept_besides_when_none_is_asked_for(engine: Engine) -> None:
    register(engine, engine.head(), 3)
    assert prune(keep_last=0, blobs=engine.blobs).runs == {fingerprint_of(engine): [6, 9]}


def test_what_a_version_was_made_of_is_kept(engine: Engine) -> None:
    register(engine, engine.head(), 3)
    assert prune(keep_last=0, blobs=engine.blobs).runs == {fingerprint_of(engine): [6, 9]}
    assert [entry.payload for entry in engine.head().entries()] == ["present", "pruned", "pruned"]


def test_a_run_that_is_being_trained_is_left_alone(engine: Engine) -> None:
    lease = acquire(engine.blobs, fingerprint_of(engine), run="run-9", wait_s=0.0)
    assert prune(blobs=engine.blobs).runs == {}
    assert len(payload_keys(engine)) == 3
    lease.check()
    lease.release()


def test_what_can_not_be_pruned_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError) as refused:
        prune("0123abcd", blobs=engine.blobs)
    assert str(refused.value) == "prune: no run starts with 0123abcd\n  fix: see kitchen_assets.storage()"
    with pytest.raises(ConfigError) as refused:
        prune(keep_last=-1, blobs=engine.blobs)
    assert str(refused.value) == "keep_last: is -1, and must be at least 0\n  fix: keep_last=1"
    assert prune(blobs=Engine().blobs).runs == {}
    assert len(payload_keys(engine)) == 3


# Exporting


def test_a_version_is_written_as_it_was_registered(engine: Engine, tmp_path: Path) -> None:
    version = register(engine, engine.head(), 9)
    StoreRegistry(engine.blobs).move_alias("supervised", "candidate", version.version, expected=None)
    for which in ("1", "candidate"):
        folder = export(f"supervised@{which}", tmp_path / which, blobs=engine.blobs)
        assert folder == tmp_path / which
        assert (folder / "config.json").read_bytes() == b"{}"
        assert (folder / "adapter" / "a.json").read_bytes() == b"[]"
        # A copy of its own: what is done to it reaches nothing else.
        (folder / "config.json").write_bytes(b"changed")
    assert engine.store.content.get(digest_bytes(b"{}")) == b"{}"


@pytest.mark.parametrize("source", ["", "@", "supervised", "@1", "supervised@", "3f2a91c04b77"])
def test_what_names_nothing_is_refused(engine: Engine, tmp_path: Path, source: str) -> None:
    with pytest.raises(ConfigError) as refused:
        export(source, tmp_path / "out", blobs=engine.blobs)
    assert str(refused.value) == (
        f"export: {source!r} names neither a version nor a checkpoint\n"
        "  fix: supervised@candidate, supervised@3, or 3f2a91c04b77@400"
    )


def test_a_folder_that_is_there_is_refused_and_stays(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=f"^{tmp_path / 'out'}: exists already\n  fix: name a new folder$"):
        export("supervised@1", tmp_path / "out", blobs=engine.blobs)
    assert list((tmp_path / "out").iterdir()) == []


def test_unknown_versions_and_aliases_are_refused(engine: Engine, tmp_path: Path) -> None:
    register(engine, engine.head(), 9)
    with pytest.raises(RegistryError, match=r"^model supervised: has no version 2\n  fix: registered versions: 1$"):
        export("supervised@2", tmp_path / "out", blobs=engine.blobs)
    with pytest.raises(ConfigError, match=r"^export: model 'supervised' has no alias 'best'\n"):
        export("supervised@best", tmp_path / "out", blobs=engine.blobs)
    with pytest.raises(ConfigError, match="has no alias '²'"):
        export("supervised@²", tmp_path / "out", blobs=engine.blobs)
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_can_not_be_exported_are_refused(engine: Engine, tmp_path: Path) -> None:
    fingerprint = fingerprint_of(engine)
    with pytest.raises(CheckpointError) as refused:
        export(f"{fingerprint[:12]}@4", tmp_path / "out", blobs=engine.blobs)
    assert str(refused.value) == (
        f"run {fingerprint[:12]}: has no checkpoint at step 4\n  fix: its checkpoints: 3, 6, 9"
    )
    with pytest.raises(CheckpointError) as refused:
        export(f"{fingerprint[:12]}@9", tmp_path / "out", blobs=engine.blobs)
    assert str(refused.value) == (
        f"run {fingerprint[:12]}, step 9: is simulated and has no weights\n  fix: train it with a real backend"
    )
    acquire(engine.blobs, "ab" * 32, run="me", wait_s=0.0).release()
    with pytest.raises(CheckpointError, match="has no checkpoint at step 1\n  fix: its checkpoints: none yet"):
        export("abababab@1", tmp_path / "out", blobs=engine.blobs)
    assert not (tmp_path / "out").exists()


def test_an_ambiguous_prefix_is_refused(engine: Engine, tmp_path: Path) -> None:
    for last in "01":
        acquire(engine.blobs, "abab" + last * 60, run="me", wait_s=0.0).release()
    with pytest.raises(ConfigError) as refused:
        export("abab@9", tmp_path / "out", blobs=engine.blobs)
    assert str(refused.value) == (
        f"export: 2 runs start with abab\n  fix: give more digits: abab{'0' * 12}, abab{'1' * 12}"
    )


# Exporting what was really trained; the writing itself is the backend's and has its own tests.


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the backend was asked to write."""
    calls: list[dict[str, Any]] = []

    def write(base: BaseModel, serving: Serving, checkpoint: LocalCheckpoint, target: Path, *, merged: bool) -> None:
        names = sorted(path.name for path in checkpoint.folder.iterdir())
        calls.append(
            {"base": base, "serving": serving, "step": checkpoint.global_step, "files": names, "merged": merged}
        )
        target.mkdir(parents=True)

    monkeypatch.setattr(trl_export, "export_model", write)
    return calls


@pytest.fixture
def trained() -> Engine:
    engine = Engine(adapter=UnmarkedTrainer(), datasets=NoopDatasets(10))
    engine.finish(model="embedded:tiny", keep_last=3)
    return engine


def test_a_checkpoint_is_written_from_its_record_alone(
    trained: Engine, written: list[dict[str, Any]], tmp_path: Path
) -> None:
    fingerprint = fingerprint_of(trained)
    export(f"{fingerprint[:12]}@6", tmp_path / "out", merged=False, blobs=trained.blobs)
    (call,) = written
    manifest = trained.store.manifest(trained.head().entries()[1])
    assert (call["step"], call["files"], call["merged"]) == (6, ["simulated.json"], False)
    assert call["base"].digest == manifest.base["digest"]
    serving: Serving = call["serving"]
    assert list(serving.stop_token_ids) == manifest.serving["stop_token_ids"]
    assert isinstance(serving.stop_token_ids, tuple)
    assert [path.name for path in trained.blobs.scratch().glob("work/*")] == []


def test_the_other_form_of_a_version_is_made_from_its_checkpoint(
    trained: Engine, written: list[dict[str, Any]], tmp_path: Path
) -> None:
    register(trained, trained.head(), 6, kind="merged")
    register(trained, trained.head(), 9, kind="adapter")
    for version, merged in ((1, True), (2, False)):
        export(f"supervised@{version}", tmp_path / f"own-{version}", merged=merged, blobs=trained.blobs)
    assert written == []
    export("supervised@1", tmp_path / "adapter", merged=False, blobs=trained.blobs)
    export("supervised@2", tmp_path / "merged", merged=True, blobs=trained.blobs)
    assert [(call["step"], call["merged"]) for call in written] == [(6, False), (9, True)]


def test_a_base_that_changed_is_refused(
    trained: Engine, written: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kitchen_resources.training import exporting

    real = exporting.resolve_base
    monkeypatch.setattr(exporting, "resolve_base", lambda *args: replace(real(*args), digest="0" * 64))
    with pytest.raises(CheckpointError) as refused:
        export(f"{fingerprint_of(trained)[:12]}@6", tmp_path / "out", blobs=trained.blobs)
    assert str(refused.value) == (
        f"run {fingerprint_of(trained)[:12]}: its base embedded:tiny is not what it was trained from\n"
        "  fix: restore that base model"
    )
    assert written == []


def test_a_pruned_checkpoint_is_refused(trained: Engine, written: list[dict[str, Any]], tmp_path: Path) -> None:
    prune(blobs=trained.blobs)
    with pytest.raises(CheckpointError, match=r"step 6: its payload was pruned \(pruned by hand, keep_last 1\)$"):
        export(f"{fingerprint_of(trained)[:12]}@6", tmp_path / "out", blobs=trained.blobs)
    assert written == []
    assert list(trained.blobs.scratch().glob("work/*")) == []
