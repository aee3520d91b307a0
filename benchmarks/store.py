"""What a checkpoint costs to publish and to read back verified, over copying and hashing the same bytes.

    python benchmarks/store.py      # exits 1 when a bound is exceeded

On a local disk and in an S3 bucket, whose server (SeaweedFS) is started here, on this machine's loopback. The bare side
copies each file once, on the disk or with boto3's own transfers, and hashes it once. Rounds are interleaved. Besides,
what the second run of a finished recipe asks of a bucket: requests, bytes, seconds.
"""

import os
import random
import shutil
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.comparison import Measure, main, measure, paired_ratios
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.lease import acquire
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.digests import digest_file
from tests.object_store import BUCKET, CREDENTIALS, object_store
from tests.s3_proxy import s3_proxy
from tests.unit.checkpoint_drafts import RECORD, draft

ROUNDS = 7
FILES: Mapping[str, int] = {"model.safetensors": 64, "optimizer.safetensors": 128, "rng.safetensors": 1}
"""Sizes in MiB, in the proportion of a full tune with Adam."""

SECOND_RUN: Mapping[str, Any] = {
    "max_rows": 300,
    "epochs": 2,
    "batch_size": 16,
    "evaluations": [{"name": "held_out", "dataset": "held_out", "scorer": "exact_match", "max_tokens": 16}],
}


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def write_state(folder: Path, seed: int) -> Path:
    """Files of a training state, of bytes that were never stored before."""
    folder.mkdir(parents=True)
    chance = random.Random(seed)
    for name, size in FILES.items():
        (folder / name).write_bytes(chance.randbytes(size * 2**20))
    return folder


def publish(blobs: BlobStore, folder: Path, step: int) -> float:
    """Seconds to publish a state."""
    store = CheckpointStore(blobs)
    lease = acquire(blobs, RECORD.fingerprint, run="bench", wait_s=0)
    try:
        made = draft(folder.parent / "unused", step, state_files=[*FILES], other_files=[])
        checkpoint = replace(made, folder=folder)
        return timed(lambda: store.publish(lease, checkpoint, RECORD, ""))
    finally:
        lease.release()


def verify(blobs: BlobStore, step: int, target: Path) -> float:
    """Seconds to bring a published state into a folder, every byte verified."""
    store = CheckpointStore(blobs)
    entry = store.head(RECORD.fingerprint).at(step)
    assert entry is not None
    return timed(lambda: store.checkout(RECORD.fingerprint, entry, target))


def copy_and_hash(source: Path, target: Path) -> float:
    """Seconds to copy files to stable storage and hash them."""

    def work() -> None:
        target.mkdir()
        for name in FILES:
            shutil.copyfile(source / name, target / name)
            digest_file(target / name)
            with (target / name).open("rb") as copied:
                os.fsync(copied.fileno())

    return timed(work)


def upload_and_hash(client: Any, source: Path, prefix: str) -> float:
    """Seconds to hash files and upload them with boto3's transfers."""

    def work() -> None:
        for name in FILES:
            digest_file(source / name)
            client.upload_file(str(source / name), BUCKET, f"{prefix}/{name}")

    return timed(work)


def download_and_hash(client: Any, prefix: str, target: Path) -> float:
    """Seconds to download files with boto3's transfers and hash them."""

    def work() -> None:
        target.mkdir()
        for name in FILES:
            client.download_file(BUCKET, f"{prefix}/{name}", str(target / name))
            digest_file(target / name)

    return timed(work)


def local_rounds(folder: Path, rounds: int) -> list[Measure]:
    """Publishing and verifying on a disk."""
    blobs = LocalBlobs(folder / "store")
    published, copied, verified, read = [], [], [], []
    for number in range(1, rounds + 1):
        # On the store's disk, as a session's scratch is; it is linked there and not copied.
        state = write_state(blobs.scratch() / f"state-{number}", number)
        copied.append(copy_and_hash(state, folder / "copy"))
        read.append(copy_and_hash(folder / "copy", folder / "read"))
        published.append(publish(blobs, state, number))
        verified.append(verify(blobs, number, blobs.scratch() / "verified"))
        for used in (folder / "copy", folder / "read", blobs.scratch() / "verified"):
            shutil.rmtree(used)
    return ratios("local", (published, copied), (verified, read))


