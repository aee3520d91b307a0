"""Collecting garbage: what is deleted and when, what stays and why, and that a killed collection loses nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kitchen_assets.shelf import prune
from kitchen_resources.blobs import garbage
from kitchen_resources.blobs.content import ContentStore, content_key
from kitchen_resources.blobs.garbage import (
    ABANDONED_S,
    Marker,
    at_work,
    claimed,
    marked,
    put_marker,
    read_marker,
    spare,
    spared,
)
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.checkpoints.head import Holder, encode_head, head_key
from kitchen_resources.checkpoints.holder import this_holder
from kitchen_resources.checkpoints.lease import acquire
from kitchen_resources.digests import digest_bytes
from kitchen_resources.errors import BlobError
from kitchen_resources.storage import collection as collection_module
from kitchen_resources.storage.collection import Collected, collect
from tests.engine import Engine, register
from tests.faulty_blobs import FaultyBlobs, NthWrite
from tests.unit.collections_of_garbage import DAY, NOW, ORPHAN, SHA256, collected, engine_with_orphan, keys, state


@pytest.fixture
def engine() -> Engine:
    return engine_with_orphan()


# What is deleted, and when.


def test_what_nothing_names_is_marked_and_then_deleted(engine: Engine) -> None:
    before = keys(engine)
    first = collected(engine.blobs)
    assert (first.deleted, first.marked, first.waiting, first.held_back) == ({}, 1, 0, "")
    assert state(engine.blobs) == "marked"
    assert engine.store.content.get(SHA256) == ORPHAN
    second = collected(engine.blobs, days=0.9)
    assert (second.deleted, second.marked, second.waiting) == ({}, 0, 1)
    third = collected(engine.blobs, days=1)
    assert (third.deleted, third.marked, third.waiting) == ({SHA256: len(ORPHAN)}, 0, 0)
    assert keys(engine) == [key for key in before if key != content_key(SHA256)]
    assert collected(engine.blobs, days=9) == Collected({}, 0, 0, (), 0, "")


def test_a_dry_run_says_the_same_and_changes_nothing(engine: Engine) -> None:
    for days in (0.0, 1.0):
        before = {key: engine.blobs.get(key) for key in keys(engine)}
        said = collected(engine.blobs, days=days, dry_run=True)
        assert {key: engine.blobs.get(key) for key in keys(engine)} == before
        assert said == collected(engine.blobs, days=days)


@pytest.mark.parametrize(
    ("name", "key", "data"),
    [
        ("json", "anything/new.json", b'{"file": "%s"}'),
        ("text", "anything/notes.txt", b"see %s, please"),
        ("among other digits", "anything/long", b"00%sff"),
        ("key", "anything/%s.json", b"{}"),
    ],
)
def test_whatever_names_a_blob_keeps_it(engine: Engine, name: str, key: str, data: bytes) -> None:
    engine.blobs.put_if_absent(key.replace("%s", SHA256), data.replace(b"%s", SHA256.encode()))
    for days in range(4):
        assert collected(engine.blobs, days=days).deleted == {}
    assert engine.store.content.get(SHA256) == ORPHAN
    assert list(engine.blobs.list("garbage/")) == []


def test_a_blob_that_a_blob_names_is_kept_at_any_depth(engine: Engine) -> None:
    top = SHA256
    for _ in range(5):
        top = engine.store.content.put_json({"next": top})
    engine.blobs.put_if_absent("anything/top", top.encode())
    assert collected(engine.blobs).marked == 0
    engine.blobs.delete("anything/top")
    assert collected(engine.blobs).marked == 6


def test_a_chain_that_is_named_again_loses_its_markers(engine: Engine) -> None:
    top = engine.store.content.put_json({"next": SHA256})
    assert collected(engine.blobs).marked == 2
    engine.blobs.put_if_absent("anything/top", top.encode())
    assert collected(engine.blobs, days=9).deleted == {}
    assert list(engine.blobs.list("garbage/")) == []


def test_large_blobs_are_not_searched(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from kitchen_resources.storage import marking

    large = engine.store.content.put_json({"next": SHA256, "rows": "x" * 5000})
    engine.blobs.put_if_absent("anything/top", large.encode())
    assert set(marking.mark(engine.blobs, {}, searched_bytes=4000).unreferenced()) == {SHA256}
    assert set(marking.mark(engine.blobs, {}).unreferenced()) == set()


def test_a_large_root_is_searched_in_pieces(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from kitchen_resources.storage import marking

    monkeypatch.setattr(marking, "SEARCHED_BYTES", 4000)
    engine.blobs.put_if_absent("anything/large", b"x" * 5000 + SHA256.encode() + b"x" * 5000)
    assert set(marking.mark(engine.blobs, {}, searched_bytes=4000).unreferenced()) == set()
    assert list(engine.blobs.scratch().glob("search-*")) == []


def test_what_a_registry_elsewhere_names_is_kept(engine: Engine) -> None:
    # It may know stores besides this one.
    elsewhere = frozenset({SHA256, digest_bytes(b"in another store")})
    found = collected(engine.blobs, protected=elsewhere)
    assert (found.marked, found.held_back) == (0, "")


def test_production_candidate_and_every_version_is_kept_whole(engine: Engine) -> None:
    version = register(engine, engine.head(), 9)
    for days in (0, 2, 40, 80):
        collected(engine.blobs, days=days, launch_age_s=0.0)
    for file in version.model.files.values():
        assert len(engine.store.content.get(file.sha256)) == file.size
    for entry in engine.head().entries():
        manifest = engine.store.manifest(entry)
        assert engine.store.ledger(manifest)
        assert engine.store.steps(manifest)
    assert engine.finish(keep_last=3).steps_done == 0


# Work under way.


def test_putting_it_again_starts_over(engine: Engine) -> None:
    collected(engine.blobs)
    engine.store.content.put(ORPHAN)
    assert state(engine.blobs) == "spared"
    again = collected(engine.blobs, days=1)
    assert (again.deleted, again.marked) == ({}, 1)
    assert collected(engine.blobs, days=1.9).deleted == {}
    assert collected(engine.blobs, days=2).deleted == {SHA256: len(ORPHAN)}


def test_what_was_stored_under_a_lease_waits_for_its_end(engine: Engine) -> None:
    lease = acquire(engine.blobs, "ab" * 32, run="run-9", wait_s=0.0)
    collected(engine.blobs)
    lease.update(lambda head: replace(head, heartbeat=head.heartbeat + 1))
    assert collected(engine.blobs, days=5).waiting == 1
    lease.release()
    assert collected(engine.blobs, days=5).deleted == {SHA256: len(ORPHAN)}


def test_the_next_holder_of_the_run_has_nothing_to_do_with_it(engine: Engine) -> None:
    lease = acquire(engine.blobs, "ab" * 32, run="run-9", wait_s=0.0)
    collected(engine.blobs)
    lease.release()
    lease = acquire(engine.blobs, "ab" * 32, run="run-10", wait_s=0.0)
    assert collected(engine.blobs, days=5).deleted == {SHA256: len(ORPHAN)}
    lease.release()


def test_a_holder_elsewhere_whose_heart_stands_still_is_dead(engine: Engine) -> None:
    lease = acquire(engine.blobs, "ab" * 32, run="run-9", wait_s=0.0)
    lease.release()
    key = head_key("ab" * 32)
    stored = engine.blobs.get(key)
    assert stored is not None
    theirs = replace(lease.head, holder=Holder("x", "other/1", "b", 1, 1.0, "run-9"))
    assert engine.blobs.compare_and_swap(key, stored.version, encode_head(theirs))
    collected(engine.blobs)
    assert collected(engine.blobs, days=0.01, grace_s=0.0).waiting == 1
    assert collected(engine.blobs, days=1).deleted == {SHA256: len(ORPHAN)}


def test_what_a_run_published_and_gave_back_while_the_collection_looked_is_kept(engine: Engine) -> None:
    """The run is looked at before the store: what it published in between is not seen, and so the run counts as held."""
    lease = acquire(engine.blobs, "ab" * 32, run="run-9", wait_s=0.0)
    collected(engine.blobs)

    def publish(verb: str, key: str) -> None:
        if verb == "list" and key == "blobs/sha256/":
            engine.blobs.put_if_absent("anything/late", SHA256.encode())
            lease.release()

    lease.update(lambda head: replace(head, heartbeat=head.heartbeat + 1))
    assert collected(FaultyBlobs(engine.blobs, before=publish), days=5).waiting == 1
    assert collected(engine.blobs, days=5).deleted == {}
    assert engine.store.content.get(SHA256) == ORPHAN


# Claims.


def claim(engine: Engine, holder: Holder, days: float = 0.0) -> None:
    assert put_marker(engine.blobs, SHA256, claimed(NOW + days * DAY, holder))


def elsewhere() -> Holder:
    return replace(this_holder("collection"), host="other/1")


@pytest.mark.parametrize("is_there", [True, False])
def test_what_a_dead_collection_claimed_is_finished_at_once(engine: Engine, is_there: bool) -> None:
    claim(engine, this_holder("collection"))
    if not is_there:
        engine.blobs.delete(content_key(SHA256))
    assert collected(engine.blobs).deleted == ({SHA256: len(ORPHAN)} if is_there else {})
    assert state(engine.blobs) == ""
    assert engine.blobs.get(content_key(SHA256)) is None


def test_what_a_dead_collection_claimed_and_is_named_stays(engine: Engine) -> None:
    claim(engine, this_holder("collection"))
    engine.blobs.put_if_absent("anything/top", SHA256.encode())
    assert collected(engine.blobs).deleted == {}
    assert (state(engine.blobs), engine.store.content.get(SHA256)) == ("", ORPHAN)


def test_what_a_living_collection_claimed_is_left_to_it(engine: Engine) -> None:
    with at_work() as holder:
        claim(engine, holder)
        assert collected(engine.blobs, days=9).deleted == {}
        assert state(engine.blobs) == "deleting"
    assert collected(engine.blobs, days=9).deleted == {SHA256: len(ORPHAN)}


def test_a_claim_of_another_host_is_nobodys_after_a_day(engine: Engine) -> None:
    claim(engine, elsewhere())
    assert collected(engine.blobs, days=ABANDONED_S / DAY).deleted == {}
    assert collected(engine.blobs, days=ABANDONED_S / DAY + 0.01).deleted == {SHA256: len(ORPHAN)}


def test_a_collection_that_was_held_up_after_its_claim_deletes_nothing(engine: Engine) -> None:
    """Nothing fences a delete: whoever took the claim over meanwhile may have stored the blob anew."""
    collected(engine.blobs)
    late = 0.0

    def held_up(verb: str, key: str) -> None:
        nonlocal late
        if verb == "compare_and_swap":
            late = 120.0

    blobs = FaultyBlobs(engine.blobs, after=held_up)
    found = collected(blobs, clock=lambda: NOW + 2 * DAY + late)
    assert found.deleted == {}
    assert (state(engine.blobs), engine.store.content.get(SHA256)) == ("deleting", ORPHAN)
    assert collected(engine.blobs, days=2).deleted == {SHA256: len(ORPHAN)}


def test_a_writer_waits_for_a_living_collection_and_stores_it_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def finish(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            engine.blobs.delete(content_key(SHA256))
            engine.blobs.delete(f"garbage/{SHA256}")

    monkeypatch.setattr(garbage, "_pause", finish)
    with at_work() as holder:
        claim(engine, holder)
        assert engine.store.content.put(ORPHAN) == SHA256
    assert waits == [0.2, 0.2, 0.2]
    assert engine.store.content.get(SHA256) == ORPHAN


def test_a_writer_relies_on_nothing_that_it_can_not_take_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(garbage, "_pause", waits.append)
    monkeypatch.setattr(garbage.time, "time", lambda: NOW)
    claim(engine, elsewhere())
    with pytest.raises(BlobError) as refused:
        engine.store.content.put(ORPHAN)
    assert str(refused.value).startswith(f"garbage/{SHA256}: is being deleted by process ")
    assert " on other, and was still after 60 s\n  fix: run again; " in str(refused.value)
    assert refused.value.mendable
    assert round(sum(waits), 6) == 60.0


def test_a_swap_whose_answer_was_lost_is_found_done(engine: Engine) -> None:
    collected(engine.blobs)

    class Forgetful(FaultyBlobs):
        def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> str | None:
            super().compare_and_swap(key, expected, data)
            return None

    spare(Forgetful(engine.blobs), SHA256)
    assert state(engine.blobs) == "spared"
    collected(engine.blobs, days=1)
    assert collected(Forgetful(engine.blobs), days=3).deleted == {SHA256: len(ORPHAN)}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[]", "is not a marker of a blob"),
        (b"{", "is not a marker of a blob"),
        (b'{"format":2}', "is of another format\n  fix: upgrade crucible-kitchen"),
        (b'{"format":1,"held":[],"holder":null}', "is not a marker of a blob"),
    ],
)
def test_a_marker_that_can_not_be_read_is_relied_on_by_nobody(engine: Engine, data: bytes, said: str) -> None:
    engine.blobs.put_if_absent(f"garbage/{SHA256}", data)
    calls: list[Callable[[], object]] = [
        lambda: engine.store.content.put(ORPHAN),
        lambda: collected(engine.blobs),
    ]
    for call in calls:
        with pytest.raises(BlobError, match=f"^garbage/{SHA256}: {said}"):
            call()


# Damage.


def damage(engine: Engine, key: str, data: bytes | None) -> None:
    engine.blobs.delete(key)
    if data is not None:
        engine.blobs.put_if_absent(key, data)


@pytest.mark.parametrize(("data", "said"), [(None, "is missing"), (b"{}", "is damaged")])
def test_nothing_is_deleted_while_a_manifest_can_not_be_read(engine: Engine, data: bytes | None, said: str) -> None:
    """What it names looks like garbage, and is none once the manifest is restored."""
    entry = engine.head().entries()[0]
    key = content_key(entry.manifest)
    sound = engine.store.content.get(entry.manifest)
    ledger = engine.store.manifest(entry).records["steps.jsonl"].sha256
    damage(engine, key, data)
    run = engine.head().fingerprint[:12]
    found = collected(engine.blobs)
    assert found.held_back == f"{key} (the manifest of run {run}, step 3) {said}"
    assert collected(engine.blobs, days=5).deleted == {}
    assert engine.store.content.get(ledger)
    damage(engine, key, sound)
    assert collected(engine.blobs, days=6).deleted == {SHA256: len(ORPHAN)}
    assert engine.store.content.get(ledger)


def test_nothing_is_deleted_while_a_record_can_not_be_read(engine: Engine) -> None:
    engine.blobs.put_if_absent("models/one.json", b'{"files": ')
    collected(engine.blobs)
    found = collected(engine.blobs, days=5)
    assert (found.deleted, found.held_back) == ({}, "models/one.json is not JSON")


# Killed anywhere.


def writes_of(work: Callable[[Any], object], engine: Engine) -> int:
    count = NthWrite()
    work(FaultyBlobs(engine.blobs, before=count))
    return count.count


def at_the_end(engine: Engine) -> dict[str, bytes]:
    return {key: stored.data for key in keys(engine) if (stored := engine.blobs.get(key))}


def litter() -> Engine:
    """A store with garbage of every kind: orphans, a chain of them, claims without owner, old notes."""
    engine = Engine()
    register(engine, engine.finish(keep_last=3, run_id="one").head, 9)
    content = engine.store.content
    for number in range(3):
        content.put(b"orphan %d" % number)
    content.put_json({"next": content.put(b"inner")})
    assert put_marker(engine.blobs, content.put(b"half deleted"), claimed(NOW, this_holder("collection")))
    gone = digest_bytes(b"gone")
    assert put_marker(engine.blobs, gone, claimed(NOW, this_holder("collection")))
    assert put_marker(engine.blobs, content.put(b"spared"), spared(NOW))
    kept = engine.head().entries()[0].manifest
    assert put_marker(engine.blobs, kept, marked(NOW - 9 * DAY, ()))
    for name in ("old", "older"):
        engine.blobs.put_if_absent(f"launches/{name}/started-supervised", b"%f" % (NOW - 90 * DAY))
        engine.blobs.put_if_absent(f"launches/{name}/supervised-0/run.json", b'{"fingerprint": "x"}')
    return engine


def cleaned(blobs: Any) -> None:
    """Two collections, of which the second deletes what the first marked."""
    collected(blobs)
    collected(blobs, days=2)


def test_a_collection_that_is_killed_at_any_write_ends_as_one_that_is_not() -> None:
    whole = litter()
    cleaned(whole.blobs)
    expected = at_the_end(whole)
    assert not any(key.startswith(("garbage/", "launches/old")) for key in expected)
    total = writes_of(cleaned, litter())
    assert total > 30
    for when in ("before", "after"):
        for number in range(1, total + 1):
            engine = litter()
            fault = NthWrite(number)
            with pytest.raises(BlobError, match="the store is away"):
                cleaned(FaultyBlobs(engine.blobs, **{when: fault}))
            alive = {key: data for key, data in at_the_end(engine).items() if key in expected}
            assert alive.keys() == expected.keys(), fault.hit
            # What was marked before the kill is due, what was not is marked now: two more.
            collected(engine.blobs, days=4)
            collected(engine.blobs, days=6)
            assert at_the_end(engine).keys() == expected.keys(), fault.hit


# From the door.


def test_pruning_collects_and_says_what_it_did(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine.head().fingerprint
    size = engine.head().entries()[0].bytes
    dry = prune(blobs=engine.blobs, dry_run=True)
    done = prune(blobs=engine.blobs)
    assert dry == replace(done, dry_run=True)
    assert (done.runs, done.payload_bytes, done.marked, done.blobs) == ({run: [3, 6]}, 2 * size, 1, 0)
    assert done.lines() == [
        f"run {run[:12]}: the payload at step 3, 6 was deleted",
        "0 blobs that nothing names (0 bytes) were deleted, 1 were marked, 0 marked ones are not due yet",
        "0 notes of launches that are over were removed",
    ]
    later = prune(blobs=engine.blobs, keep_last=None, grace_hours=0)
    assert (later.runs, later.blobs, later.bytes) == ({}, 1, len(ORPHAN))


def test_of_one_run_only_the_payload_is_pruned(engine: Engine) -> None:
    assert prune(engine.head().fingerprint, blobs=engine.blobs).marked == 0
    assert list(engine.blobs.list("garbage/")) == []


def test_the_clock_that_is_used_is_that_of_the_machine() -> None:
    blobs = MemoryBlobs()
    ContentStore(blobs).put(ORPHAN)
    collect(blobs, grace_s=0.0, launch_age_s=0.0)
    found = read_marker(blobs, SHA256)
    assert found is not None
    assert abs(found.marker.at - collection_module.time.time()) < 3600
    assert isinstance(found.marker, Marker)
