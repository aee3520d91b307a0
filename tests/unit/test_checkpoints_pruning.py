"""Pruning, and what a holder that was taken over can still do: nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kitchen_resources.blobs.content import content_key
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import CheckpointEntry, encode_head
from kitchen_resources.checkpoints.lease import Lease, acquire
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.errors import BlobError, LeaseLost
from tests.faulty_blobs import FaultyBlobs
from tests.unit.checkpoint_drafts import (
    KEY,
    RECORD,
    RUN,
    draft,
    payload,
    publish,
    sha,
    taken_over,
)

# Pruning


def test_pruning_deletes_payload_and_keeps_the_record(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    entries = publish(store, lease, tmp_path, 1, 2, 3)
    assert store.prune(lease, {2}, "keep one") == [1, 3]
    assert sorted(payload(blobs)) == sorted([sha("weights 2"), sha("{}")])
    assert store.head(RUN).checkpoints == (
        replace(entries[0], payload="pruned", reason="keep one"),
        entries[1],
        replace(entries[2], payload="pruned", reason="keep one"),
    )
    assert [store.manifest(entry).global_step for entry in entries] == [1, 2, 3]
    assert store.ledger(store.manifest(entries[0])) == [[3, 1], [2]]
    assert store.checkout(RUN, entries[1], tmp_path / "out").global_step == 2
    assert store.prune(lease, {2}, "again") == []


def test_pruning_removes_what_was_never_published_or_was_quarantined(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    publish(store, lease, tmp_path, 1, 2)
    lost = draft(tmp_path, 3, weights=b"lost")
    store._put_payload(lease, lost.folder / "model.safetensors", state=True)
    store.quarantine(lease, 2, "damaged")
    assert len(payload(blobs)) == 4
    assert store.prune(lease, {1}, "") == []
    assert sorted(payload(blobs)) == sorted([sha("weights 1"), sha("{}")])


def test_payload_goes_only_when_the_head_says_so(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    publish(store, lease, tmp_path, 1, 2)
    heads: list[str] = []

    def watch(verb: str, key: str) -> None:
        if verb == "delete":
            heads.extend(entry.payload for entry in store.head(RUN).checkpoints)
            raise BlobError("killed here", where=key)

    with pytest.raises(BlobError):
        CheckpointStore(FaultyBlobs(blobs, before=watch)).prune(lease, {2}, "")
    assert heads == ["pruned", "present"]
    store.prune(lease, {2}, "")
    assert sorted(payload(blobs)) == sorted([sha("weights 2"), sha("{}")])


def test_a_damaged_manifest_is_quarantined_and_does_not_stop_the_pruning(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    entries = publish(store, lease, tmp_path, 1, 2, 3)
    blobs.delete(content_key(entries[1].manifest))
    assert store.prune(lease, {2, 3}, "") == [1]
    assert [entry.payload for entry in store.head(RUN).checkpoints] == ["pruned", "quarantined", "present"]
    assert sorted(payload(blobs)) == sorted([sha("weights 3"), sha("{}")])


def test_the_payload_of_other_runs_is_not_touched(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    other = acquire(blobs, "e5" * 32, run="other", wait_s=0.0)
    entry = store.publish(other, draft(tmp_path / "other", 1), replace(RECORD, fingerprint="e5" * 32), "")
    publish(store, lease, tmp_path, 1)
    store.prune(lease, set(), "")
    assert payload(blobs) == []
    assert store.checkout("e5" * 32, entry, tmp_path / "out").state_digest == entry.state_digest
    other.release()


# Fencing


@pytest.mark.parametrize("what", ["publish", "prune", "prune nothing", "quarantine", "record"])
def test_a_holder_that_was_taken_over_changes_nothing(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path, what: str
) -> None:
    publish(store, lease, tmp_path, 1, 2)
    taken_over(blobs)
    before = blobs.get(KEY)
    kept = payload(blobs)
    calls: dict[str, Callable[[], object]] = {
        "publish": lambda: publish(store, lease, tmp_path, 3),
        "prune": lambda: store.prune(lease, {2}, ""),
        "prune nothing": lambda: store.prune(lease, {1, 2}, ""),
        "quarantine": lambda: store.quarantine(lease, 2, ""),
        "record": lambda: store.record_evaluation(lease, 2, "key", {}, {"loss": 1.0}),
    }
    with pytest.raises(LeaseLost, match="taken over by run run-9"):
        calls[what]()
    assert blobs.get(KEY) == before
    assert set(kept) <= set(payload(blobs))


def test_a_holder_stopped_in_the_middle_of_deleting_deletes_nothing_of_its_successor(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    """The lease can't fence a delete: the store would carry it out, however late it comes."""
    publish(store, lease, tmp_path, 1, 2)
    later: list[CheckpointEntry] = []
    leases: list[Lease] = []

    def stop(verb: str, key: str) -> None:
        if verb == "list" and not later:
            # Another process takes over, makes the same checkpoint again and one more, and has one under way.
            found = blobs.get(KEY)
            assert found is not None
            assert blobs.compare_and_swap(KEY, found.version, encode_head(replace(lease.head, holder=None)))
            leases.append(acquire(blobs, RUN, run="later", wait_s=0.0))
            store.quarantine(leases[0], 2, "damaged")
            later.extend(publish(store, leases[0], tmp_path / "later", 2, 3))
            store._put_payload(leases[0], draft(tmp_path / "later", 4).folder / "model.safetensors", state=True)

    stale = CheckpointStore(FaultyBlobs(blobs, before=stop))
    stale.prune(lease, {1}, "")
    for entry in later:
        assert store.checkout(RUN, entry, tmp_path / "out").state_digest == entry.state_digest
    assert sha("weights 4") in payload(blobs)
    leases[0].release()
