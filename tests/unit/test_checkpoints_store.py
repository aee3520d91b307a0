"""The checkpoint store: what publishing writes, when it counts, and what comes back."""

from dataclasses import replace
from pathlib import Path

import pytest

from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import CheckpointEntry, Head
from kitchen_resources.checkpoints.lease import Lease, acquire
from kitchen_resources.checkpoints.manifest import Manifest, encode_manifest, state_digest
from kitchen_resources.checkpoints.store import CheckpointStore, local_checkpoint
from kitchen_resources.digests import digest_bytes, digest_json
from kitchen_resources.errors import BlobError, CheckpointError, DiskFull
from kitchen_resources.training.port import LocalCheckpoint
from tests.faulty_blobs import FaultyBlobs
from tests.unit.checkpoint_drafts import RECORD, RUN, draft, metrics, publish, sha

# Publishing


def test_what_a_published_checkpoint_is(store: CheckpointStore, lease: Lease, tmp_path: Path) -> None:
    entry = store.publish(lease, draft(tmp_path, 1), RECORD, "p" * 64)
    assert store.head(RUN).checkpoints == (entry,)
    manifest = store.manifest(entry)
    assert manifest == Manifest(
        fingerprint=RUN,
        recipe="supervised",
        identity=RECORD.identity,
        environment=RECORD.environment,
        base=RECORD.base,
        serving=RECORD.serving,
        token=1,
        epoch=1,
        global_step=1,
        steps_into_epoch=1,
        epoch_complete=True,
        parent="p" * 64,
        files=manifest.files,
        records=manifest.records,
        metrics={"loss": 0.25},
        state_digest=state_digest(manifest.files, sha("[[3,1],[2]]"), (1, 1, 1)),
        simulated=False,
    )
    assert {name: (f.sha256, f.size, f.state) for name, f in manifest.files.items()} == {
        "model.safetensors": (sha("weights 1"), 9, True),
        "config.json": (sha("{}"), 2, False),
    }
    assert entry == CheckpointEntry(
        step=1,
        epoch=1,
        epoch_complete=True,
        manifest=digest_bytes(encode_manifest(manifest)),
        state_digest=manifest.state_digest,
        bytes=11,
    )
    assert store.ledger(manifest) == [[3, 1], [2]]
    assert store.steps(manifest) == [metrics(1), metrics(2)]


def test_the_same_state_published_by_another_holder_has_the_same_state_digest(
    store: CheckpointStore, blobs: BlobStore, lease: Lease, tmp_path: Path
) -> None:
    (first,) = publish(store, lease, tmp_path, 1)
    lease.release()
    later = acquire(blobs, RUN, run="later", wait_s=0.0)
    again = store.publish(later, draft(tmp_path, 1), replace(RECORD, environment={"torch": "2.14"}), "")
    later.release()
    assert again.state_digest == first.state_digest
    assert again.manifest != first.manifest
    assert store.head(RUN).entries() == [again]


@pytest.mark.parametrize("missed", ["put_file", "put_if_absent", "compare_and_swap"])
def test_it_exists_only_when_the_head_says_so(blobs: BlobStore, lease: Lease, tmp_path: Path, missed: str) -> None:
    def fail(verb: str, key: str) -> None:
        if verb == missed:
            raise BlobError("away", where=key)

    faulty = FaultyBlobs(blobs)
    lease._blobs = faulty
    store = CheckpointStore(faulty)
    faulty.before = fail
    with pytest.raises(BlobError):
        publish(store, lease, tmp_path, 1)
    faulty.before = lambda verb, key: None
    assert store.head(RUN).entries() == []
    (entry,) = publish(store, lease, tmp_path, 1)
    assert store.checkout(RUN, entry, tmp_path / "out").state_digest == entry.state_digest


def test_a_file_that_is_missing_publishes_nothing(store: CheckpointStore, lease: Lease, tmp_path: Path) -> None:
    incomplete = draft(tmp_path, 1, other_files=["config.json", "tokenizer.json"])
    with pytest.raises(FileNotFoundError):
        store.publish(lease, incomplete, RECORD, "")
    assert store.head(RUN).checkpoints == ()


# Reading back


def test_a_checkpoint_comes_back_byte_by_byte(store: CheckpointStore, lease: Lease, tmp_path: Path) -> None:
    given = draft(tmp_path, 2, steps_into_epoch=2, epoch=1, epoch_complete=False)
    entry = store.publish(lease, given, RECORD, "")
    found = store.checkout(RUN, entry, tmp_path / "out")
    assert found == LocalCheckpoint(
        folder=tmp_path / "out",
        epoch=1,
        global_step=2,
        steps_into_epoch=2,
        epoch_complete=False,
        state_digest=entry.state_digest,
    )
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == {
        "model.safetensors": b"weights 2",
        "config.json": b"{}",
    }
    assert local_checkpoint(tmp_path / "out", given, entry) == found


