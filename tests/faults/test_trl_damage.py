"""Every file of real checkpoints damaged in every way: found, quarantined, passed over, never executed, made again."""

import random
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.content import content_key
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.blobs.resource import open_store
from kitchen_resources.checkpoints.head import CheckpointEntry, Head
from kitchen_resources.checkpoints.lease import acquire
from kitchen_resources.checkpoints.manifest import encode_manifest, state_digest
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.digests import digest_bytes
from kitchen_resources.recipes.recipe import Recipe
from tests.faults import trl_kills
from tests.faults.forked import forked
from tests.object_store import BUCKET, ObjectStore

pytestmark = pytest.mark.heavy

VARIANTS = {
    "full": (
        "full",
        {"max_rows": 220, "checkpoint_steps": 6},
        {"model.safetensors", "optimizer.safetensors", "rng.safetensors"},
    ),
    "LoRA": (
        "LoRA, dropout, step checkpoints",
        {"max_rows": 220},
        {"adapter_model.safetensors", "adapter_config.json"},
    ),
    "reinforcement": (
        "reinforcement",
        {"steps_per_epoch": 6, "checkpoint_steps": 2},
        {"model.safetensors", "schedule.json"},
    ),
}
RECORDS = {"full": {"ledger.json", "steps.jsonl"}, "LoRA": {"ledger.json", "steps.jsonl"}}
RECORDS["reinforcement"] = {*RECORDS["full"], "transcript.jsonl"}


@dataclass(frozen=True)
class Trained:
    """A finished run in a folder, of which every checkpoint is whole."""

    root: Path
    recipe_class: type[Recipe]
    fields: Mapping[str, Any]
    states: dict[int, str]
    files: set[str]
    records: set[str]


