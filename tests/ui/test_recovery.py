"""The sensors under a real daemon: of one failed run of each kind, exactly those that a repeat can mend are run again."""

import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from kitchen_resources.checkpoints.head import Head
from kitchen_resources.checkpoints.lease import acquire
from kitchen_resources.checkpoints.store import CheckpointStore
from tests.object_store import BUCKET, CREDENTIALS, object_store
from tests.ui.conftest import TINY
from tests.ui.dagster_dev import DAGSTER, DagsterDev, dagster_dev, wait_until
from tests.ui.screen import RUN_S

pytestmark = [pytest.mark.heavy, pytest.mark.full]

SLOW = {**TINY, "max_rows": 1200, "epochs": 1, "evaluations": [], "eval_every": 0, "checkpoint_steps": 10}
"""1,080 rows to train on, 68 steps."""

ASKED_SLOWLY = {"name": "often", "dataset": "embedded:dates", "samples": 60, "max_tokens": 16, "batch_size": 1}

RECIPES: dict[str, dict[str, Any]] = {
    "refused": TINY,
    "bad_rows": {**TINY, "dataset": "rows.jsonl", "max_rows": None},
    "diverges": {**TINY, "learning_rate": 1.0e30, "optimizer": "sgd"},
    "terminated": SLOW,
    "killed": {**SLOW, "seed": 1},
    "killed_in_a_shell": {**SLOW, "seed": 2},
    "held": {**SLOW, "seed": 3, "lease_wait_s": 0.0},
    "away": {**SLOW, "seed": 5, "max_rows": 4000},
    "unevaluated": {**TINY, "seed": 4, "evaluations": [ASKED_SLOWLY], "row_limits": {"contaminated": 1.0}},
}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterDev]:
    """An instance whose sensors look every second."""
    folder = tmp_path_factory.mktemp("recovery")
    (folder / "rows.jsonl").write_text('{"prompt": 1}\n' * 20)
    variables = {"KITCHEN_SENSOR_EVERY_S": "1", "KITCHEN_RESUME_WAIT_S": "1", **CREDENTIALS}
    with dagster_dev(folder, RECIPES, **variables) as running:
        yield running


def published(dev: DagsterDev, run_id: str) -> Head | None:
    """The head of a run once it names a checkpoint."""
    fingerprint = dev.graphql.run(run_id)["tags"].get("kitchen/fingerprint")
    head = dev.checkpoints.head(fingerprint) if fingerprint else None
    if head is not None and head.entries():
        return head
    assert not dev.graphql.is_over(run_id), f"run {run_id} ended without a checkpoint"
    return None


def ended(dev: DagsterDev, run_id: str) -> str:
    wait_until(lambda: dev.graphql.is_over(run_id), RUN_S, f"the end of run {run_id}")
    return str(dev.graphql.run(run_id)["status"])


def successor(dev: DagsterDev, run_id: str, job: str) -> str:
    """The run that a sensor asked for because of another."""

    def find() -> str | None:
        others = [other for other in dev.graphql.runs_of(job) if other != run_id]
        resumed = (other for other in others if dev.graphql.run(other)["tags"].get("kitchen/resume_of") == run_id)
        return next(resumed, None)

    return str(wait_until(find, RUN_S, f"the run after {run_id}"))


