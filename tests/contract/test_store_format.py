"""Stores of earlier versions: a committed one is listed, verified, gone on with, and its model exported."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

import kitchen_assets as kitchen
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.store import CheckpointStore
from tests.stores.make import FINISHED, STOPPED, resources

COMMITTED = Path(__file__).parents[1] / "stores" / "format-1"
DONE = "4142e4dc7bdb626351a93863916366a1d2e079d1e3c95b697fb7fb7c65ad56e0"
HALF = "7e013114d2b2d445962e77dfa7026270bba31b52d7caa3ed009bda8ffd3ce333"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy, as a checkout has it."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "store"))


@pytest.fixture
def blobs(root: Path) -> LocalBlobs:
    return LocalBlobs(root)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "dagster")) as instance:
        yield instance


def states(root: Path, fingerprint: str) -> dict[int, str]:
    head = CheckpointStore(LocalBlobs(root)).head(fingerprint)
    return {entry.step: entry.state_digest for entry in head.entries()}


def test_it_is_listed(blobs: LocalBlobs) -> None:
    found = kitchen.storage(blobs)
    assert {(run.fingerprint, run.recipe, run.checkpoints, run.whole, run.ended) for run in found} == {
        (DONE, "supervised", 9, 2, "completed"),
        (HALF, "supervised", 4, 2, ""),
    }
    assert {run.held_by for run in found} == {""}
    assert found.models.bytes == 471975
    assert found.garbage.objects == 0
    total = sum(path.stat().st_size for path in COMMITTED.rglob("*") if path.is_file())
    assert found.bytes == total < 3 * 2**20


def test_it_is_sound(blobs: LocalBlobs) -> None:
    assert kitchen.verify(blobs=blobs) == []


def test_nothing_in_it_is_garbage(blobs: LocalBlobs) -> None:
    pruned = kitchen.prune(keep_last=None, dry_run=True, grace_hours=0, blobs=blobs)
    assert (pruned.blobs, pruned.marked, pruned.held_back) == (0, 0, "")


@pytest.mark.heavy
def test_what_is_finished_is_not_trained_again_and_its_model_is_loaded(
    root: Path, blobs: LocalBlobs, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    again = kitchen.run("supervised", FINISHED, resources(root), instance=instance)
    assert (again.fingerprint, again.optimizer_steps, again.registered_version) == (DONE, 0, 1)
    folder = kitchen.export("supervised@candidate", tmp_path / "model", blobs=blobs)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(weights.numel() for weights in model.parameters()) == 115456
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("March 14th 1987")["input_ids"]) == "March 14th 1987"


@pytest.mark.heavy
def test_what_was_stopped_inside_an_epoch_goes_on_from_there(
    root: Path, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    stored = states(root, HALF)
    assert list(stored) == [3, 6, 7, 9]
    rest = kitchen.run("supervised", STOPPED, resources(root), instance=instance)
    assert (rest.fingerprint, rest.optimizer_steps, rest.registered_version) == (HALF, 12, 2)
    one_go = kitchen.run("supervised", STOPPED, resources(tmp_path / "other"), instance=instance)
    assert (one_go.fingerprint, one_go.optimizer_steps) == (HALF, 21)
    resumed, undisturbed = states(root, HALF), states(tmp_path / "other", HALF)
    assert list(resumed) == list(undisturbed) == [3, 6, 7, 9, 12, 14, 15, 18, 21]
    if undisturbed[9] == stored[9]:
        assert resumed[21] == undisturbed[21]
    # Another kind of processor computes other bits, from the first step on; and what follows differs as little.
    assert rest.metrics["loss"] == pytest.approx(one_go.metrics["loss"], rel=1e-4)
