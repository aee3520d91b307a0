"""What a run says of itself for a sensor that may run it again, and what such an attempt refuses to train."""

from typing import Any

import dagster as dg
import pytest

import kitchen_assets as kitchen
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.resource import BlobsResource, LocalStore
from kitchen_resources.errors import BlobError, ConfigError
from kitchen_resources.recipes.supervised import SupervisedRecipe
from tests.workflows.conftest import SMALL, Bench

pytestmark = pytest.mark.full

NOOP: dict[str, Any] = {"trainer": {"backend": {"noop": {}}}}


def newest_run(bench: Bench) -> dg.DagsterRun:
    return bench.instance.get_runs(limit=1)[0]


@pytest.mark.parametrize("key", ["/started-supervised", "/preflight.json", "/run.json", "/stopped-supervised"])
def test_a_store_that_is_away_at_any_moment_of_a_launch_is_told_as_such(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    def when_away(real: Any) -> Any:
        def put(self: LocalBlobs, name: str, *given: Any) -> Any:
            if name.endswith(key):
                raise BlobError("the store is away", retriable=True)
            return real(self, name, *given)

        return put

    with monkeypatch.context() as away:
        for verb in ("put_if_absent", "compare_and_swap"):
            away.setattr(LocalBlobs, verb, when_away(getattr(LocalBlobs, verb)))
        with pytest.raises(BlobError, match="the store is away"):
            bench.run(**NOOP)
    run = newest_run(bench)
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert (run.tags["kitchen/error"], run.tags["kitchen/mendable"]) == ("BlobError", "true")
    assert "kitchen/refused" not in run.tags
    assert bench.run(**NOOP).epochs == 3


def test_what_stops_a_stage_is_told_although_its_end_can_not_be_noted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LocalBlobs.put_if_absent

    def away(self: LocalBlobs, key: str, data: bytes) -> bool:
        if key.endswith("/stopped-supervised"):
            raise BlobError("the store is away", retriable=True)
        return real(self, key, data)

    monkeypatch.setattr(LocalBlobs, "put_if_absent", away)
    with pytest.raises(ConfigError, match="epochs: must be at least 1"):
        bench.run({"epochs": 0}, **NOOP)
    tags = newest_run(bench).tags
    assert (tags["kitchen/refused"], tags["kitchen/mendable"]) == ("ConfigError", "false")


def test_an_attempt_goes_on_with_the_run_that_failed_and_trains_nothing_else(bench: Bench) -> None:
    first = bench.run({"epochs": 1}, **NOOP)
    given = (
        "supervised",
        {**SMALL, "epochs": 1},
        bench.resources(**NOOP),
    )
    again = kitchen.run(*given, instance=bench.instance, tags={"kitchen/expected": first.fingerprint})
    assert again.fingerprint == first.fingerprint
    # As where the recipe's file, the rows or the model were changed since.
    with pytest.raises(ConfigError) as refused:
        kitchen.run(*given, instance=bench.instance, tags={"kitchen/expected": "ab" * 32})
    assert str(refused.value) == (
        f"recipe supervised: it was to go on with run abababababab, and what it would train is "
        f"{first.fingerprint[:12]}: the recipe, the base model, the data or the kitchen has changed since\n"
        "  fix: launch the recipe, which trains it as it is now"
    )
    tags = newest_run(bench).tags
    assert tags["kitchen/refused"] == "ConfigError"
    assert "kitchen/fingerprint" not in tags
    assert bench.checkpoints.find("") == [first.fingerprint]


def test_a_run_that_was_given_objects_says_so(bench: Bench) -> None:
    store = BlobsResource(store=LocalStore(path=str(bench.root)))
    recipe = SupervisedRecipe(model="embedded:tiny", dataset="embedded:dates", max_rows=40, epochs=1)
    others = {name: value for name, value in bench.resources(**NOOP).items() if name != "blobs"}
    kitchen.run(recipe, None, {**others, "blobs": store}, instance=bench.instance)
    assert newest_run(bench).tags["kitchen/in_process"] == "the recipe object supervised, blobs"
    bench.run({"epochs": 1}, **NOOP)
    assert "kitchen/in_process" not in newest_run(bench).tags
