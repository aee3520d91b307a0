"""The rule for promotion by intervals, going back to what was in production, and the sensor that asks for promotion."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import kitchen_assets as kitchen
from kitchen_assets.kitchen import Kitchen
from kitchen_assets.promoting import due
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.blobs.resource import BlobsResource, LocalStore
from kitchen_resources.errors import RegistryError
from kitchen_resources.recipes.blocks import PromotionRule
from kitchen_resources.registry.port import CANDIDATE, PREVIOUS, PRODUCTION, ModelVersion
from kitchen_resources.registry.promotion import judge
from kitchen_resources.registry.store import StoreRegistry
from tests.registrations import model_files, registration

MATCH, LOSS = "held_out/exact_match", "held_out/loss"


def version(metric: str, found: tuple[float, float | None, float | None], base: Any = None) -> ModelVersion:
    """A version with a measure and that of its base, each as value and interval."""

    def measure(values: tuple[float, float | None, float | None]) -> dict[str, Any]:
        return {"value": values[0], "n": 40, "low": values[1], "high": values[2]}

    of_base = {metric: measure(base)} if base else {}
    whole = registration(metrics={metric: measure(found)}, base_metrics=of_base)
    return ModelVersion(**vars(whole), version=2, created=1.0)


@pytest.mark.parametrize(
    ("rule", "metric", "found", "base", "passed", "reason"),
    [
        (
            {},
            MATCH,
            (0.8, 0.7, 0.9),
            (0.5, 0.4, 0.6),
            True,
            "is 0.8 (at least 0.7), better than 0.5 (at most 0.6) of",
        ),
        (
            {},
            MATCH,
            (0.7, 0.55, 0.8),
            (0.5, 0.4, 0.6),
            False,
            "is 0.7 (at least 0.55), no better than 0.5 (at most 0.6)",
        ),
        ({}, LOSS, (1.0, 0.9, 1.1), (2.0, 1.2, 2.8), True, "is 1 (at most 1.1), better than 2 (at least 1.2)"),
        ({}, LOSS, (1.0, 0.9, 1.3), (2.0, 1.2, 2.8), False, "is 1 (at most 1.3), no better than 2 (at least 1.2)"),
        ({"minimum": 0.75}, MATCH, (0.8, 0.7, 0.9), None, False, "is 0.8 (at least 0.7), the bound is 0.75"),
        ({}, MATCH, (0.8, None, None), (0.5, 0.4, 0.6), False, "is 0.8 on 40 rows, too few for an interval"),
        ({}, MATCH, (0.8, 0.7, 0.9), (0.5, None, None), False, "of the base is 0.5 on 40 rows, too few"),
    ],
)
def test_intervals_must_keep_apart(
    rule: dict[str, Any], metric: str, found: Any, base: Any, passed: bool, reason: str
) -> None:
    verdict = judge(PromotionRule(metric=metric, by="interval", **rule), version(metric, found, base), None)
    assert verdict.passed is passed
    assert reason in verdict.reason
    assert verdict.numbers["by"] == "interval"


def test_values_alone_would_have_passed() -> None:
    close = version(MATCH, (0.7, 0.55, 0.8), (0.5, 0.4, 0.6))
    assert judge(PromotionRule(metric=MATCH), close, None).passed
    assert not judge(PromotionRule(metric=MATCH, by="interval"), close, None).passed


# Going back.


def versions(registry: StoreRegistry, count: int) -> None:
    for number in range(1, count + 1):
        registry.register(registration(name="words", model=model_files(f"{number:064x}")))


def test_production_goes_back_to_what_was_there_before_and_forth_again() -> None:
    registry = StoreRegistry(MemoryBlobs())
    versions(registry, 3)
    with pytest.raises(RegistryError, match="has nothing in production"):
        kitchen.rollback("words", registry=registry)
    registry.move_alias("words", PRODUCTION, 1, expected=None)
    with pytest.raises(RegistryError, match="has nothing to go back to from version 1"):
        kitchen.rollback("words", registry=registry)
    registry.move_alias("words", PRODUCTION, 3, expected=1)
    assert registry.alias("words", PREVIOUS) == 1
    moved = kitchen.rollback("words", registry=registry)
    assert str(moved) == "version 1 of words is in production, and no longer version 3"
    assert (registry.alias("words", PRODUCTION), registry.alias("words", PREVIOUS)) == (1, 3)
    assert kitchen.rollback("words", registry=registry).version == 3


def test_production_goes_back_to_a_version_that_is_named() -> None:
    registry = StoreRegistry(MemoryBlobs())
    versions(registry, 3)
    registry.move_alias("words", PRODUCTION, 3, expected=None)
    assert kitchen.rollback("words", to=2, registry=registry).before == 3
    with pytest.raises(RegistryError, match="has no version 9"):
        kitchen.rollback("words", to=9, registry=registry)
    assert registry.alias("words", PRODUCTION) == 2


def test_other_aliases_leave_no_trace() -> None:
    registry = StoreRegistry(MemoryBlobs())
    versions(registry, 2)
    registry.move_alias("words", CANDIDATE, 1, expected=None)
    registry.move_alias("words", CANDIDATE, 2, expected=1)
    assert registry.alias("words", PREVIOUS) is None


RECIPE = "extends: supervised\npromotion: {automatic: true}\n"


@pytest.fixture
def location(tmp_path: Path) -> tuple[dg.Definitions, StoreRegistry]:
    """A location with a recipe `words` that asks for promotion, and its registry."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "words.yaml").write_text(RECIPE)
    blobs = BlobsResource(store=LocalStore(path=str(tmp_path / "store")))
    defs = Kitchen(tmp_path / "recipes", {"blobs": blobs}).definitions()
    return defs, StoreRegistry(LocalBlobs(tmp_path / "store"))


