"""Workflows of one's own for tests: stages of functions, a location of them, and a log of what they did."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from kitchen_assets.composition import Stage, StageResult, Workflow, stage
from kitchen_assets.context import StageContext
from kitchen_assets.control import Node
from kitchen_assets.kitchen import Kitchen
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.supervised import SupervisedRecipe

Execute = Callable[[StageContext], Any]


def made(name: str, execute: Execute, **how: Any) -> Stage:
    """A stage of a function that returns nothing."""

    def run(context: StageContext) -> StageResult:
        execute(context)
        return StageResult(data_version=name)

    run.__name__ = name
    return stage(group="training", **how)(run)


class OwnBench:
    """A store, an instance, and a log of what stages did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        (folder / "home").mkdir(exist_ok=True)
        (folder / "home" / "dagster.yaml").write_text(
            # Its capture of a step's output leaves processes that end when they like.
            "telemetry: {enabled: false}\n"
            "compute_logs: {module: dagster._core.storage.noop_compute_log_manager, class: NoOpComputeLogManager}\n"
        )

    def say(self, what: object) -> None:
        with self.log.open("a") as log:
            log.write(f"{what}\n")

    @property
    def said(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def saying(self, name: str, **how: Any) -> Stage:
        return made(name, lambda _: self.say(name), **how)

    def location(self, stages: Sequence[Node], epochs: int = 3) -> Kitchen:
        workflow = Workflow(name="own", recipe=SupervisedRecipe, description="One's own.", stages=list(stages))
        values = {"model": "org/model", "dataset": "rows", "epochs": epochs}
        recipe = bind(SupervisedRecipe, values, RecipeDefinition(name="mine", workflow="own"))
        return Kitchen({"mine": recipe}, {}, [workflow])

    def config(self) -> dict[str, Any]:
        ports = {
            "trainer": {"backend": {"noop": {}}},
            "datasets": {"source": {"noop": {}}},
            "blobs": {"store": {"local": {"path": str(self.folder / "store")}}},
            "telemetry": {"console": False},
        }
        return {
            "resources": {key: {"config": value} for key, value in ports.items()},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        }

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.folder / "home"))

    def run(self, stages: Sequence[Node], **how: Any) -> dg.ExecuteInProcessResult:
        with self.instance() as instance:
            job = self.location(stages).definitions().resolve_job_def("mine")
            return job.execute_in_process(
                run_config=self.config(), instance=instance, raise_on_error=how.pop("raises", True), **how
            )
