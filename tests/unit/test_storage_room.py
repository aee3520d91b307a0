"""What takes room in the store, and whether what is kept is sound; over each kind of store."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import kitchen_assets as kitchen
from kitchen_assets.shelf import prune, storage, verify
from kitchen_resources.blobs.content import ContentStore, content_key
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import head_key
from kitchen_resources.checkpoints.lease import acquire
from kitchen_resources.checkpoints.store import payload_key
from kitchen_resources.errors import BlobError, CheckpointError, ConfigError
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.storage.room import Room
from kitchen_resources.storage.verification import Finding
from tests.engine import Engine, register
from tests.faulty_blobs import WRITES, FaultyBlobs


@pytest.fixture
def engine(blobs: BlobStore) -> Engine:
    """A store with a finished run of three whole checkpoints, the last one registered."""
    engine = Engine(blobs=blobs)
    version = register(engine, engine.finish(keep_last=3).head, 9)
    StoreRegistry(blobs).move_alias("supervised", "candidate", version.version, expected=None)
    return engine


def total(blobs: BlobStore, prefix: str = "") -> int:
    return sum(size for key in blobs.list(prefix) if (size := blobs.size(key)) is not None)


# Room


def test_every_byte_is_told_once(engine: Engine) -> None:
    ContentStore(engine.blobs).put(b"nobody names this")
    found = storage(engine.blobs)
    assert found.bytes == total(engine.blobs)
    assert found.payload == Room(3, 3 * engine.head().entries()[0].bytes)
    assert found.models == Room(2, len(b"{}") + len(b"[]"))
    assert found.garbage == Room(1, len(b"nobody names this"))
    (key,) = engine.blobs.list("prepared/")
    stored = engine.blobs.get(key)
    assert stored is not None
    value = json.loads(stored.data)
    of_data = {value["report"], value["train"]["blob"]}
    assert found.prepared == Room(2, sum(len(engine.store.content.get(sha256)) for sha256 in of_data))


def test_it_is_a_sequence_of_runs_and_prints_as_a_table(engine: Engine) -> None:
    found = storage(engine.blobs)
    (run,) = found
    assert (len(found), found[0], found[:1]) == (1, run, (run,))
    lines = str(found).splitlines()
    assert lines[0] == f"{run.fingerprint[:12]}  supervised         3 of   3 checkpoints      0.0 MiB  completed"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["payload", "3"],
        ["models", "2"],
        ["prepared", "2"],
        ["records", str(found.records.objects)],
        ["garbage", "0"],
    ]


def test_what_a_dead_attempt_left_is_garbage_and_pruned(engine: Engine) -> None:
    fingerprint = engine.head().fingerprint
    engine.blobs.put_if_absent(payload_key(fingerprint, 1, "0" * 64), b"half a checkpoint")
    assert storage(engine.blobs).garbage == Room(1, len(b"half a checkpoint"))
    prune(keep_last=3, blobs=engine.blobs)
    assert storage(engine.blobs).garbage == Room(0, 0)
    lease = acquire(engine.blobs, fingerprint, run="run-9", wait_s=0.0)
    engine.blobs.put_if_absent(payload_key(fingerprint, lease.token, "0" * 64), b"on its way")
    assert storage(engine.blobs).garbage == Room(0, 0)
    lease.release()


def test_no_payload_and_no_large_file_is_read(engine: Engine) -> None:
    read: list[str] = []
    watched = FaultyBlobs(engine.blobs, before=lambda verb, key: read.append(f"{verb} {key}"))
    storage(watched)
    assert not [call for call in read if "/payload/" in call and not call.startswith("list")]
    assert not [call for call in read if call.split()[0] in {"get_file", *WRITES}]


# Verifying


def test_a_sound_store_has_no_findings_and_is_not_changed(engine: Engine) -> None:
    calls: list[str] = []
    watched = FaultyBlobs(engine.blobs, before=lambda verb, key: calls.append(verb))
    assert verify(blobs=watched) == []
    assert verify(engine.head().fingerprint[:8], blobs=watched) == []
    assert not WRITES & set(calls)
    assert list(engine.blobs.scratch().glob("work/*")) == []


def test_every_object_that_is_named_is_looked_at(engine: Engine) -> None:
    """Each of them, when it is gone or changed, is told; those that nothing can tell from sound ones are listed here."""
    untold = ("inspected/", "launches/", "recipes/", "registry/supervised/versions/", "prepared/", "runs/", ".")
    for key in list(engine.blobs.list("")):
        if key.startswith(untold) and "/payload/" not in key:
            continue
        stored = engine.blobs.get(key)
        assert stored is not None
        engine.blobs.delete(key)
        missing = verify(blobs=engine.blobs)
        if key != "registry/supervised/aliases.json":
            assert [(found.key, found.problem) for found in missing] == [(key, "missing")], key
        engine.blobs.put_if_absent(key, stored.data[:-1] + b"?")
        damaged = verify(blobs=engine.blobs)
        assert [(found.key, found.problem) for found in damaged] == [(key, "damaged")], key
        engine.blobs.delete(key)
        engine.blobs.put_if_absent(key, stored.data)
    assert verify(blobs=engine.blobs) == []


def test_a_finding_tells_who_needs_it(engine: Engine) -> None:
    head = engine.head()
    run = f"run {head.fingerprint[:12]}"
    entry = head.entries()[2]
    manifest = engine.store.manifest(entry)
    (file,) = manifest.files.values()
    key = payload_key(head.fingerprint, manifest.token, file.sha256)
    size = engine.blobs.size(key)
    engine.blobs.delete(key)
    assert verify(blobs=engine.blobs) == [Finding(key, "missing", "is missing", (f"{run}, step 9",))]
    engine.blobs.put_if_absent(key, b"short")
    (found,) = verify(head.fingerprint[:6], blobs=engine.blobs)
    assert str(found) == f"{key}: has 5 bytes, and {size} were stored; needed by {run}, step 9"
    engine.blobs.delete(content_key(entry.manifest))
    found = verify(blobs=engine.blobs)[0]
    assert found == Finding(content_key(entry.manifest), "missing", "is missing", (f"{run}, step 9", "supervised@1"))


@pytest.mark.parametrize(
    ("key", "data", "what"),
    [
        ("registry/supervised/versions/000001.json", b"{", "is not a model version: "),
        ("registry/supervised/aliases.json", b"[]", "can't be read: "),
        ("registry/supervised/aliases.json", b'{"production": 7}', "is missing"),
        ("prepared/one.json", b"{}", "can't be read: "),
        ("models/one.json", b"{", "can't be read: "),
        ("derived/one.json", b'{"size": 1}', "can't be read: "),
    ],
)
def test_records_that_can_not_be_read_are_found(engine: Engine, key: str, data: bytes, what: str) -> None:
    engine.blobs.delete(key)
    engine.blobs.put_if_absent(key, data)
    (found,) = verify(blobs=engine.blobs)
    assert found.what.startswith(what)
    assert found.key == ("registry/supervised/versions/000007.json" if b"7" in data else key)


def test_a_damaged_head_hides_no_other_run(engine: Engine) -> None:
    other = engine.finish(seed=1).head
    key = head_key(engine.run().fingerprint)
    engine.blobs.delete(key)
    engine.blobs.put_if_absent(key, b"{}")
    entry = other.entries()[0]
    engine.blobs.delete(content_key(entry.manifest))
    assert {found.key for found in verify(blobs=engine.blobs)} == {key, content_key(entry.manifest)}
    with pytest.raises(CheckpointError, match="is not a run's head"):
        prune(blobs=engine.blobs)


def test_what_was_pruned_or_quarantined_is_not_missed(engine: Engine) -> None:
    prune(keep_last=1, blobs=engine.blobs)
    assert verify(blobs=engine.blobs) == []
    lease = acquire(engine.blobs, engine.head().fingerprint, run="me", wait_s=0.0)
    entry = lease.head.entries()[0]
    engine.store.quarantine(lease, entry.step, "damaged")
    lease.release()
    engine.blobs.delete(content_key(entry.manifest))
    assert verify(blobs=engine.blobs) == []


def test_what_is_pruned_while_it_is_verified_is_no_finding(engine: Engine) -> None:
    def prune_now(verb: str, key: str) -> None:
        if key == "models/":
            prune(keep_last=1, blobs=engine.blobs)

    assert verify(blobs=FaultyBlobs(engine.blobs, before=prune_now)) == []
    assert [entry.payload for entry in engine.head().entries()] == ["pruned", "pruned", "present"]


def test_an_unknown_run_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"^verify: no run starts with 0123abcd\n"):
        verify("0123abcd", blobs=engine.blobs)


def test_the_store_that_runs_use_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITCHEN_STORE", str(tmp_path / "store"))
    assert kitchen.verify() == []


# Pruning


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda blobs: prune(grace_hours=-1, blobs=blobs),
            "grace_hours: is -1, and must be at least 0\n  fix: grace_hours=24",
        ),
        (
            lambda blobs: prune(launch_days=float("nan"), blobs=blobs),
            "launch_days: is nan, and must be at least 0\n  fix: launch_days=30",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(engine: Engine, call: Callable[[BlobStore], object], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        call(engine.blobs)
    assert str(refused.value) == said


def test_folders_of_dead_workers_go_and_a_dry_run_leaves_them(engine: Engine) -> None:
    folder = engine.blobs.scratch() / "work" / "export-dead"
    folder.mkdir(parents=True)
    (folder.parent / "export-dead.lock").touch()
    prune(dry_run=True, blobs=engine.blobs)
    assert folder.exists()
    prune(blobs=engine.blobs)
    assert not folder.exists()


class _Uploading(FaultyBlobs):
    """A store with three unfinished uploads, or one that doesn't say."""

    allowed = True

    def abort_uploads(self, older_than_s: float) -> int:
        assert older_than_s == 24 * 3600
        if not self.allowed:
            raise BlobError("access was denied (403)")
        return 3


def test_uploads_that_broke_off_are_given_up(engine: Engine) -> None:
    blobs = _Uploading(engine.blobs)
    assert prune(blobs=blobs).uploads == 3
    assert prune(blobs=blobs, dry_run=True).uploads == 0
    assert prune(blobs=blobs).lines()[-1] == "3 uploads that had broken off were given up"
    blobs.allowed = False
    pruned = prune(blobs=blobs)
    assert (pruned.uploads, pruned.uploads_left) == (0, "access was denied (403)")
    assert pruned.lines()[-1] == "uploads that had broken off were left: access was denied (403)"
