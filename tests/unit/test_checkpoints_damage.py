"""Damaged checkpoints: each is found, quarantined with its reason, passed over, and can be made again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kitchen_resources.blobs.content import content_key
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.checkpoints.lease import Lease
from kitchen_resources.checkpoints.manifest import LEDGER_FILE, STEPS_FILE, Manifest, encode_manifest
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.errors import BlobError, CheckpointError
from tests.faulty_blobs import FaultyBlobs
from tests.unit.checkpoint_drafts import (
    RECORD,
    RUN,
    draft,
    metrics,
    overwrite,
    payload_key,
    publish,
)

Damage = Callable[[BlobStore, CheckpointEntry, CheckpointStore], None]


def _records(store: CheckpointStore, entry: CheckpointEntry, name: str) -> str:
    return content_key(store.manifest(entry).records[name].sha256)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (
        lambda blobs, entry, store: blobs.delete(payload_key(blobs, "weights 2")),
        "model.safetensors is missing or has another size",
    ),
    "truncated": (
        lambda blobs, entry, store: overwrite(blobs, payload_key(blobs, "weights 2"), b"weights"),
        "model.safetensors is missing or has another size",
    ),
    "longer": (
        lambda blobs, entry, store: overwrite(blobs, payload_key(blobs, "weights 2"), b"weights 2 "),
        "model.safetensors is missing or has another size",
    ),
    "a bit flipped": (
        lambda blobs, entry, store: overwrite(blobs, payload_key(blobs, "weights 2"), b"weights 3"),
        "the bytes of model.safetensors don't match its digest",
    ),
    "manifest missing": (
        lambda blobs, entry, store: blobs.delete(content_key(entry.manifest)),
        "is missing from the store",
    ),
    "manifest changed": (
        lambda blobs, entry, store: overwrite(blobs, content_key(entry.manifest), b"{}"),
        "its bytes don't match its name",
    ),
    "ledger missing": (
        lambda blobs, entry, store: blobs.delete(_records(store, entry, LEDGER_FILE)),
        "is missing from the store",
    ),
    "steps changed": (
        lambda blobs, entry, store: overwrite(blobs, _records(store, entry, STEPS_FILE), b"{}"),
        "its bytes don't match its name",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_quarantined_and_the_one_before_is_used(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path, kind: str
) -> None:
    before, newest = [
        store.publish(lease, draft(tmp_path, step, row_ids=[[step]], steps=[metrics(step)]), RECORD, "")
        for step in (1, 2)
    ]
    damage, reason = DAMAGES[kind]
    damage(blobs, newest, store)
    with pytest.raises(CheckpointError, match=reason):
        store.checkout(RUN, newest, tmp_path / "out")
    said: list[str] = []
    found = store.resume_point(lease, tmp_path / "out", said.append)
    assert found is not None
    assert (found.global_step, found.state_digest) == (1, before.state_digest)
    (told,) = said
    assert told.startswith("the checkpoint at step 2 is damaged and was quarantined: ")
    assert reason in told
    quarantined = store.head(RUN).checkpoints[1]
    assert quarantined.payload == "quarantined"
    assert reason in quarantined.reason
    assert store.head(RUN).entries() == [before]


def test_where_nothing_is_sound_there_is_no_resume_point(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    publish(store, lease, tmp_path, 1, 2)
    for text in ("weights 1", "weights 2"):
        blobs.delete(payload_key(blobs, text))
    said: list[str] = []
    assert store.resume_point(lease, tmp_path / "out", said.append) is None
    assert [text.partition(" is damaged")[0] for text in said] == [
        "the checkpoint at step 2",
        "the checkpoint at step 1",
    ]


def test_a_pruned_checkpoint_is_passed_over_and_not_quarantined(
    store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    publish(store, lease, tmp_path, 1, 2, 3)
    store.prune(lease, {1, 2}, "by hand")
    said: list[str] = []
    found = store.resume_point(lease, tmp_path / "out", said.append)
    assert found is not None
    assert found.global_step == 2
    assert said == []
    assert store.head(RUN).checkpoints[2].payload == "pruned"
    with pytest.raises(CheckpointError, match=rf"^run {RUN[:12]}, step 3: its payload was pruned \(by hand\)$"):
        store.checkout(RUN, store.head(RUN).checkpoints[2], tmp_path / "out")


def test_a_store_that_is_away_quarantines_nothing(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    publish(store, lease, tmp_path, 1)

    def away(verb: str, key: str) -> None:
        if verb == "get_file":
            raise BlobError("the store is away", where=key)

    with pytest.raises(BlobError, match="the store is away"):
        CheckpointStore(FaultyBlobs(blobs, before=away)).resume_point(lease, tmp_path / "out", lambda message: None)
    assert store.head(RUN).checkpoints[0].payload == "present"


@pytest.mark.parametrize(("times", "found"), [(1, True), (2, False)])
def test_bytes_that_were_damaged_on_their_way_are_asked_for_once_more(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path, times: int, found: bool
) -> None:
    publish(store, lease, tmp_path, 1)
    on_the_way = Damaging(blobs, "weights 1", times)
    checkpoint = CheckpointStore(on_the_way).resume_point(lease, tmp_path / "out", lambda message: None)
    assert (checkpoint is not None) is found
    assert on_the_way.left == 0
    assert store.head(RUN).checkpoints[0].payload == ("present" if found else "quarantined")
    if found:
        assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights 1"


class Damaging(FaultyBlobs):
    """Damages an object's bytes on their way to the reader, some times; what is stored stays sound."""

    def __init__(self, inner: BlobStore, text: str, times: int) -> None:
        super().__init__(inner)
        self.left = times
        self._key = payload_key(inner, text)

    def get_file(self, key: str, path: Path) -> None:
        if key == self._key and self.left:
            self.left -= 1
            path.write_bytes(b"weights 0")
        else:
            super().get_file(key, path)


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (lambda m: replace(m, fingerprint="e5" * 32), f"its manifest belongs to run {'e5' * 6}"),
        (
            lambda m: replace(m, files={"../x": m.files["config.json"], **m.files}),
            r"its manifest names the file '\.\./x'",
        ),
        (lambda m: replace(m, files={"a/b": m.files["config.json"], **m.files}), "names the file 'a/b'"),
        (lambda m: replace(m, files={"/x": m.files["config.json"], **m.files}), "names the file '/x'"),
        (lambda m: replace(m, files={"..": m.files["config.json"], **m.files}), r"names the file '\.\.'"),
        (lambda m: replace(m, files={"a\\b": m.files["config.json"], **m.files}), "names the file"),
        (lambda m: replace(m, files={"": m.files["config.json"], **m.files}), "names the file ''"),
    ],
    ids=["another run", "parent", "folder", "absolute", "dots", "backslash", "empty"],
)
def test_a_manifest_that_is_not_this_runs_own_is_refused_before_a_byte_is_written(
    store: CheckpointStore,
    lease: Lease,
    tmp_path: Path,
    tamper: Callable[[Manifest], Manifest],
    reason: str,
) -> None:
    (entry,) = publish(store, lease, tmp_path, 1)
    hostile = replace(entry, manifest=store.content.put(encode_manifest(tamper(store.manifest(entry)))))
    lease.update(lambda head: replace(head, checkpoints=(hostile,)))
    (tmp_path / "in").mkdir()
    with pytest.raises(CheckpointError, match=reason):
        store.checkout(RUN, hostile, tmp_path / "in" / "out")
    assert list((tmp_path / "in").iterdir()) == []
    assert store.resume_point(lease, tmp_path / "in" / "out", lambda message: None) is None


