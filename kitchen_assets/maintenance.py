"""The job that clears the store, and its schedule; one of each in every location."""

from typing import Any, Optional

import dagster as dg
from pydantic import Field

from kitchen_assets.execution import on_the_store
from kitchen_assets.shelf import Pruned, prune
from kitchen_resources.recipes.names import CLEANUP_JOB


class StorageCleanup(dg.Config):
    """What to clear, and what to keep. The defaults delete nothing that a recipe keeps or anything names."""

    keep_last: Optional[int] = Field(
        default=None,
        ge=0,
        description="Newest checkpoints of each run to keep whole, whatever its recipe keeps; null to leave that to "
        "the recipes. What a model version was made of stays.",
    )
    grace_hours: float = Field(
        default=24.0, ge=0, description="How long what nothing names stays marked before it is deleted, in hours."
    )
    launch_days: float = Field(
        default=30.0, ge=0, description="Age from which on the notes of launches that are over are removed, in days."
    )
    dry_run: bool = Field(default=False, description="Change nothing, and say what would be done.")


@dg.op(
    name="clear_storage",
    required_resource_keys={"blobs", "registry"},
    out=dg.Out(dg.Nothing),
    description="Delete what nothing in the store names, and what is asked for of old checkpoints.",
)
def clear_storage(context: dg.OpExecutionContext, config: StorageCleanup) -> Any:
    """Free room in the store, and say what was freed.

    Raises:
        dagster.Failure: With the kitchen's message, caused by the kitchen's error.
    """
    pruned = on_the_store(
        context,
        lambda blobs, registry: prune(
            keep_last=config.keep_last,
            grace_hours=config.grace_hours,
            launch_days=config.launch_days,
            dry_run=config.dry_run,
            blobs=blobs,
            registry=registry,
        ),
    )
    for line in pruned.lines():
        context.log.info(line)
    yield dg.Output(None, metadata=_metadata(pruned))


def _metadata(pruned: Pruned) -> dict[str, Any]:
    return {
        "checkpoints_pruned": sum(len(steps) for steps in pruned.runs.values()),
        "payload_bytes": pruned.payload_bytes,
        "blobs_deleted": pruned.blobs,
        "bytes_deleted": pruned.bytes,
        "blobs_marked": pruned.marked,
        "blobs_waiting": pruned.waiting,
        "notes_removed": pruned.notes,
        "uploads_given_up": pruned.uploads,
        "held_back": pruned.held_back or "no",
        "dry_run": pruned.dry_run,
    }


@dg.job(
    name=CLEANUP_JOB,
    description="Free room in the store: what nothing names, and the payload of old checkpoints where that is asked for.",
    tags={"kitchen/kind": "maintenance"},
)
def storage_cleanup() -> None:
    """The job."""
    clear_storage()


storage_cleanup_schedule = dg.ScheduleDefinition(
    name=f"{CLEANUP_JOB}_schedule",
    job_name=CLEANUP_JOB,
    # Daily, because what is marked one day is deleted the next.
    cron_schedule="30 4 * * *",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Clears the store every night.",
)
