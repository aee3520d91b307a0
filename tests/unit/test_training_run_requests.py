"""What a finished run asks of its store when it is run again: its head and small records, and no payload."""

from collections import Counter

from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.checkpoints.head import head_key
from kitchen_resources.checkpoints.manifest import LEDGER_FILE
from tests.engine import Engine
from tests.faulty_blobs import FaultyBlobs


def test_whether_a_run_is_finished_costs_one_read_of_its_head_and_the_end_of_it_no_payload() -> None:
    asked: list[tuple[str, str]] = []
    engine = Engine(blobs=FaultyBlobs(MemoryBlobs(), before=lambda verb, key: asked.append((verb, key))))
    head = engine.finish().head
    run = engine.run()
    _ = run.fingerprint
    asked.clear()

    assert run.planned().missing == ()
    of_run = [(verb, key) for verb, key in asked if not key.startswith(("launches/", "recipes/"))]
    assert of_run == [("get", head_key(head.fingerprint))]
    asked.clear()

    assert sum(run.ensure(epoch) for epoch in (1, 2, 3)) == 0
    assert {key for _, key in asked if not key.startswith("launches/")} == {head_key(head.fingerprint)}
    asked.clear()

    assert run.finish().steps_done == 0
    verbs = Counter(verb for verb, _ in asked)
    assert set(verbs) == {"get", "list"}
    assert [key for verb, key in asked if verb == "list"] == ["registry/"]
    manifests = [entry.manifest for entry in head.entries()]
    ledgers = [engine.store.manifest(entry).records[LEDGER_FILE].sha256 for entry in head.entries()]
    read = {key.rpartition("/")[2] for _, key in asked if key.startswith("blobs/")}
    assert read <= {*manifests, *ledgers}