def in_a_shell(dev: DagsterDev, job: str) -> subprocess.Popen[bytes]:
    argv = [DAGSTER, "job", "execute", "-m", "kitchen_assets.definitions", "-j", job]
    return subprocess.Popen(
        argv, env=dev.environment(), cwd=dev.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def run_of(dev: DagsterDev, job: str) -> str:
    return str(wait_until(lambda: dev.graphql.runs_of(job), RUN_S, f"a run of {job}")[0])


def test_exactly_what_a_repeat_can_mend_is_run_again(dev: DagsterDev) -> None:
    door = dev.graphql
    refused = door.launch("refused", {"resources": {"refused": {"config": {"epochs": 0}}}})
    bad_rows = door.launch("bad_rows")
    diverges = door.launch("diverges")
    promotion = door.launch("refused_promote")
    not_again = {"refused": refused, "bad_rows": bad_rows, "diverges": diverges, "refused_promote": promotion}
    assert {job: ended(dev, run_id) for job, run_id in not_again.items()} == dict.fromkeys(not_again, "FAILURE")
    assert door.run(refused)["tags"]["kitchen/refused"] == "ConfigError"
    assert door.run(bad_rows)["tags"]["kitchen/refused"] == "DataError"
    assert door.run(diverges)["tags"]["kitchen/error"] == "TrainingDiverged"

    terminated = door.launch("terminated")
    wait_until(lambda: published(dev, terminated), RUN_S, "a checkpoint")
    door.terminate(terminated)
    assert ended(dev, terminated) == "CANCELED"
    not_again["terminated"] = terminated

    # The worker of a run of the UI is killed.
    killed = door.launch("killed")
    head = wait_until(lambda: published(dev, killed), RUN_S, "a checkpoint")
    os.kill(head.holder.pid, signal.SIGKILL)
    assert ended(dev, killed) == "FAILURE"
    again = successor(dev, killed, "killed")
    assert ended(dev, again) == "SUCCESS"
    tags = door.run(again)["tags"]
    assert (tags["kitchen/attempt"], tags["kitchen/fingerprint"]) == ("1", head.fingerprint)
    at = dev.checkpoints.head(head.fingerprint)
    assert f"going on from step {tags['kitchen/from_step']} (epoch 1)" in " ".join(
        event["message"] for event in door.events(again)
    )
    assert int(tags["kitchen/from_step"]) in [entry.step for entry in at.entries()]

    # So is `dagster job execute`, whose run nobody but a sensor looks after.
    with in_a_shell(dev, "killed_in_a_shell") as process:
        lost = run_of(dev, "killed_in_a_shell")
        head = wait_until(lambda: published(dev, lost), RUN_S, "a checkpoint")
        process.kill()
    assert ended(dev, lost) == "FAILURE"
    messages = " ".join(event["message"] or "" for event in door.events(lost))
    assert f"The run is lost: its process {process.pid} on " in messages
    again = successor(dev, lost, "killed_in_a_shell")
    assert ended(dev, again) == "SUCCESS"
    assert door.run(again)["tags"]["kitchen/fingerprint"] == head.fingerprint

    # A run finds its recipe held by another process, which is not done with it yet.
    stopped = door.launch("held")
    head = wait_until(lambda: published(dev, stopped), RUN_S, "a checkpoint")
    door.terminate(stopped)
    assert ended(dev, stopped) == "CANCELED"
    lease = acquire(dev.blobs, head.fingerprint, run="the test", wait_s=RUN_S)
    held = door.launch("held")
    assert ended(dev, held) == "FAILURE"
    lease.release()
    tags = door.run(held)["tags"]
    assert (tags["kitchen/error"], tags["kitchen/mendable"]) == ("LeaseHeld", "true")
    again = successor(dev, held, "held")
    assert ended(dev, again) == "SUCCESS"
    assert door.run(again)["tags"]["kitchen/fingerprint"] == head.fingerprint
    assert set(door.runs_of("held")) == {stopped, held, again}

    # The store is away for longer than requests are made again, from the middle of a run into the first attempt after it.
    with object_store(dev.folder / "bucket") as server:
        bucket = {"bucket": BUCKET, "endpoint_url": server.endpoint, "max_attempts": 1}
        store = {"blobs": {"config": {"store": {"s3": bucket}}}}
        away = door.launch("away", {"resources": store})
        fingerprint = wait_until(lambda: door.run(away)["tags"].get("kitchen/fingerprint"), RUN_S, "a plan")
        in_bucket = CheckpointStore(server.blobs(""))
        wait_until(lambda: in_bucket.head(fingerprint).entries(), RUN_S, "a checkpoint")
        server.kill()
        assert ended(dev, away) == "FAILURE"
        tags = door.run(away)["tags"]
        assert (tags["kitchen/error"], tags["kitchen/mendable"]) == ("BlobError", "true")
        first = successor(dev, away, "away")
        assert ended(dev, first) == "FAILURE"
        server.start()
        tags = door.run(first)["tags"]
        assert (tags["kitchen/error"], tags["kitchen/mendable"]) == ("BlobError", "true")
        assert tags["kitchen/expected"] == fingerprint
        runs = wait_until(lambda: len(found := door.runs_of("away")) == 3 and found, RUN_S, "a second attempt")
        (second,) = set(runs) - {away, first}
        assert ended(dev, second) == "SUCCESS"
        assert door.run(second)["tags"]["kitchen/fingerprint"] == fingerprint
        assert in_bucket.head(fingerprint).end is not None

    # All looked at meanwhile, and left alone.
    for job, run_id in not_again.items():
        assert door.runs_of(job) == [run_id]


def test_an_evaluation_that_its_run_did_not_come_to_is_made(dev: DagsterDev) -> None:
    door = dev.graphql
    run_id = door.launch("unevaluated")
    head = wait_until(lambda: published(dev, run_id), RUN_S, "a checkpoint")
    assert (head.entries()[0].epoch_complete, dict(head.entries()[0].evaluations)) == (True, {})
    door.terminate(run_id)
    assert ended(dev, run_id) == "CANCELED"
    evaluation = successor(dev, run_id, "unevaluated_evaluate_checkpoint")
    assert ended(dev, evaluation) == "SUCCESS"
    (recorded,) = dev.checkpoints.head(head.fingerprint).entries()[0].evaluations.values()
    assert recorded.metrics["often/exact_match"] >= 0
    (made,) = door.materializations("unevaluated", "checkpoint_evaluation")
    assert (made.run_id, made.partition) == (evaluation, f"{head.fingerprint[:12]}/000000009")
    assert made.metadata["step"] == 9
    assert made.metadata["often/exact_match"] == recorded.metrics["often/exact_match"]
    assert door.runs_of("unevaluated") == [run_id]
