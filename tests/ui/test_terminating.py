"""Terminate in the middle of training: stopped at a step that is published, and gone on with from there, bit by bit."""

import subprocess

import psutil
import pytest
from playwright.sync_api import expect

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.head import Head
from kitchen_resources.checkpoints.store import CheckpointStore
from tests.ui.dagster_dev import DAGSTER, DagsterDev, wait_until
from tests.ui.screen import RUN_S, Screen

pytestmark = [pytest.mark.heavy, pytest.mark.full]

CANCELED_S = 10


def _published(dev: DagsterDev, run_id: str) -> Head | None:
    """The head of a run once it names a checkpoint."""
    fingerprint = dev.graphql.run(run_id)["tags"].get("kitchen/fingerprint")
    head = dev.checkpoints.head(fingerprint) if fingerprint else None
    return head if head is not None and head.entries() else None


def test_a_terminated_run_leaves_nothing_and_another_goes_on_from_its_last_checkpoint(screen: Screen) -> None:
    dev = screen.dev
    before = dev.processes()
    # Meanwhile and undisturbed, with a home and store of its own.
    undisturbed = subprocess.Popen(
        [DAGSTER, "job", "execute", "-m", "kitchen_assets.definitions", "-j", "slow"],
        env=dev.environment("undisturbed"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with undisturbed:
        screen.open_launchpad("slow")
        run_id = screen.launch()
        head = wait_until(lambda: _published(dev, run_id), RUN_S, "the first checkpoint")
        worker = head.holder.pid
        assert psutil.pid_exists(worker)
        screen.button("Terminate").click()
        screen.shoot("terminate-1-asked")
        screen.button("Terminate 1 run").click()
        wait_until(lambda: dev.graphql.is_over(run_id), CANCELED_S, "the end of the run")
        assert dev.graphql.run(run_id)["status"] == "CANCELED"
        expect(screen.page.get_by_text("Canceled", exact=True)).to_be_visible()
        screen.shoot("terminate-2-canceled")
        # What is left to do then is Python's own end, on a machine that another run keeps busy.
        wait_until(lambda: not dev.processes() - before, RUN_S, "the end of the run's processes")

        head = dev.checkpoints.head(head.fingerprint)
        stopped_at = head.entries()[-1].step
        assert (head.holder, head.end) == (None, None)
        log = " ".join(event["message"] for event in dev.graphql.events(run_id))
        assert f"stopped on request at step {stopped_at}, which is published" in log
        assert list(dev.blobs.scratch().glob("runs/*/*")) == []

        screen.page.get_by_text("Re-execute all (*)").click()
        screen.page.wait_for_url(lambda url: "/runs/" in url and run_id not in url)
        again = screen.run_id()
        assert screen.wait_for_run(again) == "SUCCESS"
        expect(screen.page.get_by_text("Success", exact=True)).to_be_visible()
        screen.shoot("terminate-3-gone-on")
        assert undisturbed.wait(RUN_S) == 0

    run = dev.graphql.run(again)
    assert (run["parentRunId"], run["tags"]["kitchen/fingerprint"]) == (run_id, head.fingerprint)
    assert f"going on from step {stopped_at} (epoch " in " ".join(
        event["message"] for event in dev.graphql.events(again)
    )
    (made,) = [found for found in dev.graphql.materializations("slow", "model") if found.run_id == again]
    plan = made.metadata["identity"]["plan"]
    assert plan["total_steps"] == 3 * 68
    assert made.metadata["optimizer_steps"] == plan["total_steps"] - stopped_at
    alone = CheckpointStore(LocalBlobs(dev.folder / "undisturbed" / "store")).head(head.fingerprint)
    assert made.metadata["state_digest"] == alone.entries()[-1].state_digest
    assert made.metadata["step"] == alone.entries()[-1].step == plan["total_steps"]
