"""Evaluating one checkpoint of a run that is over, as its own job does."""

from typing import Any

import dagster as dg
import pytest

from kitchen_assets.kitchen import built_in
from kitchen_resources.errors import CheckpointError
from tests.workflows.conftest import SMALL, Bench

pytestmark = pytest.mark.heavy


def evaluate(bench: Bench, checkpoint: str, **recipe: Any) -> dg.ExecuteInProcessResult:
    """Run the job on a checkpoint, with the config of a run on few rows."""
    config = {
        "resources": {
            "supervised": {"config": {**SMALL, **recipe}},
            **{name: {"config": value} for name, value in bench.resources().items()},
        },
        "ops": {"supervised__evaluate_checkpoint": {"config": {"checkpoint": checkpoint}}},
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }
    job = built_in().definitions().resolve_job_def("supervised_evaluate_checkpoint")
    return job.execute_in_process(run_config=config, instance=bench.instance, raise_on_error=False)


def said(result: dg.ExecuteInProcessResult) -> str:
    """What the failed step said."""
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    return str(failure.step_failure_data.user_failure_data.description)


@pytest.mark.full
def test_a_checkpoint_is_measured_once_and_shown_in_its_partition(bench: Bench) -> None:
    run = bench.run({"epochs": 2, "keep_last": 2})
    head = bench.checkpoints.head(run.fingerprint)
    # Of the model, which is the second epoch, the run itself has measured the loss.
    assert [len(entry.evaluations) for entry in head.entries()] == [0, 1]
    checkpoint = f"{run.fingerprint[:12]}/000000013"
    key = dg.AssetKey(["supervised", "checkpoint_evaluation"])
    assert bench.instance.get_materialized_partitions(key) == {f"{run.fingerprint[:12]}/000000026"}
    assert evaluate(bench, checkpoint, epochs=2, keep_last=2).success
    first, second = bench.checkpoints.head(run.fingerprint).entries()
    assert second == head.entries()[1]
    (recorded,) = first.evaluations.values()
    assert set(recorded.metrics) == {"held_out/loss", "held_out/perplexity"}
    assert recorded.metrics["held_out/loss"] > next(iter(second.evaluations.values())).metrics["held_out/loss"] > 0

    assert bench.instance.get_materialized_partitions(key) == {checkpoint, f"{run.fingerprint[:12]}/000000026"}
    events = bench.instance.fetch_materializations(dg.AssetRecordsFilter(key, asset_partitions=[checkpoint]), limit=9)
    (event,) = events.records
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["held_out/loss"].value == recorded.metrics["held_out/loss"]
    assert (metadata["epoch"].value, metadata["step"].value) == (1, 13)

    assert evaluate(bench, checkpoint, epochs=2, keep_last=2).success
    assert bench.checkpoints.head(run.fingerprint).entries()[0] == first

    # Another run's, none's, and no key at all.
    where = f"isn't one of run {run.fingerprint[:12]}, which this config is of"
    result = evaluate(bench, "abababababab/000000013", epochs=2, keep_last=2)
    assert said(result).startswith(f"{CheckpointError.__name__}: checkpoint abababababab/000000013: {where}")
    assert where in said(evaluate(bench, "13", epochs=2, keep_last=2))
    nowhere = said(evaluate(bench, f"{run.fingerprint[:12]}/000000014", epochs=2, keep_last=2))
    assert "there is none at this step" in nowhere
    assert "which this config is of" in said(evaluate(bench, checkpoint, epochs=3))
