"""The jobs that act on registered models: publishing one on a hub, and taking one back; one of each in every location."""

from typing import Any, Optional

import dagster as dg
from pydantic import Field

from kitchen_assets.execution import on_the_store
from kitchen_assets.shelf import push, rollback
from kitchen_resources.recipes.names import PUSH_JOB, ROLLBACK_JOB
from kitchen_resources.registry.port import PRODUCTION


class HubPush(dg.Config):
    """Which version goes where. The token is that of the process (HF_TOKEN, or hf auth login), and in no config."""

    source: str = Field(description="A registered version: NAME@3, NAME@candidate or NAME@production.")
    repo_id: str = Field(description="Repository on the hub, organisation/name; made when it isn't there.")
    private: bool = Field(default=True, description="Whether only its members see a repository that is made now.")
    branch: str = Field(default="main", description="Branch to push to; made when it isn't there.")
    merged: bool = Field(default=True, description="Whole weights; else the LoRA adapter alone.")


@dg.op(
    name="push_to_hub",
    required_resource_keys={"blobs", "registry"},
    out=dg.Out(dg.Nothing),
    description="Publish a registered version, with a model card of what was measured and what it is made of.",
)
def push_to_hub(context: dg.OpExecutionContext, config: HubPush) -> Any:
    """Publish a version.

    Raises:
        dagster.Failure: With the kitchen's message, caused by the kitchen's error.
    """
    pushed = on_the_store(
        context,
        lambda blobs, registry: push(
            config.source,
            config.repo_id,
            private=config.private,
            branch=config.branch,
            merged=config.merged,
            blobs=blobs,
            registry=registry,
        ),
    )
    context.log.info(f"{config.source} is {pushed.page} at {pushed.commit[:12]}")
    yield dg.Output(
        None,
        metadata={
            "page": dg.MetadataValue.url(pushed.page),
            "commit": pushed.commit,
            "branch": pushed.branch,
            "repository": "was there" if pushed.existed else "made",
        },
    )


@dg.job(
    name=PUSH_JOB,
    description="Publish a registered model on a hub, with its model card.",
    tags={"kitchen/kind": "publication"},
)
def hub_push() -> None:
    """The job."""
    push_to_hub()


class Rollback(dg.Config):
    """What goes back to production."""

    model: str = Field(description="Name of the model, the recipe's.")
    version: Optional[int] = Field(default=None, description="Version to go back to; null for the one before.")


@dg.op(
    name="roll_back_production",
    required_resource_keys={"blobs", "registry"},
    out=dg.Out(dg.Nothing),
    description="Point production back to the version before, or to another one.",
)
def roll_back_production(context: dg.OpExecutionContext, config: Rollback) -> Any:
    """Take what is in production back; lineage shows what is there now.

    Raises:
        dagster.Failure: With the kitchen's message, caused by the kitchen's error.
    """
    moved = on_the_store(
        context,
        lambda blobs, registry: rollback(config.model, to=config.version, blobs=blobs, registry=registry),
    )
    context.log.info(str(moved))
    metadata: dict[str, Any] = {"version": moved.version, "before": moved.before, "reason": "rolled back"}
    context.log_event(dg.AssetMaterialization([config.model, PRODUCTION], metadata=metadata))
    yield dg.Output(None, metadata=metadata)


@dg.job(
    name=ROLLBACK_JOB,
    description="Point `production` of a model back to the version before, or to another one.",
    tags={"kitchen/kind": "promotion"},
)
def production_rollback() -> None:
    """The job."""
    roll_back_production()
