"""Jobs that know the resources they need and no others.

Dagster gives every job each resource of its location. A recipe is a resource, so with fifty recipes each of their
two hundred jobs described all fifty: the Launchpad offered fields of recipes that the job doesn't train, and a web
server read sixty times what it needed (docs/decisions/0026).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

Job = dg.JobDefinition | UnresolvedAssetJobDefinition


class _OwnResources(UnresolvedAssetJobDefinition):
    """An asset job with the resources that are bound to its assets, which are those that they ask for."""

    def resolve(
        self,
        asset_graph: Any,
        default_executor_def: dg.ExecutorDefinition | None = None,
        resource_defs: Mapping[str, dg.ResourceDefinition] | None = None,
    ) -> dg.JobDefinition:
        """As Dagster calls it with the resources of the whole location, which are left aside."""
        return super().resolve(asset_graph, default_executor_def, resource_defs=None)


def narrowed(jobs: Sequence[Job], resources: Mapping[str, dg.ResourceDefinition]) -> list[Job]:
    """The same jobs, each with the resources that it needs.

    Args:
        jobs: Jobs of assets, whose resources come with the assets; and jobs of ops.
        resources: Every resource of the location, by key.
    """
    return [_narrow(job, resources) for job in jobs]


def _narrow(job: Job, resources: Mapping[str, dg.ResourceDefinition]) -> Job:
    if isinstance(job, dg.JobDefinition):
        needed = {*job.required_resource_keys, "io_manager"} & resources.keys()
        return job.with_top_level_resources({key: resources[key] for key in needed})
    return _OwnResources(
        name=job.name, selection=job.selection, description=job.description, tags=job.tags, metadata=job.metadata
    )