def test_a_head_that_names_the_manifest_of_another_step_is_refused(
    store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    first, second = publish(store, lease, tmp_path, 1, 2)
    swapped = replace(second, manifest=first.manifest)
    with pytest.raises(CheckpointError, match=r"^run d4d4d4d4d4d4, step 2: its manifest is that of step 1$"):
        store.checkout(RUN, swapped, tmp_path / "out")


def test_what_was_damaged_can_be_made_again(
    blobs: BlobStore, store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    """Every one of its objects has its name from its bytes, so the damaged ones stand where the new ones must go."""
    (entry,) = publish(store, lease, tmp_path, 1)
    names = [
        payload_key(blobs, "weights 1"),
        content_key(entry.manifest),
        content_key(store.manifest(entry).records[LEDGER_FILE].sha256),
    ]
    for key in names:
        overwrite(blobs, key, b"damaged!!")
    store.quarantine(lease, 1, "damaged")
    (again,) = publish(store, lease, tmp_path, 1)
    assert again == entry
    assert store.checkout(RUN, again, tmp_path / "out").state_digest == entry.state_digest
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights 1"


def test_what_was_pruned_before_is_no_replacement_for_what_was_made_again_and_damaged(
    store: CheckpointStore, lease: Lease, tmp_path: Path
) -> None:
    publish(store, lease, tmp_path, 1)
    store.prune(lease, set(), "by hand")
    publish(store, lease, tmp_path, 1)
    assert [entry.payload for entry in store.head(RUN).checkpoints] == ["pruned", "present"]
    store.quarantine(lease, 1, "damaged")
    assert [entry.payload for entry in store.head(RUN).checkpoints] == ["quarantined", "quarantined"]
    assert store.head(RUN).entries() == []
    with pytest.raises(CheckpointError, match="has no checkpoint at step 1"):
        store.quarantine(lease, 1, "again")
