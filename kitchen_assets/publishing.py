"""The job that publishes a registered model on a hub; one in every location."""

from typing import Any

import dagster as dg
from pydantic import Field

from kitchen_assets.execution import KitchenFailure, refuse_environment
from kitchen_assets.shelf import push
from kitchen_resources.errors import KitchenError
from kitchen_resources.recipes.names import PUSH_JOB


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
    try:
        refuse_environment(context.run.run_config)
        blobs = context.resources.blobs.adapter()
        pushed = push(
            config.source,
            config.repo_id,
            private=config.private,
            branch=config.branch,
            merged=config.merged,
            blobs=blobs,
            registry=context.resources.registry.adapter(blobs),
        )
    except KitchenError as error:
        raise KitchenFailure(error) from None
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
