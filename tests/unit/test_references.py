"""Values between the steps of a graph: JSON in the store, by run and step, and nothing else."""

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from kitchen_assets.references import EpochReferences, epoch_references
from kitchen_assets.tags import ERROR, MENDABLE
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.blobs.resource import BlobsResource, MemoryStore, open_store
from kitchen_resources.errors import BlobError

FAILING: set[int] = set()
SEEN: list[list[int]] = []


@dg.op(out=dg.DynamicOut(int, io_manager_key="epoch_references"))
def plan() -> Iterator[dg.DynamicOutput[int]]:
    for number in (1, 2, 3):
        yield dg.DynamicOutput(number, mapping_key=f"epoch_{number:04d}")


@dg.op(out=dg.Out(dg.Any, io_manager_key="epoch_references"))
def turn(number: int) -> Any:
    if number in FAILING:
        raise RuntimeError("killed")
    return {"steps": number * 10}


@dg.op
def finish(turns: list[Any]) -> None:
    SEEN.append(sorted(item["steps"] for item in turns))


@dg.graph
def epochs() -> None:
    finish(plan().map(turn).collect())


STORE = "the store of the tests of references"


def job() -> dg.JobDefinition:
    blobs = BlobsResource(store=MemoryStore(name=STORE))
    return epochs.to_job(
        resource_defs={"blobs": blobs, "epoch_references": epoch_references},
        executor_def=dg.in_process_executor,
        config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )


def execute(instance: dg.DagsterInstance, failed: str = "") -> dg.JobExecutionResult:
    options = dg.ReexecutionOptions.from_failure(failed, instance) if failed else None
    return dg.execute_job(dg.reconstructable(job), instance, reexecution_options=options)


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture(autouse=True)
def afresh() -> None:
    FAILING.clear()
    SEEN.clear()


@pytest.fixture
def blobs() -> BlobStore:
    return open_store(f"memory://{STORE}")


def stored(blobs: BlobStore, run_id: str) -> dict[str, Any]:
    prefix = f"launches/{run_id}/io/"
    found = {}
    for key in blobs.list(prefix):
        value = blobs.get(key)
        assert value is not None
        found[key.removeprefix(prefix)] = json.loads(value.data)
    return found


def test_outputs_of_every_epoch_lie_in_the_store(instance: dg.DagsterInstance, blobs: BlobStore) -> None:
    result = execute(instance)
    assert SEEN == [[10, 20, 30]]
    assert stored(blobs, result.run_id) == {
        "plan/result/epoch_0001.json": 1,
        "plan/result/epoch_0002.json": 2,
        "plan/result/epoch_0003.json": 3,
        "turn_epoch_0001_/result.json": {"steps": 10},
        "turn_epoch_0002_/result.json": {"steps": 20},
        "turn_epoch_0003_/result.json": {"steps": 30},
    }
    assert all(key.startswith(f"launches/{result.run_id}/io/") for key in blobs.list(""))


def test_a_re_execution_reads_what_the_run_before_it_left(instance: dg.DagsterInstance, blobs: BlobStore) -> None:
    FAILING.add(2)
    failed = execute(instance)
    assert not failed.success
    assert SEEN == []
    FAILING.clear()
    again = execute(instance, failed=failed.run_id)
    assert again.success
    assert SEEN == [[10, 20, 30]]
    # Only the epoch that failed was made anew.
    assert stored(blobs, again.run_id) == {"turn_epoch_0002_/result.json": {"steps": 20}}


def contexts(run_id: str, step: str = "turn", mapping_key: str | None = None) -> tuple[Any, Any]:
    out = dg.build_output_context(step_key=step, name="result", run_id=run_id, mapping_key=mapping_key)
    return out, dg.build_input_context(upstream_output=out)


def test_a_step_that_is_executed_again_writes_its_value_anew() -> None:
    references = EpochReferences(MemoryBlobs())
    out, into = contexts("run")
    for value in (1, 1, {"steps": 2}, None, [1.5, "ü"]):
        references.handle_output(out, value)
        assert references.load_input(into) == value


def test_a_racing_write_is_not_lost_in_silence() -> None:
    # Another process writes between the look and the swap, once: the value of the one that comes last stays.
    class Raced(MemoryBlobs):
        races = 1

        def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> str | None:
            if self.races:
                self.races -= 1
                MemoryBlobs.compare_and_swap(self, key, expected, b'"theirs"')
            return super().compare_and_swap(key, expected, data)

    references = EpochReferences(Raced())
    out, into = contexts("run")
    references.handle_output(out, "ours")
    assert references.load_input(into) == "ours"


def tags_of(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return {name: value for name, value in run.tags.items() if name in (ERROR, MENDABLE)}


def failure_of(result: dg.JobExecutionResult) -> str:
    """What the step that failed says, with its causes."""
    (event,) = [event for event in result.all_events if event.is_step_failure]
    error, said = event.step_failure_data.error, ""
    while error is not None:
        said, error = said + error.message, error.cause
    return said


def test_a_value_that_is_gone_is_named(instance: dg.DagsterInstance, blobs: BlobStore) -> None:
    FAILING.add(2)
    failed = execute(instance)
    FAILING.clear()
    key = f"launches/{failed.run_id}/io/plan/result/epoch_0002.json"
    assert blobs.delete(key)
    again = execute(instance, failed=failed.run_id)
    said = f"BlobError: {key}: the value that a step left for the next one is gone\n  fix: launch again"
    assert said in failure_of(again)
    assert tags_of(instance, again.run_id) == {ERROR: "BlobError", MENDABLE: "false"}


@pytest.mark.parametrize("verb", ["get", "compare_and_swap"])
def test_a_store_that_is_away_is_what_a_repeat_can_mend(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def away(*args: Any) -> Any:
        raise BlobError("the store is away", retriable=True)

    monkeypatch.setattr(MemoryBlobs, verb, away)
    result = execute(instance)
    assert "BlobError: the store is away" in failure_of(result)
    assert tags_of(instance, result.run_id) == {ERROR: "BlobError", MENDABLE: "true"}


@pytest.mark.parametrize("value", [object(), float("nan"), {1: 2}, b"pickled"])
def test_only_json_is_kept(value: Any) -> None:
    blobs = MemoryBlobs()
    with pytest.raises(ValueError, match="JSON"):
        EpochReferences(blobs).handle_output(contexts("run")[0], value)
    assert list(blobs.list("")) == []
