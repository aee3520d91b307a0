"""Sensors that launch a recipe when its data set has changed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import dagster as dg

from kitchen_resources.datasets.resource import DatasetsResource
from kitchen_resources.errors import KitchenError
from kitchen_resources.recipes.recipe import Recipe


@dataclass(frozen=True)
class Looks:
    """What a sensor knows of a data set.

    Attributes:
        trained: How it was when it was last launched on, or when the sensor first looked.
        seen: How it was at the last look.
    """

    trained: str
    seen: str


def judge(before: Looks | None, now: str) -> tuple[Looks, bool]:
    """What to remember of a look, and whether to launch.

    A changed data set is launched on at the second look that finds it alike: what is still being written is no data set.
    What is there at the first look isn't launched on.
    """
    if before is None:
        return Looks(now, now), False
    launches = now != before.trained and now == before.seen
    return Looks(now if launches else before.trained, now), launches


def new_data_sensors(recipes: Sequence[Recipe]) -> list[dg.SensorDefinition]:
    """A sensor `<recipe>_new_data` for each recipe that asks for one, off until it is switched on."""
    return [_sensor(recipe, every) for recipe in recipes if (every := recipe.definition.new_data) is not None]


def _sensor(recipe: Recipe, every_s: float) -> dg.SensorDefinition:
    name = recipe.definition.name

    @dg.sensor(
        name=f"{name}_new_data",
        job_name=name,
        minimum_interval_seconds=max(1, round(every_s)),
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=f"Launches {name} when {recipe.dataset} has changed, and has stood still for one look.",
    )
    def look(context: dg.SensorEvaluationContext, datasets: DatasetsResource) -> dg.SensorResult | dg.SkipReason:
        before = Looks(**json.loads(context.cursor)) if context.cursor else None
        try:
            now = datasets.adapter().look(recipe.dataset, split=recipe.split)
        except KitchenError as error:
            return dg.SkipReason(str(error))
        after, launches = judge(before, now)
        cursor = json.dumps(asdict(after))
        if launches:
            return dg.SensorResult(run_requests=[dg.RunRequest(run_key=f"{name}-{now}")], cursor=cursor)
        if before is None:
            said = "as it is now it isn't launched on"
        else:
            said = "unchanged" if now == after.trained else "changed; launched on when it stands still"
        return dg.SensorResult(skip_reason=f"{recipe.dataset}: {said}", cursor=cursor)

    return look
