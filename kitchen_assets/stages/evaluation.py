"""Stages of evaluation: the trained model against its base."""

from typing import Any

import dagster as dg

from kitchen_assets.composition import CheckpointJob, StageResult, stage
from kitchen_assets.context import StageContext
from kitchen_assets.stages.checkpoints import CheckpointEvents, find_checkpoint
from kitchen_assets.tables import markdown_table
from kitchen_resources.digests import digest_json
from kitchen_resources.evaluation.final import FinalEvaluation, evaluate_final


@stage(group="evaluation", kinds=("python",))
def evaluation(kitchen: StageContext) -> StageResult:
    """The model against its base: the loss on held-out rows and the recipe's own evaluations, each with its interval."""
    final = evaluate_final(kitchen.launch)
    kitchen.launch.write("evaluation", final.as_json())
    CheckpointEvents(kitchen).report_evaluations(
        final.fingerprint, kitchen.launch.checkpoints.head(final.fingerprint)
    )
    kitchen.launch.ports.telemetry.emit(
        "eval.complete", final.trained.metrics(), {"recipe": kitchen.name, "fingerprint": final.fingerprint}
    )
    if final.trained.note:
        kitchen.say(final.trained.note)
    return StageResult(
        data_version=digest_json(final.as_json()),
        metadata={
            "fingerprint": final.fingerprint,
            "results": dg.MetadataValue.md(results_table(final)),
            "samples": dg.MetadataValue.md(markdown_table(final.samples())),
            **({"note": final.trained.note} if final.trained.note else {}),
            **{name: measure.value for name, measure in final.trained.measures.items()},
        },
    )


def _evaluate_checkpoint(kitchen: StageContext, checkpoint: str) -> dict[str, Any]:
    run, entry = find_checkpoint(kitchen, checkpoint)
    if not run.evaluations.asked:
        kitchen.say("not measured: the run is simulated, or no rows are held out and the recipe has no evaluations")
        return {}
    found = run.evaluate(entry)
    CheckpointEvents(kitchen).report_evaluations(run.fingerprint, run.head())
    return dict(found.metrics())


evaluate_checkpoint = CheckpointJob(
    name="evaluate_checkpoint",
    execute=_evaluate_checkpoint,
    description="Measure one checkpoint as the recipe asks, if it hasn't been: `checkpoint` is the key of its partition. "
    "The config must be that of the run that made it.",
)


def results_table(final: FinalEvaluation) -> str:
    """Base against trained, as a markdown table; what wasn't measured is empty and never zero."""
    rows: list[dict[str, Any]] = []
    for name in sorted({*final.base.measures, *final.trained.measures}):
        row: dict[str, Any] = {"metric": name}
        for column, result in (("base", final.base), ("trained", final.trained)):
            measure = result.measures.get(name)
            row[column] = None if measure is None else f"{measure.value:.4g}"
            if measure is not None:
                known = measure.low == measure.low
                row[f"{column} 95 %"] = f"{measure.low:.4g} … {measure.high:.4g}" if known else ""
                row["n"] = measure.n
        rows.append(row)
    return markdown_table(rows)