def s3_rounds(folder: Path, blobs: BlobStore, client: Any, rounds: int) -> list[Measure]:
    """Publishing and verifying in a bucket."""
    published, uploaded, verified, downloaded = [], [], [], []
    for number in range(1, rounds + 1):
        state = write_state(folder / f"s3-state-{number}", 1000 + number)
        uploaded.append(upload_and_hash(client, state, f"bare-{number}"))
        published.append(publish(blobs, state, number))
        downloaded.append(download_and_hash(client, f"bare-{number}", folder / "read"))
        verified.append(verify(blobs, number, folder / "verified"))
        for used in (state, folder / "read", folder / "verified"):
            shutil.rmtree(used)
    return ratios("s3", (published, uploaded), (verified, downloaded))


def ratios(
    where: str, publishing: tuple[list[float], list[float]], verifying: tuple[list[float], list[float]]
) -> list[Measure]:
    """Ratios of publishing and verifying, of seconds each round: ours, and the bare side's."""
    size = sum(FILES.values())
    found = []
    for name, (ours, theirs), bare in (
        ("publish", publishing, "copy, hash, fsync" if where == "local" else "hash and upload"),
        ("verify", verifying, "copy, hash, fsync" if where == "local" else "download and hash"),
    ):
        median = sorted(ours)[len(ours) // 2]
        note = f"over {bare}; {size} MiB in {median:.2f} s, {size / median:,.0f} MiB/s"
        found.append(measure(f"store_{name}_{where}", paired_ratios(ours, theirs), "", note))
    return found


def second_run(folder: Path, endpoint: str, record: Any) -> list[Measure]:
    """What a run of a finished recipe asks of a bucket, by a process that knows nothing of the first."""
    import kitchen_assets as kitchen

    resources = {
        "blobs": {"store": {"s3": {"bucket": BUCKET, "prefix": uuid.uuid4().hex, "endpoint_url": endpoint}}},
        "telemetry": {"console": False},
        "trainer": {"backend": {"trl": {"threads": 1}}},
    }
    found = []
    for machine in ("the same machine", "another machine"):
        os.environ["KITCHEN_SCRATCH"] = str(folder / "scratch-one")
        kitchen.run("supervised", dict(SECOND_RUN), resources)
        if machine == "another machine":
            os.environ["KITCHEN_SCRATCH"] = str(folder / "scratch-two")
        record.forget()
        started = time.perf_counter()
        result = kitchen.run("supervised", dict(SECOND_RUN), resources)
        seconds = time.perf_counter() - started
        if result.optimizer_steps:
            raise SystemExit(f"{result.optimizer_steps} steps were trained again")
        down, up = sum(record.bytes_down.values()), sum(record.bytes_up.values())
        found += second_run_measures(machine, record.kinds, down, up, seconds)
    return found


def second_run_measures(machine: str, kinds: Counter[str], down: int, up: int, seconds: float) -> list[Measure]:
    """What a second run asked for: requests by kind, and bytes read and written."""
    name = "second_run" if machine == "the same machine" else "second_run_elsewhere"
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return [
        Measure(f"{name}_requests", float(kinds.total()), "", note=f"on {machine}: {said}"),
        Measure(f"{name}_mib_down", down / 2**20, "MiB", note=f"{up / 2**20:.2f} MiB up"),
        Measure(f"{name}_seconds", seconds, "s", note="all in, with the evaluation's and the model's records"),
    ]


def measures(rounds: int = ROUNDS) -> list[Measure]:
    """Local rounds, rounds in a bucket, and the second run."""
    os.environ.update(CREDENTIALS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["KITCHEN_SCRATCH"] = str(folder / "scratch")
        found = local_rounds(folder, rounds)
        server = stack.enter_context(object_store(folder / "server"))
        from kitchen_resources.blobs.s3_client import KitchenS3

        client = KitchenS3(endpoint_url=server.endpoint).get_client()
        found += s3_rounds(folder, server.blobs("bench"), client, rounds)
        proxy = stack.enter_context(s3_proxy(server.ports["s3"]))
        found += second_run(folder, proxy.endpoint, proxy)
    return found


if __name__ == "__main__":
    sys.exit(main(measures))
