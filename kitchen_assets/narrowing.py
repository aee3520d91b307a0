"""Jobs that know their own recipes and no others.

Dagster gives every job each resource of its location. A recipe is a resource, so with fifty recipes each of their
two hundred jobs described all fifty: the Launchpad offered fields of recipes that the job doesn't train, and a web
server read many times what it needed (docs/decisions/0026).
"""

import inspect
from collections.abc import Mapping, Sequence, Set
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

Job = dg.JobDefinition | UnresolvedAssetJobDefinition

_FIELDS = tuple(inspect.signature(UnresolvedAssetJobDefinition.__new__).parameters)[1:]


class _OwnRecipes:
    """What an asset job is given of the location: all but the recipes, of which its assets bring theirs."""

    recipes: frozenset[str]

    def resolve(
        self,
        asset_graph: Any,
        default_executor_def: dg.ExecutorDefinition | None = None,
        resource_defs: Mapping[str, dg.ResourceDefinition] | None = None,
    ) -> dg.JobDefinition:
        """As Dagster calls it with the resources of the whole location."""
        kept = {key: resource for key, resource in (resource_defs or {}).items() if key not in self.recipes}
        job: dg.JobDefinition = super().resolve(  # type: ignore[misc]  # of the class that this one is mixed into
            asset_graph, default_executor_def, resource_defs=kept
        )
        return job


def narrowed(jobs: Sequence[Job], resources: Mapping[str, dg.ResourceDefinition], recipes: Set[str]) -> list[Job]:
    """The same jobs, each with the resources that aren't recipes, and with the recipes that it needs.

    Args:
        jobs: Jobs of assets, to which their assets bring the recipes that they ask for; and jobs of ops.
        resources: Every resource of the location, by key.
        recipes: Which of them are recipes.
    """
    asset_job = type("RecipeJob", (_OwnRecipes, UnresolvedAssetJobDefinition), {"recipes": frozenset(recipes)})
    made: list[Job] = []
    for job in jobs:
        if isinstance(job, dg.JobDefinition):
            others = recipes - job.required_resource_keys
            made.append(job.with_top_level_resources({k: v for k, v in resources.items() if k not in others}))
        else:
            made.append(asset_job(**{name: getattr(job, name) for name in _FIELDS}))
    return made


def known_config(config: Mapping[str, Any], job: dg.JobDefinition) -> dict[str, Any]:
    """Run config without the resources that a job doesn't have: of another job, or of Materialize, which has them all."""
    if "resources" not in config:
        return dict(config)
    kept = {key: value for key, value in config["resources"].items() if key in job.resource_defs}
    return {**config, "resources": kept}