def test_the_job_goes_back_and_lineage_shows_it(location: tuple[dg.Definitions, StoreRegistry]) -> None:
    defs, registry = location
    versions(registry, 2)
    registry.move_alias("words", PRODUCTION, 1, expected=None)
    registry.move_alias("words", PRODUCTION, 2, expected=1)
    config = {"ops": {"roll_back_production": {"config": {"model": "words"}}}}
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_job_def("production_rollback")
        assert job.execute_in_process(run_config=config, instance=instance).success
        event = instance.get_latest_materialization_event(dg.AssetKey(["words", "production"]))
    assert event is not None
    made = event.asset_materialization
    assert made is not None
    assert {name: value.value for name, value in made.metadata.items()} == {
        "version": 1,
        "before": 2,
        "reason": "rolled back",
    }
    assert registry.alias("words", PRODUCTION) == 1


# Asking.


def test_what_is_due() -> None:
    assert due(3, None, None)
    assert due(3, 2, 2)
    assert not due(None, 2, None)
    assert not due(3, 3, None), "it is in production"
    assert not due(3, 2, 3), "it was asked about, and refused or taken back"


def test_each_new_candidate_is_asked_about_once(location: tuple[dg.Definitions, StoreRegistry]) -> None:
    defs, registry = location
    sensor = defs.resolve_sensor_def("promote_candidates")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    resources = defs.resources or {}
    cursor = None

    def look() -> list[tuple[str | None, str | None]]:
        nonlocal cursor
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(
                instance=instance, cursor=cursor, resources={key: resources[key] for key in ("blobs", "registry")}
            )
            found = sensor.evaluate_tick(context)
        cursor = found.cursor
        return [(request.job_name, request.run_key) for request in found.run_requests or []]

    assert look() == []
    versions(registry, 2)
    registry.move_alias("words", CANDIDATE, 1, expected=None)
    assert look() == [("words_promote", "words-promote-1")]
    assert look() == []
    registry.move_alias("words", CANDIDATE, 2, expected=1)
    registry.move_alias("words", PRODUCTION, 1, expected=None)
    assert look() == [("words_promote", "words-promote-2")]
    assert look() == []


def test_a_location_where_nobody_asks_has_no_such_sensor(tmp_path: Path) -> None:
    (tmp_path / "words.yaml").write_text("extends: supervised\n")
    defs = Kitchen(tmp_path).definitions()
    assert "promote_candidates" not in {sensor.name for sensor in defs.sensors or []}