def test_a_folder_that_is_there_is_replaced(store: CheckpointStore, lease: Lease, tmp_path: Path) -> None:
    (entry,) = publish(store, lease, tmp_path, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_bytes(b"")
    store.checkout(RUN, entry, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


# A folder that several share


def test_a_shared_folder_is_made_once_and_left_alone_while_it_is_sound(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    (entry,) = publish(store, lease, tmp_path, 1)
    target = tmp_path / "starts" / "one"
    assert store.checkout_shared(RUN, entry, target) == store.checkout(RUN, entry, target)
    inode = target.stat().st_ino
    reads: list[str] = []
    watched = CheckpointStore(FaultyBlobs(blobs, before=lambda verb, key: reads.append(verb)))
    assert watched.checkout_shared(RUN, entry, target).folder == target
    assert target.stat().st_ino == inode
    assert "get_file" not in reads
    assert [path.name for path in target.parent.iterdir()] == ["one"]


def test_a_shared_folder_that_is_damaged_is_made_anew(store: CheckpointStore, lease: Lease, tmp_path: Path) -> None:
    (entry,) = publish(store, lease, tmp_path, 1)
    target = tmp_path / "starts" / "one"
    store.checkout_shared(RUN, entry, target)
    (target / "model.safetensors").unlink()
    (target / "model.safetensors").write_bytes(b"weights 2")
    store.checkout_shared(RUN, entry, target)
    assert (target / "model.safetensors").read_bytes() == b"weights 1"
    assert [path.name for path in target.parent.iterdir()] == ["one"]


def test_a_shared_folder_that_another_process_makes_at_the_same_time_is_taken(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    (entry,) = publish(store, lease, tmp_path, 1)
    target = tmp_path / "starts" / "one"
    other: list[LocalCheckpoint] = []

    def rival(verb: str, key: str) -> None:
        if verb == "get_file" and not other:
            other.append(store.checkout_shared(RUN, entry, target))

    found = CheckpointStore(FaultyBlobs(blobs, after=rival)).checkout_shared(RUN, entry, target)
    assert other == [found]
    assert (target / "model.safetensors").read_bytes() == b"weights 1"
    assert [path.name for path in target.parent.iterdir()] == ["one"]


# The rest


def test_runs_are_found_by_prefix(blobs: BlobStore, store: CheckpointStore) -> None:
    runs = sorted(["abc1" + "0" * 60, "abc2" + "0" * 60, "abd0" + "0" * 60])
    for run in runs:
        acquire(blobs, run, run="me", wait_s=0.0).release()
    blobs.put_if_absent(f"runs/{'f' * 64}/payload/1/x", b"")
    assert store.find("") == runs
    assert store.find("abc") == runs[:2]
    assert store.find(runs[2]) == [runs[2]]
    assert store.find("abcd") == []


def test_a_run_that_was_never_started_has_an_empty_head(store: CheckpointStore) -> None:
    assert store.head("ab" * 32) == Head("ab" * 32)


@pytest.mark.parametrize("free", [0, 3 * 2**20 - 1])
def test_too_little_space_is_refused_with_both_numbers(blobs: BlobStore, free: int) -> None:
    full = FaultyBlobs(blobs)
    full.free = free
    with pytest.raises(DiskFull) as refused:
        CheckpointStore(full).require_space(2**20)
    assert str(refused.value) == (
        f"{blobs.uri}: {free / 2**20:,.1f} MiB are free, and the next checkpoint needs 3.0 MiB (3 x 1.0: scratch, "
        "store, and the copy to resume from)\n  fix: free disk space, delete old checkpoints by "
        "kitchen_assets.prune(), or point KITCHEN_STORE to a larger disk"
    )


def test_space_that_is_just_enough_or_has_no_limit_is_accepted(blobs: BlobStore) -> None:
    just = FaultyBlobs(blobs)
    just.free = 3 * 2**20
    CheckpointStore(just).require_space(2**20)
    CheckpointStore(MemoryBlobs()).require_space(2**60)


def test_recording_an_evaluation_keeps_what_is_known(store: CheckpointStore, lease: Lease, tmp_path: Path) -> None:
    publish(store, lease, tmp_path, 1)
    store.record_evaluation(lease, 1, "one", {"n": 3}, {"held_out/loss": 0.5})
    store.record_evaluation(lease, 1, "two", {"n": 4}, {"held_out/loss": 0.25})
    evaluations = store.head(RUN).entries()[0].evaluations
    assert {key: value.metrics["held_out/loss"] for key, value in evaluations.items()} == {"one": 0.5, "two": 0.25}
    assert store.content.get(evaluations["two"].blob) == b'{"n":4}'
    assert evaluations["one"].blob == digest_json({"n": 3})
    with pytest.raises(CheckpointError, match="has no checkpoint at step 2"):
        store.record_evaluation(lease, 2, "one", {}, {})
