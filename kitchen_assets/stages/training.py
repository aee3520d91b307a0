"""Stages of training: the epoch loop, and the model that it makes."""

from typing import Any

import dagster as dg

from kitchen_assets.composition import CheckOutcome, Loop, LoopCheck, StageResult
from kitchen_assets.context import StageContext
from kitchen_assets.stages.checkpoints import CheckpointEvents
from kitchen_assets.tables import loss_plot, markdown_table
from kitchen_assets.tags import FINGERPRINT, REFUSED
from kitchen_resources.errors import ConfigError, KitchenError, LedgerError
from kitchen_resources.registry.port import ModelFiles
from kitchen_resources.training.exporting import export_checkpoint, note_model
from kitchen_resources.training.ledger import LedgerReport
from kitchen_resources.training.port import StepMetrics
from kitchen_resources.training.run import Finished, TrainingRun

_POINTS = 400


def plan_epochs(kitchen: StageContext) -> list[int]:
    """Work out which epochs are missing in the store; none are when the run is finished."""
    run = _run(kitchen)
    _require_expected(kitchen, run)
    planned = run.planned()
    kitchen.tag({FINGERPRINT: run.fingerprint})
    for note in planned.notes:
        kitchen.say(note)
    return list(planned.missing)


def _require_expected(kitchen: StageContext, run: TrainingRun) -> None:
    """A run that a sensor asked for goes on with the one that failed, and trains nothing else in silence."""
    if kitchen.expected not in ("", run.fingerprint):
        kitchen.tag({REFUSED: ConfigError.__name__})
        raise ConfigError(
            f"it was to go on with run {kitchen.expected[:12]}, and what it would train is {run.fingerprint[:12]}: the "
            f"recipe, the base model, the data or the kitchen has changed since",
            where=f"recipe {kitchen.name}",
            fix="launch the recipe, which trains it as it is now",
        )


def train_epoch(kitchen: StageContext, epoch: int) -> int:
    """Make the checkpoint of one epoch exist, with its evaluation if due; returns the optimiser steps done."""
    run = _run(kitchen)
    done = run.ensure(epoch)
    CheckpointEvents(kitchen).report_evaluations(run.fingerprint, run.head())
    return done


def finish_training(kitchen: StageContext, steps: list[int]) -> StageResult:
    """Make what is missing, choose the model among the epochs, and export it."""
    run = _run(kitchen)
    finished = run.finish()
    CheckpointEvents(kitchen).reconcile(run.fingerprint, finished.head)
    CheckpointEvents(kitchen).report_evaluations(run.fingerprint, finished.head)
    model = export_checkpoint(kitchen.launch, run.job(), finished.selected, kitchen.recipe.export)
    done = sum(steps) + finished.steps_done
    note_model(kitchen.launch, run.fingerprint, finished.selected, model)
    kitchen.launch.write(f"steps-{kitchen.run_id}", {"optimizer_steps": done})
    return StageResult(
        data_version=model.digest,
        metadata=_metadata(kitchen, run, finished, model, done),
        checks=[_received_as_planned(finished.ledger)],
    )


def _received_as_planned(ledger: LedgerReport) -> CheckOutcome:
    epochs = [
        {"epoch": epoch.epoch, "steps": epoch.steps, "rows": epoch.rows, "partial": epoch.partial}
        for epoch in ledger.epochs
    ]
    return CheckOutcome(
        every_row_once_per_epoch.name,
        # What nobody tells isn't called right; but no model is refused for it.
        passed=ledger.passed and ledger.is_told,
        blocking=ledger.is_told,
        description=str(ledger),
        metadata={"epochs": dg.MetadataValue.md(markdown_table(epochs))},
    )


def _received_otherwise(error: KitchenError) -> CheckOutcome | None:
    if not isinstance(error, LedgerError):
        return None
    return CheckOutcome(every_row_once_per_epoch.name, passed=False, description=str(error))


every_row_once_per_epoch = LoopCheck(
    name="every_row_once_per_epoch",
    description="Has every optimiser step received the rows that were planned for it, so that each completed epoch has "
    "had every row exactly once? By the ledger of each epoch, which training writes from what the steps received. A "
    "prompt that is sampled counts once with its whole group; of an epoch that `max_steps` ends early, each row comes "
    "up at most once.",
    of_error=_received_otherwise,
)


def _run(kitchen: StageContext) -> TrainingRun:
    return TrainingRun(kitchen.launch, CheckpointEvents(kitchen))


def _metadata(
    kitchen: StageContext, run: TrainingRun, finished: Finished, model: ModelFiles, done: int
) -> dict[str, Any]:
    selected = finished.selected
    steps = loss_curve(kitchen, finished)
    evaluated = run.evaluations.values(finished.head, "held_out/loss")
    marks = [(run.plan.last_step(epoch), loss) for epoch, loss in sorted(evaluated.items())]
    recorded = selected.evaluations.get(run.evaluations.key) if run.evaluations.asked else None
    base = kitchen.launch.base
    return {
        "fingerprint": run.fingerprint,
        "optimizer_steps": done,
        "epoch": selected.epoch,
        "step": selected.step,
        "epochs_made": finished.head.last_epoch(),
        "ended": finished.head.end.reason if finished.head.end else "",
        "state_digest": selected.state_digest,
        "model_digest": model.digest,
        "model_bytes": sum(file.size for file in model.files.values()),
        "export": model.kind,
        "base": f"{base.reference} ({base.digest[:12]})",
        "simulated": kitchen.launch.simulated,
        "loss": dg.MetadataValue.md(loss_plot(steps, marks, label="held out")) if steps else "none",
        "final_loss": steps[-1][1] if steps else None,
        "metrics": dg.MetadataValue.json(dict(recorded.metrics) if recorded else {}),
        "identity": dg.MetadataValue.json(dict(run.identity.value)),
    }


def loss_curve(kitchen: StageContext, finished: Finished) -> list[tuple[int, float]]:
    """Step and loss over all epochs of a run, thinned to a few hundred points."""
    store = kitchen.launch.checkpoints
    ends = [entry for entry in finished.head.entries() if entry.epoch_complete]
    steps: list[StepMetrics] = [step for entry in ends for step in store.steps(store.manifest(entry))]
    every = max(1, len(steps) // _POINTS)
    return [(step.global_step, step.loss) for step in steps[::every]]


model = Loop(
    name="model",
    plan=plan_epochs,
    turn=train_epoch,
    finish=finish_training,
    turn_name="epoch",
    description="The trained model: the epoch that the recipe selects, exported as a folder that transformers loads.\n\n"
    "Each epoch is a step of its own; a run that was interrupted goes on from the last published checkpoint.",
    group="training",
    kinds=frozenset({"pytorch", "huggingface"}),
    checks=(every_row_once_per_epoch,),
    # `checkpoints` is external, and Dagster orders nothing through it: training waits for the data itself.
    after=("dataset", "checkpoints"),
)
