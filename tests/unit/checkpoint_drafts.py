"""Checkpoints to publish, of one step an epoch, and what can be done to them behind the store's back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import CheckpointEntry, Head, Holder, decode_head, encode_head, head_key
from kitchen_resources.checkpoints.lease import Lease
from kitchen_resources.checkpoints.store import CheckpointStore, RunRecord
from kitchen_resources.digests import digest_bytes
from kitchen_resources.training.port import CheckpointDraft, StepMetrics

RUN = "d4" * 32
KEY = head_key(RUN)
RECORD = RunRecord(
    fingerprint=RUN,
    recipe="supervised",
    identity={"version": 1},
    environment={"torch": "2.13"},
    base={"reference": "m", "digest": "0" * 64, "revision": ""},
    serving={"pad_token_id": 0},
    simulated=False,
)


def metrics(step: int) -> StepMetrics:
    return StepMetrics(1, step, 9, 1.0 / step, 0.5, 2.0, 10, 0.1, 100, 0, {"extra": 1.5})


def draft(folder: Path, step: int, *, weights: bytes = b"", **fields: Any) -> CheckpointDraft:
    """A checkpoint at the end of epoch `step`, of one step an epoch."""
    folder = folder / f"draft-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (("model.safetensors", weights or b"weights %d" % step), ("config.json", b"{}")):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)
    values: dict[str, Any] = {
        "folder": folder,
        "state_files": ["model.safetensors"],
        "other_files": ["config.json"],
        "epoch": step,
        "global_step": step,
        "steps_into_epoch": 1,
        "epoch_complete": True,
        "row_ids": [[3, 1], [2]],
        "metrics": {"loss": 0.25},
        "steps": [metrics(1), metrics(2)],
    }
    return CheckpointDraft(**{**values, **fields})


def publish(store: CheckpointStore, lease: Lease, folder: Path, *steps: int) -> list[CheckpointEntry]:
    return [store.publish(lease, draft(folder, step), RECORD, "") for step in steps]


def payload(blobs: BlobStore) -> list[str]:
    return [key.rpartition("/")[2] for key in blobs.list(f"runs/{RUN}/payload/")]


def sha(text: str) -> str:
    return digest_bytes(text.encode())


def overwrite(blobs: BlobStore, key: str, data: bytes) -> None:
    """Damage an object behind the store's back."""
    assert blobs.delete(key)
    assert blobs.put_if_absent(key, data)


def payload_key(blobs: BlobStore, text: str) -> str:
    (key,) = [key for key in blobs.list(f"runs/{RUN}/payload/") if key.endswith(sha(text))]
    return key


def taken_over(blobs: BlobStore) -> Head:
    """Let another host's process take the run over, without the holder's knowing."""
    found = blobs.get(KEY)
    assert found is not None
    head = decode_head(found.data, KEY)
    theirs = replace(head, holder=Holder("x", "other/1", "b", 1, 1.0, "run-9"), token=head.token + 1)
    assert blobs.compare_and_swap(KEY, found.version, encode_head(theirs)) is not None
    return theirs
