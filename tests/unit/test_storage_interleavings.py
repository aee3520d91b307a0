"""A writer and collections at once: in every order, what the writer was told is stored is there afterwards."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kitchen_resources.blobs import content as content_module
from kitchen_resources.blobs import garbage
from kitchen_resources.blobs.content import ContentStore, content_key
from kitchen_resources.blobs.garbage import Marker, claimed, marked, put_marker, spared
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.checkpoints.head import Holder
from kitchen_resources.checkpoints.holder import this_holder
from kitchen_resources.digests import digest_bytes
from kitchen_resources.storage.collection import collect
from tests.interleavings import Found, Turns, all_orders, local

pytestmark = pytest.mark.full

NOW = 1_800_000_000.0
DAY = 24 * 3600.0
DATA = b"what is stored"
SHA256 = digest_bytes(DATA)
ROOT = "prepared/one.json"

DEAD = this_holder("collection")
"""A collection of this process that is over."""

STATES: Mapping[str, tuple[bytes | None, Marker | None]] = {
    "not there": (None, None),
    "there": (DATA, None),
    "damaged": (b"what is stOred", None),
    "marked long ago": (DATA, marked(NOW - 2 * DAY, ())),
    "marked now": (DATA, marked(NOW - 60, ())),
    "damaged and marked long ago": (b"what is stOred", marked(NOW - 2 * DAY, ())),
    "spared": (DATA, spared(NOW - 2 * DAY)),
    "marked and gone": (None, marked(NOW - 2 * DAY, ())),
    "claimed by a dead collection": (DATA, claimed(NOW - 60, DEAD)),
    "claimed by a dead collection and deleted": (None, claimed(NOW - 60, DEAD)),
}


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, times and waits follow from the order alone."""
    monkeypatch.setattr(garbage, "uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=_number())))
    monkeypatch.setattr(garbage, "time", SimpleNamespace(time=lambda: NOW))
    monkeypatch.setattr(garbage, "_pause", lambda seconds: local.actor.pause())
    monkeypatch.setattr(garbage, "this_holder", _holder)


def _number() -> str:
    actor = local.actor
    actor.numbers = getattr(actor, "numbers", None) or itertools.count()
    return f"{actor.name}-{next(actor.numbers)}"


def _holder(run: str) -> Holder:
    return Holder(**{**vars(DEAD), "id": f"collection of {local.actor.name}"})


def world(state: str) -> Callable[[], MemoryBlobs]:
    data, marker = STATES[state]

    def make() -> MemoryBlobs:
        blobs = MemoryBlobs()
        if data is not None:
            blobs.put_if_absent(content_key(SHA256), data)
        if marker is not None:
            put_marker(blobs, SHA256, marker)
        return blobs

    return make


def put(blobs: Turns) -> str:
    """Store content and name it."""
    sha256 = ContentStore(blobs).put(DATA)  # type: ignore[arg-type]
    blobs.put_if_absent(ROOT, b'"%s"' % sha256.encode())
    return sha256


def put_unnamed(blobs: Turns) -> str:
    """Store content, and go on to name it later."""
    return ContentStore(blobs).put(DATA)  # type: ignore[arg-type]


def collection(blobs: Turns) -> Any:
    return collect(
        blobs,  # type: ignore[arg-type]
        grace_s=DAY,
        launch_age_s=30 * DAY,
        clock=lambda: NOW,
    )


def is_relevant(key: str) -> bool:
    """The actors share the blob, its marker, and what names it."""
    return key == "" or key.startswith(("blobs/", "garbage/", "prepared/"))


def lost(blobs: MemoryBlobs, told: Mapping[str, Any]) -> str | None:
    """What is wrong at the end."""
    for name, result in told.items():
        if isinstance(result, Exception):
            return f"{name}: {result!r}"
    if told.get("writer") not in (None, SHA256):
        return f"told {told['writer']}"
    stored = blobs.get(content_key(SHA256))
    if "writer" in told and (stored is None or stored.data != DATA):
        return "lost"
    return None


def is_fought_over(key: str) -> bool:
    """The blob and its marker, which is all that matters where nobody names anything."""
    return key.startswith(("blobs/", "garbage/"))


def search(state: str, relevant: Callable[[str], bool] = is_relevant, **actors: Callable[[Turns], Any]) -> Found:
    return all_orders(world(state), actors, lost, relevant)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("writer", [put, put_unnamed])
def test_what_a_writer_was_told_is_stored_survives_a_collection_at_the_same_time(
    state: str, writer: Callable[[Turns], str]
) -> None:
    found = search(state, writer=writer, collection=collection)
    assert found.failures == []
    assert found.ends > 1


@pytest.mark.parametrize("state", ["there", "marked long ago", "claimed by a dead collection", "marked and gone"])
def test_and_two_collections(state: str) -> None:
    found = search(state, is_fought_over, writer=put_unnamed, collection=collection, other=collection)
    assert found.failures == []
    assert found.ends > 3


@pytest.mark.full
@pytest.mark.parametrize("state", ["marked long ago", "claimed by a dead collection"])
def test_and_another_writer(state: str) -> None:
    found = search(state, is_fought_over, writer=put_unnamed, collection=collection, other=put_unnamed)
    assert found.failures == []
    assert found.ends > 3


@pytest.mark.parametrize("state", STATES)
def test_a_file_is_stored_as_bytes_are(state: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(DATA)

    def writer(blobs: Turns) -> str:
        return ContentStore(blobs).put_file(file).sha256  # type: ignore[arg-type]

    found = search(state, writer=writer, collection=collection)
    assert found.failures == []


@pytest.mark.parametrize("state", STATES)
def test_what_was_named_is_still_there_when_everything_that_was_marked_is_due(state: str) -> None:
    def check(blobs: MemoryBlobs, told: Mapping[str, Any]) -> str | None:
        local.actor = SimpleNamespace(name="later")
        for days in (2, 4, 6):
            collect(blobs, grace_s=DAY, launch_age_s=30 * DAY, clock=lambda days=days: NOW + days * DAY)
        if list(blobs.list("garbage/")):
            return "a marker is left"
        return lost(blobs, told)

    found = all_orders(world(state), {"writer": put, "collection": collection}, check, is_relevant)
    assert found.failures == []


def test_of_two_collections_one_deletes() -> None:
    def check(blobs: MemoryBlobs, told: Mapping[str, Any]) -> str | None:
        counts = sorted(len(result.deleted) for result in told.values())
        return None if counts == [0, 1] and list(blobs.list("")) == [] else f"{counts} {list(blobs.list(''))}"

    actors = {"one": collection, "two": collection}
    found = all_orders(world("marked long ago"), actors, check, is_relevant)
    # The slower of the two may have listed the blob before it was deleted, and mark it anew: the next one sees to that.
    assert {said for said, _ in found.failures} <= {f"[0, 1] ['garbage/{SHA256}']"}
    assert found.ends > 5


def test_without_the_look_at_the_marker_the_search_finds_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "spare", lambda blobs, sha256: None)
    found = search("marked long ago", writer=put_unnamed, collection=collection)
    assert {said for said, _ in found.failures} == {"lost"}


def test_with_the_look_after_the_blob_the_search_finds_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "spare", lambda blobs, sha256: None)

    def late(blobs: Turns) -> str:
        sha256 = ContentStore(blobs).put(DATA)  # type: ignore[arg-type]
        garbage.spare(blobs, sha256)  # type: ignore[arg-type]
        return sha256

    found = search("marked long ago", writer=late, collection=collection)
    assert {said for said, _ in found.failures} == {"lost"}


def test_a_claim_taken_without_a_swap_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from kitchen_resources.storage import collection as collection_module

    monkeypatch.setattr(collection_module, "swap_marker", lambda *args: True)
    found = search("marked long ago", writer=put_unnamed, collection=collection)
    assert {said for said, _ in found.failures} == {"lost"}
