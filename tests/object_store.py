"""A real S3 server on this machine: SeaweedFS, started for the tests, killed and started again at will."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.blobs.s3_store import open_bucket

BUCKET = "kitchen-tests"
CREDENTIALS: Mapping[str, str] = {
    "AWS_ACCESS_KEY_ID": "testkey",
    "AWS_SECRET_ACCESS_KEY": "testsecret123",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_PORTS = ("s3", "s3.iceberg", "s3.lance", "master", "filer", "volume", "admin", "webdav")
_SPOKEN = ("s3", "master", "filer", "volume", "admin")
_UP_S = 60


class ObjectStore:
    """A SeaweedFS server with a bucket.

    Args:
        folder: Where it keeps its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = _free_ports()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to use it as `s3://kitchen-tests/…`."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": self.endpoint}

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            str(Path(sys.executable).with_name("weed")),
            "mini",
            f"-dir={self.folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            f"-bucket={BUCKET}",
            *(
                f"-{name}.port={port}" if name.count(".") == 0 else f"-s3.port.{name[3:]}={port}"
                for name, port in self.ports.items()
            ),
            *(f"-{name}.port.grpc={self.ports[name] + 10000}" for name in _SPOKEN),
        ]
        log = (self.folder / "server.log").open("ab")
        # A session of its own, so that a Ctrl-C of the tests doesn't end it before them.
        self._process = subprocess.Popen(
            command, env={**os.environ, **CREDENTIALS}, stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=5),
        )
        for _ in range(_UP_S * 10):
            if self._process.poll() is not None:
                break
            # It answers before it has made its bucket.
            with suppress(BotoCoreError, ClientError):
                client.list_objects_v2(Bucket=BUCKET, MaxKeys=1)
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "server.log").read_text()[-4000:])

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def kill(self) -> None:
        """End it by SIGKILL, as a lost machine does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def blobs(self, prefix: str, **settings: Any) -> BlobStore:
        """A store in its bucket, used by this process."""
        return open_bucket(BUCKET, prefix, **{"endpoint_url": self.endpoint, **settings})


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A running server, killed in the end."""
    server = ObjectStore(folder)
    server.start()
    try:
        yield server
    finally:
        if server.is_running:
            server.kill()


def _free_ports() -> dict[str, int]:
    """Ports below the range that the system gives to outgoing connections; those for gRPC are 10000 above them."""
    chance = random.Random()
    while True:
        first = chance.randrange(10000, 20000, len(_PORTS))
        ports = {name: first + number for number, name in enumerate(_PORTS)}
        if all(_is_free(port) and _is_free(port + 10000) for port in ports.values()):
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
