"""A run whose store fails or is damaged ends in the same states as an undisturbed one, and shows nothing half made."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.content import content_key
from kitchen_resources.checkpoints.head import CheckpointEntry, Head, decode_head, encode_head, head_key
from kitchen_resources.checkpoints.lease import acquire
from kitchen_resources.checkpoints.manifest import LEDGER_FILE, encode_manifest
from kitchen_resources.errors import BlobError, CheckpointError, FormatError
from kitchen_resources.training.exporting import export_checkpoint
from kitchen_resources.training.model_files import write_model_folder
from tests.engine import ROWS, Engine, HookedTrainer, epoch_ends, needed_files, payload_keys, states, undisturbed
from tests.faulty_blobs import WRITES, FaultyBlobs, NthWrite, is_away

FIELDS: dict[str, Any] = {"epochs": 2, "checkpoint_steps": 2, "keep_last": 1}
ENTRIES = [(2, 1), (3, 1), (4, 2), (6, 2)]


def newest(engine: Engine) -> CheckpointEntry:
    return engine.head().entries()[-1]


def payload_key(engine: Engine, entry: CheckpointEntry) -> str:
    (file,) = engine.store.manifest(entry).files.values()
    (key,) = [key for key in payload_keys(engine) if key.endswith(file.sha256)]
    return key


def overwrite(engine: Engine, key: str, data: bytes) -> None:
    assert engine.blobs.delete(key)
    assert engine.blobs.put_if_absent(key, data)


def change_head(engine: Engine, change: Callable[[Head], Head]) -> None:
    """Write another head, as somebody who may write to the store could."""
    (fingerprint,) = engine.store.find("")
    key = head_key(fingerprint)
    stored = engine.blobs.get(key)
    assert stored is not None
    assert engine.blobs.compare_and_swap(key, stored.version, encode_head(change(decode_head(stored.data, key))))


# Writes that fail


def writes_of_a_run() -> int:
    count = NthWrite()
    engine = Engine()
    engine.blobs = FaultyBlobs(engine.blobs, before=count)
    engine.finish(**FIELDS)
    return count.count


def check_what_is_visible(engine: Engine, folder: Path) -> None:
    """Whatever the head names is whole."""
    for fingerprint in engine.store.find(""):
        for entry in engine.store.head(fingerprint).entries():
            if entry.payload == "present":
                found = engine.store.checkout(fingerprint, entry, folder / "seen")
                assert found.state_digest == entry.state_digest


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done all the same"])
def test_after_any_write_that_failed_the_run_ends_as_undisturbed(tmp_path: Path, done: bool) -> None:
    whole = undisturbed(**FIELDS)
    total = writes_of_a_run()
    assert total >= 30
    hit: set[str] = set()
    failed = 0
    for number in range(1, total + 1):
        fault = NthWrite(number)
        engine = Engine()
        sound = engine.blobs
        engine.blobs = FaultyBlobs(sound, **{"after" if done else "before": fault})
        try:
            engine.finish(**FIELDS)
        except BlobError:
            failed += 1
        assert fault.hit
        hit.add(fault.hit.split("/")[0])
        again = engine.with_(blobs=sound)
        check_what_is_visible(again, tmp_path)
        finished = again.finish(**FIELDS)
        assert again.told.text.count("waiting") == 0
        assert epoch_ends(finished.head) == whole, fault.hit
        assert [(e.step, e.epoch) for e in finished.head.entries()] == ENTRIES, fault.hit
        # Nobody has to wait, also where giving the lease back was what failed.
        acquire(sound, finished.head.fingerprint, run="next", wait_s=0.0).release()
        assert len(payload_keys(again)) == needed_files(again) == 1, fault.hit
        assert list((sound.scratch() / "runs").glob("*/*")) == []
    # All but giving the lease back, whose failure is only said.
    assert total * 0.8 < failed < total
    assert hit >= {
        "put_file runs",
        "put_if_absent blobs",
        "compare_and_swap runs",
        "compare_and_swap launches",
        "delete runs",
        "put_if_absent recipes",
        "put_if_absent prepared",
    }


def test_a_run_gets_through_although_every_launch_is_cut_off_after_a_dozen_writes() -> None:
    engine = Engine()
    sound = engine.blobs
    cut_off = 0
    done = False
    while not done and cut_off < 20:
        writes: list[str] = []

        def away(verb: str, key: str, writes: list[str] = writes) -> None:
            if verb in WRITES:
                writes.append(key)
                if len(writes) > 12:
                    is_away(verb, key)

        engine.blobs = FaultyBlobs(sound, before=away)
        before = states(engine.head()) if engine.store.find("") else {}
        try:
            engine.finish(**FIELDS)
            done = True
        except BlobError:
            cut_off += 1
        assert before.items() <= states(engine.head()).items()
    assert done
    assert cut_off > 2
    assert epoch_ends(engine.head()) == undisturbed(**FIELDS)


# Damage


Damage = Callable[[Engine, CheckpointEntry], None]


def _flip(engine: Engine, entry: CheckpointEntry) -> None:
    key = payload_key(engine, entry)
    stored = engine.blobs.get(key)
    assert stored is not None
    overwrite(engine, key, stored.data[:50] + bytes([stored.data[50] ^ 1]) + stored.data[51:])


def _cut(engine: Engine, entry: CheckpointEntry) -> None:
    key = payload_key(engine, entry)
    stored = engine.blobs.get(key)
    assert stored is not None
    overwrite(engine, key, stored.data[:-1])


def _of_another_run(engine: Engine, entry: CheckpointEntry) -> None:
    manifest = replace(engine.store.manifest(entry), fingerprint="f0" * 32)
    sha256 = engine.store.content.put(encode_manifest(manifest))
    _name(engine, entry, sha256)


def _hostile_name(engine: Engine, entry: CheckpointEntry) -> None:
    manifest = engine.store.manifest(entry)
    (file,) = manifest.files.values()
    hostile = replace(manifest, files={**manifest.files, "../x": replace(file, state=False)})
    _name(engine, entry, engine.store.content.put(encode_manifest(hostile)))


def _name(engine: Engine, entry: CheckpointEntry, manifest: str) -> None:
    change_head(engine, lambda head: head.with_entry(entry.step, manifest=manifest))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (
        lambda engine, entry: engine.blobs.delete(payload_key(engine, entry)) and None,
        "simulated.json is missing or has another size",
    ),
    "truncated": (_cut, "simulated.json is missing or has another size"),
    "a bit flipped": (_flip, "the bytes of simulated.json don't match its digest"),
    "manifest missing": (
        lambda engine, entry: engine.blobs.delete(content_key(entry.manifest)) and None,
        "is missing from the store",
    ),
    "manifest changed": (
        lambda engine, entry: overwrite(engine, content_key(entry.manifest), b"{}"),
        "its bytes don't match its name",
    ),
    "manifest of another run": (_of_another_run, "its manifest belongs to run f0f0f0f0f0f0"),
    "hostile file name": (_hostile_name, "its manifest names the file '../x'"),
    "ledger missing": (
        lambda engine, entry: (
            engine.blobs.delete(content_key(engine.store.manifest(entry).records[LEDGER_FILE].sha256)) and None
        ),
        "is missing from the store",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("inside", [False, True], ids=["at an epoch's end", "inside an epoch"])
def test_a_damaged_checkpoint_is_quarantined_and_made_again(kind: str, inside: bool) -> None:
    fields: dict[str, Any] = {"checkpoint_steps": 1, "keep_last": 9} if inside else {}
    stop = 6 if inside else 7

    def interrupt(step: int) -> None:
        if step == stop:
            raise KeyboardInterrupt

    engine = Engine()
    with pytest.raises(KeyboardInterrupt):
        engine.with_(adapter=HookedTrainer(interrupt)).finish(**fields)
    damaged = newest(engine)
    before = engine.head().entries()[-2]
    assert damaged.step == stop - 1
    damage, reason = DAMAGES[kind]
    damage(engine, damaged)

    reached: list[int] = []
    again = engine.with_(adapter=HookedTrainer(reached.append))
    finished = again.finish(**fields)
    assert reached == list(range(before.step + 1, 10))
    assert finished.steps_done == 9 - before.step
    assert again.told.said[0].startswith(f"the checkpoint at step {damaged.step} is damaged and was quarantined: ")
    assert reason in again.told.said[0]
    assert again.told.said[1] == f"going on from step {before.step} (epoch {before.epoch})"
    quarantined = [entry for entry in finished.head.checkpoints if entry.payload == "quarantined"]
    assert [entry.step for entry in quarantined] == [damaged.step]
    assert reason in quarantined[0].reason
    remade = finished.head.at(damaged.step)
    assert remade is not None
    assert remade.state_digest == damaged.state_digest
    assert epoch_ends(finished.head) == undisturbed()
    last = engine.store.ledger(engine.store.manifest(newest(engine)))
    assert sorted(row for step in last for row in step) == list(range(ROWS))
    # What was made again is really whole, although its objects have the names of the damaged ones.
    assert engine.with_().finish(**fields).steps_done == 0
    folder = engine.blobs.scratch() / "seen"
    for entry in finished.head.entries():
        if entry.payload == "present":
            engine.store.checkout(finished.head.fingerprint, entry, folder)


def test_damage_to_what_is_not_gone_on_from_stops_nobody() -> None:
    """The first manifest of a run tells the environment that it was started in."""
    engine = Engine()
    engine.run().ensure(2)
    first = engine.head().entries()[0]
    engine.blobs.delete(content_key(first.manifest))
    finished = engine.finish(keep_last=3)
    assert finished.steps_done == 3
    assert {e.step: e.state_digest for e in finished.head.entries()} == {
        step: digest for step, digest in undisturbed().items() if step != 3
    }
    assert [e.payload for e in finished.head.checkpoints] == ["quarantined", "present", "present"]
    assert engine.finish(keep_last=3).steps_done == 0


def test_where_nothing_is_left_whole_it_is_trained_from_the_start() -> None:
    engine = Engine()
    engine.run(keep_last=1).ensure(2)
    assert [entry.payload for entry in engine.head().entries()] == ["pruned", "present"]
    _flip(engine, newest(engine))
    again = engine.with_()
    finished = again.finish(keep_last=1)
    assert again.told.said[1] == "no checkpoint of this run is left whole; it is trained again from its start"
    assert finished.steps_done == 9
    assert again.told.steps == [3, 6, 9]
    assert epoch_ends(finished.head) == undisturbed()
    assert [entry.payload for entry in finished.head.entries()] == ["pruned", "pruned", "present"]


def test_the_model_of_a_finished_run_is_found_damaged_and_made_again(tmp_path: Path) -> None:
    engine = Engine()
    finished = engine.finish()
    _flip(engine, finished.selected)
    launch = engine.launch()
    job = engine.run().job()
    with pytest.raises(CheckpointError) as refused:
        export_checkpoint(launch, job, finished.selected, "merged")
    assert str(refused.value) == (
        f"run {job.fingerprint[:12]}, step 9: the checkpoint is damaged and was quarantined: "
        f"run {job.fingerprint[:12]}, step 9: the bytes of simulated.json don't match its digest\n"
        "  fix: run the recipe again: it is made again, or where later epochs were made the best of the others is taken"
    )
    assert engine.head().holder is None
    again = engine.with_().finish()
    assert again.steps_done == 3
    assert again.selected.state_digest == finished.selected.state_digest
    model = export_checkpoint(engine.launch(), job, again.selected, "merged")
    folder = write_model_folder(engine.store.content, model, tmp_path / "model")
    assert [path.name for path in folder.iterdir()] == ["simulated.json"]


def test_a_pruned_model_is_not_taken_for_a_damaged_one() -> None:
    engine = Engine()
    engine.finish(keep_last=1)
    pruned = engine.head().entries()[0]
    with pytest.raises(CheckpointError, match=r"step 3: its payload was pruned \(keep_last 1, keep_best 1\)$"):
        export_checkpoint(engine.launch(), engine.run().job(), pruned, "merged")
    assert engine.head().entries()[0].payload == "pruned"


def test_what_a_later_version_wrote_is_refused_and_left_as_it_is() -> None:
    engine = Engine()
    engine.finish(keep_last=3)
    entry = newest(engine)
    newer = encode_manifest(engine.store.manifest(entry)).replace(b'"format":1', b'"format":3')
    digest = engine.store.content.put(newer)
    change_head(engine, lambda head: head.with_entry(entry.step, manifest=digest))
    before = {key: stored.data for key in engine.blobs.list("") if (stored := engine.blobs.get(key))}
    lease = acquire(engine.blobs, engine.head().fingerprint, run="test", wait_s=0.0)
    for use in (
        lambda: engine.store.resume_point(lease, engine.blobs.scratch() / "x", engine.told.say),
        lambda: engine.store.prune(lease, {3, 6, 9}, ""),
    ):
        with pytest.raises(FormatError, match="has format 3, this version reads up to 2"):
            use()
    lease.release()
    with pytest.raises(FormatError, match="has format 3"):
        engine.finish(keep_last=3, epochs=3)
    with pytest.raises(FormatError, match="has format 3"):
        export_checkpoint(engine.launch(), engine.run().job(), newest(engine), "merged")
    assert [e.payload for e in engine.head().checkpoints] == ["present"] * 3
    assert before.keys() <= set(engine.blobs.list(""))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{}", "is not a run's head"),
        (b"", "is not a run's head"),
        (encode_head(Head("ab" * 32)).replace(b'"format":1', b'"format":2'), "has format 2"),
    ],
    ids=["nonsense", "empty", "of a later version"],
)
def test_a_head_that_can_not_be_read_is_not_written_over(data: bytes, message: str) -> None:
    engine = Engine()
    engine.run().ensure(1)
    (fingerprint,) = engine.store.find("")
    overwrite(engine, head_key(fingerprint), data)
    with pytest.raises(CheckpointError, match=f"^{head_key(fingerprint)}: {message}"):
        engine.finish()
    stored = engine.blobs.get(head_key(fingerprint))
    assert stored is not None
    assert stored.data == data
