"""The graphs of both locations, as they are drawn: assets, checks, jobs, schedules, sensors, resources.

What a change of the code moves is seen by comparing: `python -m tests.workflows.test_locations` writes them anew.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kitchen_assets.kitchen import Kitchen, built_in
from tests.workflows import cli

SNAPSHOTS = Path(__file__).parent / "locations"
COOKBOOK = cli.ROOT / "examples" / "cookbook"
_COOKBOOK = """
import json
from cookbook import COOKBOOK
from tests.workflows.test_locations import drawn
print(json.dumps(drawn(COOKBOOK)))
"""


def drawn(kitchen: Kitchen) -> dict[str, Any]:
    """A location as Dagster shows it, without what its documentation says."""
    definitions = kitchen.definitions()
    repository = definitions.get_repository_def()
    graph = definitions.resolve_asset_graph()
    nodes = {key.to_user_string(): graph.get(key) for key in graph.get_all_asset_keys()}
    jobs = {job.name: job for job in repository.get_all_jobs() if job.name != "__ASSET_JOB"}
    return {
        "assets": {
            name: {
                "parents": sorted(parent.to_user_string() for parent in node.parent_keys),
                "checks": sorted(check.name for check in node.check_keys),
                "group": node.group_name,
                "partitions": getattr(node.partitions_def, "name", None),
            }
            for name, node in sorted(nodes.items())
        },
        "jobs": {name: _job(job) for name, job in sorted(jobs.items())},
        "schedules": {
            schedule.name: {
                "job": schedule.job_name,
                "cron": schedule.cron_schedule,
                "timezone": schedule.execution_timezone,
                "on": schedule.default_status == dg.DefaultScheduleStatus.RUNNING,
            }
            for schedule in sorted(repository.schedule_defs, key=lambda schedule: schedule.name)
        },
        "sensors": {
            sensor.name: {
                "jobs": sorted(target.job_name for target in sensor.targets),
                "on": sensor.default_status == dg.DefaultSensorStatus.RUNNING,
                "every": sensor.minimum_interval_seconds,
            }
            for sensor in sorted(repository.sensor_defs, key=lambda sensor: sensor.name)
        },
        "resources": {
            key: getattr(resource, "configurable_resource_cls", type(resource)).__name__
            for key, resource in sorted(repository.get_top_level_resources().items())
        },
    }


def _job(job: dg.JobDefinition) -> dict[str, Any]:
    return {
        "steps": [
            {"name": node.name, "after": sorted({edge.node_name for edge in _edges(job, node.name)})}
            for node in sorted(job.nodes, key=lambda node: node.name)
        ],
        "inside": {
            node.name: sorted(inner.name for inner in node.definition.nodes)
            for node in job.nodes
            if isinstance(node.definition, dg.GraphDefinition)
        },
        "resources": sorted(job.resource_defs),
        "tags": {key: value for key, value in sorted(job.tags.items()) if key.startswith("kitchen/")},
    }


def _edges(job: dg.JobDefinition, name: str) -> list[Any]:
    structure = job.dependency_structure
    inputs = structure.input_to_upstream_outputs_for_node(name)
    return [output for outputs in inputs.values() for output in outputs]


def drawn_cookbook() -> dict[str, Any]:
    """The cookbook's, in a process of its own: its modules are found by its folder."""
    path = os.pathsep.join([str(COOKBOOK), str(cli.ROOT)])
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-c", _COOKBOOK],
            env={**cli.environment(Path(home)), "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


DRAWN = {"kitchen": lambda: drawn(built_in()), "cookbook": drawn_cookbook}


@pytest.mark.parametrize("name", DRAWN)
def test_a_location_is_drawn_as_it_was(name: str) -> None:
    assert DRAWN[name]() == json.loads((SNAPSHOTS / f"{name}.json").read_text())


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for location, draw in DRAWN.items():
        (SNAPSHOTS / f"{location}.json").write_text(json.dumps(draw(), indent=1) + "\n")
