"""Memory of a process that puts large files into a bucket and gets them back, with parts and threads as by default."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.object_store import BUCKET, ObjectStore

PEAK = """
import resource, sys
from pathlib import Path
from kitchen_resources.blobs.resource import default_store, open_store
size, folder = int(sys.argv[1]), Path(sys.argv[2])
blobs = open_store(default_store())
with (folder / "in").open("wb") as stream:
    for _ in range(size):
        stream.write(bytes(2**20))
assert blobs.put_file(f"weights-{size}", folder / "in")
blobs.get_file(f"weights-{size}", folder / "out")
assert (folder / "out").stat().st_size == size * 2**20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.full
def test_memory_stays_flat_however_large_a_file_is(
    s3_server: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = []
    for size in (32, 256):
        (tmp_path / str(size)).mkdir()
        env = {**os.environ, **s3_server.env, "KITCHEN_STORE": f"s3://{BUCKET}/{uuid.uuid4().hex}"}
        command = [sys.executable, "-c", PEAK, str(size), str(tmp_path / str(size))]
        peaks.append(int(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout))
    with capsys.disabled():
        print(f"\nS3: peak of {peaks[0]} MiB with a file of 32 MiB, {peaks[1]} MiB with one of 256 MiB")
    assert peaks[1] - peaks[0] < 64