@pytest.fixture(scope="module", params=VARIANTS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    trl_kills.import_everything()
    variant, fields, files = VARIANTS[request.param]
    recipe_class, base = trl_kills.VARIANTS[variant]
    fields = {**base, **fields, "keep_last": 99}
    root = tmp_path_factory.mktemp("trained") / "store"
    run(root, recipe_class, fields)
    return Trained(root, recipe_class, fields, trl_kills.states(root), files, RECORDS[request.param])


def run(root: Path | str, recipe_class: type[Recipe], fields: Mapping[str, Any]) -> list[str]:
    with forked(trl_kills.train(root, recipe_class, fields)) as child:
        lines = child.rest()
        assert child.wait() == 0, lines
    return lines


def head_of(blobs: BlobStore) -> Head:
    store = CheckpointStore(blobs)
    (fingerprint,) = store.find("")
    return store.head(fingerprint)


def objects(blobs: BlobStore, entry: CheckpointEntry) -> dict[str, str]:
    """Keys of all that a checkpoint consists of, by its name there."""
    manifest = CheckpointStore(blobs).manifest(entry)
    payload = f"runs/{manifest.fingerprint}/payload/{manifest.token}"
    return {
        **{name: f"{payload}/{file.sha256}" for name, file in manifest.files.items()},
        **{name: content_key(file.sha256) for name, file in manifest.records.items()},
        "manifest": content_key(entry.manifest),
    }


def pickled(marker: Path, size: int) -> bytes:
    """A pickle that makes a file when it is loaded, and is as long as what it replaces."""
    return f"cos\nsystem\n(S'touch {marker}'\ntR.".encode().ljust(size, b"\0")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes, Path], bytes | None]] = {
    "truncated": lambda data, marker: data[: len(data) // 2],
    "a bit flipped": lambda data, marker: flipped(data, random.Random(len(data)).randrange(len(data))),
    "deleted": lambda data, marker: None,
    "a pickle": lambda data, marker: pickled(marker, len(data)),
}


def damage(blobs: BlobStore, key: str, kind: str, marker: Path) -> None:
    stored = blobs.get(key)
    assert stored is not None
    data = DAMAGES[kind](stored.data, marker)
    assert blobs.delete(key)
    if data is not None:
        assert blobs.put_if_absent(key, data)


def check_passed_over(blobs: BlobStore, name: str, kind: str, folder: Path) -> None:
    """Damage one object of the newest checkpoint, and look for where to go on from."""
    head = head_of(blobs)
    newest = head.entries()[-1]
    before = len(head.checkpoints) - len(head.entries())
    marker = folder / "executed"
    damage(blobs, objects(blobs, newest)[name], kind, marker)
    said: list[str] = []
    lease = acquire(blobs, head.fingerprint, run="next", wait_s=0.0)
    try:
        found = CheckpointStore(blobs).resume_point(lease, folder / "parent", said.append)
    finally:
        lease.release()
    assert found is not None
    # Checkpoints of one epoch share what is equal in them, and what is shared is damaged in all.
    sound = head_of(blobs).entries()[-1]
    assert (found.global_step, found.state_digest) == (sound.step, sound.state_digest)
    quarantined = [entry for entry in head_of(blobs).checkpoints if entry.payload == "quarantined"]
    assert newest.step in [entry.step for entry in quarantined]
    assert len(said) == len(quarantined) - before
    for entry in quarantined:
        assert entry.reason
    assert not marker.exists()


@pytest.mark.parametrize("kind", DAMAGES)
def test_any_damaged_file_of_a_checkpoint_is_quarantined_and_the_one_before_is_gone_on_from(
    trained: Trained, tmp_path: Path, kind: str
) -> None:
    names = sorted(objects(LocalBlobs(trained.root), head_of(LocalBlobs(trained.root)).entries()[-1]))
    assert trained.files | trained.records | {"manifest"} <= set(names)
    for number, name in enumerate(names):
        root = tmp_path / f"{number}" / "store"
        shutil.copytree(trained.root, root)
        check_passed_over(LocalBlobs(root), name, kind, root.parent)


def test_what_was_damaged_is_made_again_with_the_same_bits(trained: Trained, tmp_path: Path) -> None:
    """The weights replaced by a pickle, and the records of the one before lost: two checkpoints are made again."""
    root = tmp_path / "store"
    shutil.copytree(trained.root, root)
    blobs = LocalBlobs(root)
    before, newest = head_of(blobs).entries()[-2:]
    marker = tmp_path / "executed"
    weights = next(name for name in objects(blobs, newest) if name.endswith("model.safetensors"))
    damage(blobs, objects(blobs, newest)[weights], "a pickle", marker)
    damage(blobs, objects(blobs, before)["steps.jsonl"], "deleted", marker)
    lease = acquire(blobs, head_of(blobs).fingerprint, run="next", wait_s=0.0)
    CheckpointStore(blobs).resume_point(lease, tmp_path / "parent", lambda message: None)
    lease.release()
    lines = run(root, trained.recipe_class, trained.fields)
    assert trl_kills.states(root) == trained.states
    made = [line.split()[1] for line in lines if line.startswith("published")]
    assert made == [str(before.step), str(newest.step)]
    assert not marker.exists()
    assert [entry.payload for entry in head_of(blobs).checkpoints].count("quarantined") == 2


def test_a_pickle_under_a_digest_of_its_own_is_not_executed_either(trained: Trained, tmp_path: Path) -> None:
    """As by somebody who may write to the store, and makes manifest and head fit."""
    root = tmp_path / "store"
    shutil.copytree(trained.root, root)
    blobs, marker = LocalBlobs(root), tmp_path / "executed"
    store, head = CheckpointStore(blobs), head_of(blobs)
    newest = head.entries()[-1]
    manifest = store.manifest(newest)
    files = dict(manifest.files)
    for name in [name for name in files if name.endswith(".safetensors")]:
        data = pickled(marker, 2000 + len(name))
        files[name] = replace(files[name], sha256=digest_bytes(data), size=len(data))
        blobs.put_if_absent(f"runs/{head.fingerprint}/payload/{manifest.token}/{files[name].sha256}", data)
    cursor = (manifest.epoch, manifest.global_step, manifest.steps_into_epoch)
    state = state_digest(files, manifest.records["ledger.json"].sha256, cursor)
    hostile = store.content.put(encode_manifest(replace(manifest, files=files, state_digest=state)))
    lease = acquire(blobs, head.fingerprint, run="next", wait_s=0.0)
    lease.update(lambda head: head.with_entry(newest.step, manifest=hostile, state_digest=state))
    lease.release()
    fields = {**trained.fields, "continue_from": "latest", "epochs": 3}
    with forked(trl_kills.train(root, trained.recipe_class, fields)) as child:
        lines = child.rest()
        assert child.wait() == 1
    assert "safetensors" in lines[-1], lines[-1]
    assert not marker.exists()


def test_in_a_bucket_it_is_the_same(trained: Trained, s3_server: ObjectStore, tmp_path: Path) -> None:
    blobs = open_store(f"s3://{BUCKET}/{uuid.uuid4().hex}?endpoint_url={s3_server.endpoint}")
    for key in LocalBlobs(trained.root).list(""):
        blobs.put_file(key, trained.root / key)
    weights, *_, other = sorted(trained.files)
    damages = {weights: "a bit flipped", other: "truncated", "ledger.json": "deleted", "manifest": "a pickle"}
    for name, kind in damages.items():
        check_passed_over(blobs, name, kind, tmp_path)
