"""The server of a bucket killed by SIGKILL while a run trains on it: the run ends as if nothing had happened."""

import functools
import random
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs import s3_client
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.lease import acquire
from kitchen_resources.errors import KitchenError
from kitchen_resources.training import run as run_module
from tests.engine import Engine, HookedTrainer, epoch_ends, needed_files, payload_keys, undisturbed
from tests.faults import trl_kills
from tests.faults.forked import forked
from tests.faulty_blobs import WRITES, FaultyBlobs
from tests.object_store import BUCKET, ObjectStore, object_store

pytestmark = pytest.mark.full

FIELDS: dict[str, Any] = {"checkpoint_steps": 2, "keep_last": 2}
STEPS = [2, 3, 4, 6, 8, 9]


@pytest.fixture(scope="module")
def server_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A server of this module's own, which it may kill."""
    folder = tmp_path_factory.mktemp("s3-kills")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KITCHEN_SCRATCH", str(folder / "scratch"))
        with object_store(folder / "server") as server:
            yield server


@pytest.fixture
def server(server_of_all: ObjectStore) -> ObjectStore:
    if not server_of_all.is_running:
        server_of_all.start()
    return server_of_all


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test takes as long as the server does to start, and heartbeats fall into that time."""
    monkeypatch.setattr(s3_client, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(run_module, "acquire", functools.partial(acquire, ttl_s=1.0))


def check_end(engine: Engine, blobs: BlobStore) -> None:
    """At the end: everything is there once, and nothing else."""
    engine = engine.with_(blobs=blobs)
    head = engine.head()
    assert epoch_ends(head) == undisturbed(**FIELDS)
    assert [entry.step for entry in head.checkpoints] == STEPS
    assert len(payload_keys(engine)) == needed_files(engine) == 2
    assert engine.finish(**FIELDS).steps_done == 0


class Restarts:
    """Kills the server, and starts it again at once, at chosen writes or steps of a run."""

    def __init__(self, server: ObjectStore, chance: random.Random) -> None:
        self.kills = 0
        self.writes = 0
        self.every = 0
        self._server = server
        self._chance = chance
        # Heartbeats write as well, from a thread of their own: one restart at a time.
        self._lock = threading.Lock()
        self._at_work: threading.Thread | None = None

    def at_write(self, verb: str, key: str) -> None:
        if verb not in WRITES:
            return
        with self._lock:
            self.writes += 1
            if self.every and self.writes % self.every == 0:
                # Before the request, in the middle of it, or after it: whatever comes of a few milliseconds.
                self._restart(self._chance.choice([0.0, 0.002, 0.005, 0.01, 0.02]))

    def at_step(self, step: int) -> None:
        with self._lock:
            self._restart(0.0)

    def wait(self) -> None:
        if self._at_work is not None:
            self._at_work.join()

    def _restart(self, wait_s: float) -> None:
        self.wait()
        self.kills += 1

        def work() -> None:
            time.sleep(wait_s)
            self._server.kill()
            self._server.start()

        self._at_work = threading.Thread(target=work)
        self._at_work.start()


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("every", [13, pytest.param(3, marks=pytest.mark.full)])
def test_a_run_gets_through_although_its_server_is_killed_at_any_write(
    server: ObjectStore, every: int, capsys: pytest.CaptureFixture[str]
) -> None:
    blobs = server.blobs(uuid.uuid4().hex, max_attempts=2000)
    restarts = Restarts(server, random.Random(every))
    restarts.every = every
    engine = Engine(blobs=FaultyBlobs(blobs, before=restarts.at_write))
    finished = engine.finish(**FIELDS)
    restarts.wait()
    assert finished.steps_done == 9
    assert restarts.kills == restarts.writes // every >= 3
    check_end(engine, blobs)
    with capsys.disabled():
        print(
            f"\nS3: {restarts.kills} kills of the server at {restarts.writes} writes of one run, 0 steps made again"
        )


@pytest.mark.usefixtures("short_pauses")
def test_a_run_gets_through_although_its_server_is_killed_between_steps(server: ObjectStore) -> None:
    blobs = server.blobs(uuid.uuid4().hex, max_attempts=2000)
    restarts = Restarts(server, random.Random(0))
    engine = Engine(
        blobs=blobs, adapter=HookedTrainer(lambda step: restarts.at_step(step) if step in (1, 5, 9) else None)
    )
    assert engine.finish(**FIELDS).steps_done == 9
    restarts.wait()
    assert restarts.kills == 3
    check_end(engine.with_(adapter=Engine().adapter), blobs)


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("deadly", [3, 9, 17, 26])
def test_a_server_that_stays_away_stops_the_run_which_ends_the_same_when_run_again(
    server: ObjectStore, deadly: int
) -> None:
    prefix = uuid.uuid4().hex
    writes = 0

    def kill_at(verb: str, key: str) -> None:
        nonlocal writes
        writes += verb in WRITES
        if writes == deadly and server.is_running:
            server.kill()

    engine = Engine(blobs=FaultyBlobs(server.blobs(prefix, max_attempts=2), before=kill_at))
    with pytest.raises(KitchenError) as caught:
        engine.finish(**FIELDS)
    assert caught.value.mendable, caught.value
    assert not server.is_running
    server.start()
    # Patient, because a server that has just started answers 500 for a moment.
    blobs = server.blobs(prefix, max_attempts=2000)
    again = engine.with_(blobs=blobs)
    before = [entry.step for run in again.store.find("") for entry in again.store.head(run).entries()]
    assert again.finish(**FIELDS).steps_done == 9 - max(before, default=0)
    check_end(again, blobs)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "moments",
    [["step 1 2"], pytest.param(["step 1 1", "step 1 3", "step 2 6"], marks=pytest.mark.full)],
    ids=["once", "three times"],
)
def test_real_training_gets_through_although_its_server_is_killed_in_the_middle_of_an_epoch(
    server: ObjectStore, tmp_path: Path, moments: list[str]
) -> None:
    """With the client's own pauses and patience, and the lease's own heartbeat."""
    trl_kills.import_everything()
    recipe_class, fields = trl_kills.VARIANTS["LoRA, dropout, step checkpoints"]
    with forked(trl_kills.train(tmp_path, recipe_class, fields)) as child:
        assert len([line for line in child.rest() if line.startswith("step ")]) == 8
    place = f"s3://{BUCKET}/{uuid.uuid4().hex}?endpoint_url={server.endpoint}"
    with forked(trl_kills.train(place, recipe_class, fields)) as child:
        lines: list[str] = []
        for moment in moments:
            while not lines or lines[-1] != moment:
                lines.append(child.line())
                assert lines[-1], lines
            server.kill()
            time.sleep(1.0)
            server.start()
        lines += child.rest()
        assert child.wait() == 0, lines
    assert len([line for line in lines if line.startswith("step ")]) == 8
    assert trl_kills.states(place) == trl_kills.states(tmp_path)
