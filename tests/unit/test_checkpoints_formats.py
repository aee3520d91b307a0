"""Heads and manifests as bytes: what is written is read back, and nothing else is taken for one."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kitchen_resources.blobs.content import StoredFile
from kitchen_resources.checkpoints.head import (
    CheckpointEntry,
    Head,
    Holder,
    RecordedEvaluation,
    RunEnd,
    decode_head,
    encode_head,
    head_key,
)
from kitchen_resources.checkpoints.manifest import Manifest, decode_manifest, encode_manifest, state_digest
from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import CheckpointError

RUN = "a1" * 32
KEY = head_key(RUN)
SHA = {letter: letter * 64 for letter in "abcdef"}


def entry(step: int, **fields: Any) -> CheckpointEntry:
    values: dict[str, Any] = {
        "epoch": step,
        "epoch_complete": True,
        "manifest": SHA["a"],
        "state_digest": SHA["b"],
        "bytes": 7,
    }
    return CheckpointEntry(step=step, **{**values, **fields})


FULL = Head(
    fingerprint=RUN,
    holder=Holder(id="x", host="h/m", boot="b/n", pid=12, started=3.25, run="run-1"),
    token=4,
    heartbeat=9,
    checkpoints=(
        entry(1, payload="pruned", reason="keep_last 1"),
        entry(2, evaluations={"key": RecordedEvaluation(SHA["c"], {"held_out/loss": 0.1})}),
    ),
    end=RunEnd("early_stop", epoch=2, step=2),
)


def manifest(**fields: Any) -> Manifest:
    files = {"model": StoredFile(SHA["a"], 10, state=True), "config.json": StoredFile(SHA["b"], 5)}
    records = {"ledger.json": StoredFile(SHA["c"], 3), "steps.jsonl": StoredFile(SHA["d"], 4)}
    values: dict[str, Any] = {
        "fingerprint": RUN,
        "recipe": "supervised",
        "identity": {"version": 1},
        "environment": {"torch": "2.13"},
        "base": {"reference": "m", "digest": SHA["e"], "revision": ""},
        "serving": {"weight_dtype": "float32"},
        "token": 4,
        "epoch": 2,
        "global_step": 6,
        "steps_into_epoch": 3,
        "epoch_complete": True,
        "parent": SHA["f"],
        "files": files,
        "records": records,
        "metrics": {"loss": 0.25},
        "state_digest": state_digest(files, SHA["c"], (2, 6, 3)),
    }
    return Manifest(**{**values, **fields})


def changed(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    value = json.loads(data)
    change(value)
    return canonical_json(value)


# Heads


@pytest.mark.parametrize("head", [Head(RUN), FULL], ids=["empty", "full"])
def test_a_head_is_read_back_as_it_was_written(head: Head) -> None:
    assert decode_head(encode_head(head), KEY) == head


def test_a_head_as_stored() -> None:
    assert encode_head(Head(RUN, token=2)) == (
        b'{"checkpoints":[],"end":null,"fingerprint":"' + RUN.encode() + b'","format":1,"heartbeat":0,'
        b'"holder":null,"token":2}'
    )


def test_an_unknown_format_of_a_head_asks_for_an_upgrade() -> None:
    data = changed(encode_head(FULL), lambda value: value.update(format=2))
    with pytest.raises(
        CheckpointError, match=rf"^{KEY}: has format 2, this version reads 1\n  fix: upgrade crucible-kitchen$"
    ):
        decode_head(data, KEY)


BROKEN_HEADS: dict[str, bytes] = {
    "nothing": b"",
    "cut off": encode_head(FULL)[:-20],
    "not UTF-8": b'{"format":1,"x":"\xff"}',
    "a list": b"[]",
    "a number": b"1",
    "no format": changed(encode_head(FULL), lambda value: value.pop("format")),
    "a field too many": changed(encode_head(FULL), lambda value: value.update(owner="me")),
    "a field too few": changed(encode_head(FULL), lambda value: value.pop("checkpoints")),
    "an entry cut": changed(encode_head(FULL), lambda value: value["checkpoints"][0].pop("manifest")),
    "entries that are none": changed(encode_head(FULL), lambda value: value.update(checkpoints=["x"])),
    "a holder that is none": changed(encode_head(FULL), lambda value: value.update(holder="me")),
}


@pytest.mark.parametrize("data", BROKEN_HEADS.values(), ids=BROKEN_HEADS)
def test_what_is_no_head_is_refused_by_its_key(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=rf"^{KEY}: is not a run's head: .*\n  fix: restore the object"):
        decode_head(data, KEY)


def test_the_head_of_another_run_is_refused() -> None:
    # A copy of it would send the lease's swaps to the other run's object.
    other = head_key("b2" * 32)
    with pytest.raises(CheckpointError, match=rf"^{other}: is the head of run {RUN[:12]}"):
        decode_head(encode_head(FULL), other)


def test_entries_are_by_step_the_later_of_two_and_no_quarantined_ones() -> None:
    first, again = entry(3, state_digest=SHA["c"]), entry(3, state_digest=SHA["d"])
    head = Head(RUN, checkpoints=(entry(6, payload="pruned"), first, entry(9, payload="quarantined"), again))
    assert head.entries() == [again, entry(6, payload="pruned")]
    assert head.at(3) == again
    assert head.at(9) is None


def test_the_last_epoch_is_the_newest_complete_one_that_exists() -> None:
    entries = (
        entry(3, epoch=1),
        entry(6, epoch=2, payload="pruned"),
        entry(7, epoch=3, epoch_complete=False),
        entry(9, epoch=3, payload="quarantined"),
    )
    assert Head(RUN, checkpoints=entries).last_epoch() == 2
    assert Head(RUN, checkpoints=entries[2:]).last_epoch() == 0


def test_changing_an_entry_changes_the_one_that_exists_and_no_other() -> None:
    quarantined, present, other = entry(3, payload="quarantined"), entry(3), entry(6)
    head = Head(RUN, checkpoints=(quarantined, present, other)).with_entry(3, payload="pruned", reason="why")
    assert head.checkpoints == (quarantined, replace(present, payload="pruned", reason="why"), other)
    with pytest.raises(CheckpointError, match=f"run {RUN[:12]} has no checkpoint at step 4"):
        head.with_entry(4, payload="pruned")


# Manifests


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    assert decode_manifest(encode_manifest(manifest()), "m") == manifest()


def test_a_manifest_has_one_form_whatever_the_order_of_its_parts() -> None:
    turned = manifest(files=dict(reversed(manifest().files.items())), base=dict(reversed(manifest().base.items())))
    assert encode_manifest(turned) == encode_manifest(manifest())


def test_the_state_digest_is_over_state_files_ledger_and_cursor_only() -> None:
    files = {"model": StoredFile(SHA["a"], 10, state=True), "config.json": StoredFile(SHA["b"], 5)}
    digest = state_digest(files, SHA["c"], (2, 6, 3))
    # Written out, so that it can't move unnoticed: every stored manifest is checked against it.
    text = f'{{"cursor":[2,6,3],"files":{{"model":"{SHA["a"]}"}},"ledger":"{SHA["c"]}"}}'
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    same = {**files, "config.json": StoredFile(SHA["d"], 6), "model": StoredFile(SHA["a"], 11, state=True)}
    assert state_digest(same, SHA["c"], (2, 6, 3)) == digest
    others = [
        state_digest({**files, "model": StoredFile(SHA["b"], 10, state=True)}, SHA["c"], (2, 6, 3)),
        state_digest({"weights": files["model"]}, SHA["c"], (2, 6, 3)),
        state_digest({**files, "config.json": StoredFile(SHA["b"], 5, state=True)}, SHA["c"], (2, 6, 3)),
        state_digest(files, SHA["d"], (2, 6, 3)),
        state_digest(files, SHA["c"], (2, 7, 3)),
        state_digest(files, SHA["c"], (3, 6, 2)),
    ]
    assert len({digest, *others}) == 7


def test_an_unknown_format_of_a_manifest_asks_for_an_upgrade() -> None:
    data = changed(encode_manifest(manifest()), lambda value: value.update(format=7))
    with pytest.raises(
        CheckpointError, match=r"^m: has format 7, this version reads up to 2\n  fix: upgrade crucible-kitchen$"
    ):
        decode_manifest(data, "m")


TAMPERED: dict[str, Callable[[dict[str, Any]], object]] = {
    "digest": lambda value: value.update(state_digest=SHA["e"]),
    "weights": lambda value: value["files"]["model"].update(sha256=SHA["e"]),
    "weights no state": lambda value: value["files"]["model"].update(state=False),
    "a file renamed": lambda value: value["files"].update(other=value["files"].pop("model")),
    "ledger": lambda value: value["records"]["ledger.json"].update(sha256=SHA["e"]),
    "step": lambda value: value.update(global_step=7),
    "epoch": lambda value: value.update(epoch=3),
    "steps into the epoch": lambda value: value.update(steps_into_epoch=2),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_a_manifest_whose_state_digest_does_not_follow_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(CheckpointError, match=r"^m: its state digest doesn't follow from its files$"):
        decode_manifest(changed(encode_manifest(manifest()), change), "m")


BROKEN_MANIFESTS: dict[str, bytes] = {
    "nothing": b"",
    "cut off": encode_manifest(manifest())[:-9],
    "a list": b"[]",
    "no ledger": changed(encode_manifest(manifest()), lambda value: value["records"].pop("ledger.json")),
    "no files": changed(encode_manifest(manifest()), lambda value: value.pop("files")),
    "a field too many": changed(encode_manifest(manifest()), lambda value: value.update(extra=1)),
    "a digest that leads away": changed(
        encode_manifest(manifest()), lambda value: value["files"]["config.json"].update(sha256="../../head.json")
    ),
    "a digest in capitals": changed(
        encode_manifest(manifest()), lambda value: value["records"]["steps.jsonl"].update(sha256="A" * 64)
    ),
    "a size that is none": changed(
        encode_manifest(manifest()), lambda value: value["files"]["config.json"].update(size="5")
    ),
    "a size below zero": changed(
        encode_manifest(manifest()), lambda value: value["files"]["config.json"].update(size=-1)
    ),
    "a token that is none": changed(encode_manifest(manifest()), lambda value: value.update(token="../4")),
}


@pytest.mark.parametrize("data", BROKEN_MANIFESTS.values(), ids=BROKEN_MANIFESTS)
def test_what_is_no_manifest_is_refused_by_its_key(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^m: is not a checkpoint's manifest: "):
        decode_manifest(data, "m")
