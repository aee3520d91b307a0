"""The sensor that runs the promotion job for new candidates, where a recipe asks for that."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from kitchen_assets.beta import running_sensor
from kitchen_assets.sensors import look_every_s
from kitchen_resources.blobs.resource import BlobsResource
from kitchen_resources.errors import KitchenError
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.registry.port import CANDIDATE, PRODUCTION
from kitchen_resources.registry.resource import RegistryResource


def promotion_sensors(jobs: Sequence[Any], recipes: Sequence[Recipe]) -> list[dg.SensorDefinition]:
    """The sensor `promote_candidates`, where a recipe's rule is `automatic`; else none.

    Args:
        jobs: Jobs of the location.
        recipes: Its recipes.
    """
    names = [recipe.definition.name for recipe in recipes if recipe.promotion.automatic]
    promotions = [job for job in jobs if job.name in {f"{name}_promote" for name in names}]
    return [_sensor(names, promotions)] if names else []


def due(candidate: int | None, in_production: int | None, asked: int | None) -> bool:
    """Whether a candidate is to be judged: it is there, isn't in production, and wasn't asked about before."""
    return candidate is not None and candidate not in (in_production, asked)


def _sensor(names: Sequence[str], jobs: Sequence[Any]) -> dg.SensorDefinition:
    @running_sensor(
        name="promote_candidates",
        jobs=list(jobs),
        minimum_interval_seconds=look_every_s(),
        description=f"Runs the promotion job for each new candidate of {', '.join(names)}; its gate decides.",
    )
    def look(
        context: dg.SensorEvaluationContext, blobs: BlobsResource, registry: RegistryResource
    ) -> dg.SensorResult | dg.SkipReason:
        asked: Mapping[str, int] = json.loads(context.cursor or "{}")
        found: dict[str, int] = dict(asked)
        requests = []
        try:
            versions = registry.adapter(blobs.adapter())
            for name in names:
                candidate = versions.alias(name, CANDIDATE)
                if candidate is not None and due(candidate, versions.alias(name, PRODUCTION), asked.get(name)):
                    found[name] = candidate
                    requests.append(dg.RunRequest(run_key=f"{name}-promote-{candidate}", job_name=f"{name}_promote"))
        except KitchenError as error:
            # The store may be away: what was found until now is asked about at the next look.
            return dg.SkipReason(str(error))
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(found))

    return look
