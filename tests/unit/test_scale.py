"""A location of fifty recipes: what it is to Dagster's web server, and that nothing in it is made twice."""

import warnings

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster_shared.serdes import serialize_value

from benchmarks.definitions_load import write_recipes
from kitchen_assets.kitchen import Kitchen

pytestmark = pytest.mark.full

COUNT = 50


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> dg.RepositoryDefinition:
    folder = tmp_path_factory.mktemp("location") / "recipes"
    write_recipes(folder, COUNT)
    return Kitchen(folder).definitions().get_repository_def()


def test_every_recipe_is_whole(repository: dg.RepositoryDefinition) -> None:
    jobs = {job.name for job in repository.get_all_jobs()}
    for number in range(COUNT):
        name = f"recipe_{number:02d}"
        assert {name, f"{name}_promote", f"{name}_evaluate_checkpoint", f"{name}_retain_checkpoints"} <= jobs
    assert len(repository.schedule_defs) == COUNT + 1


def test_a_job_knows_its_own_recipe_and_no_other(repository: dg.RepositoryDefinition) -> None:
    for job in repository.get_all_jobs():
        if job.name != "__ASSET_JOB":
            recipes = {key for key in job.resource_defs if key.startswith("recipe_") or key == "supervised"}
            assert len(recipes - {"supervised"}) <= 1, job.name


def test_its_snapshot_is_small_enough_for_a_web_server(repository: dg.RepositoryDefinition) -> None:
    """As a code server sends it: jobs by reference."""
    with warnings.catch_warnings():
        # Dagster reads a property of its schedules that it has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        snapshot = serialize_value(RepositorySnap.from_def(repository, defer_snapshots=True))
    assert len(snapshot.encode()) < 20_000_000
