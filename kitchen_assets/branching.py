"""Conditions of a workflow as Dagster graphs."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from kitchen_assets.beta import versioned_output
from kitchen_assets.composition import Stage, described
from kitchen_assets.context import StageContext
from kitchen_assets.control import Conditional
from kitchen_assets.performing import as_stages
from kitchen_resources.digests import digest_json

if TYPE_CHECKING:
    from kitchen_assets.compiler import RecipeAssets


def conditional_graph(assets: "RecipeAssets", step: Conditional, after: Sequence[str]) -> dg.AssetsDefinition:
    """A condition as a graph: who decides, the steps of either way, of which one is skipped, and where they meet again.

    Args:
        assets: Of the recipe that it is a step of.
        step: The condition.
        after: Names of the assets that it needs.
    """
    stages = {"then": as_stages(step.then), "otherwise": as_stages(step.otherwise)}
    ways = {way: [_inner(assets, each) for each in steps] for way, steps in stages.items() if steps}

    @dg.op(
        name=f"{assets.name}__decide_{step.name}",
        ins={name: dg.In(dg.Nothing) for name in after},
        out={
            "decided": dg.Out(dg.Nothing),
            **{way: dg.Out(dg.Nothing, is_required=False) for way in ways},
        },
        required_resource_keys=assets.keys,
        description=described(step.when) or step.description,
    )
    def decide(context: dg.OpExecutionContext) -> Any:
        def decided(kitchen: StageContext) -> bool:
            holds = bool(step.when(kitchen))
            kitchen.launch.write(f"way-{step.name}", {"holds": holds})
            return holds

        holds = assets.run(context, f"decide_{step.name}", decided)
        yield dg.Output(None, "decided", metadata={"holds": holds})
        if (way := "then" if holds else "otherwise") in ways:
            yield dg.Output(None, way)

    @dg.op(
        name=f"{assets.name}__{step.name}_taken",
        ins={"ends": dg.In(dg.Nothing)},
        out={"result": dg.Out(dg.Nothing)},
        required_resource_keys=assets.keys,
        description=f"After either way of {step.name}.",
    )
    def taken(context: dg.OpExecutionContext) -> Any:
        def read(kitchen: StageContext) -> tuple[bool, str]:
            holds = bool(kitchen.launch.read(f"way-{step.name}")["holds"])
            taken = stages["then" if holds else "otherwise"]
            made = [kitchen.launch.read(f"made-{each.name}") for each in taken]
            return holds, digest_json([holds, made])

        holds, version = assets.run(context, step.name, read)
        yield versioned_output(version, {"way": "then" if holds else "otherwise"})

    def compose(**ins: Any) -> Any:
        found = decide(**ins)
        ends = [found.decided]
        for way, ops in ways.items():
            last = getattr(found, way)
            for op in ops:
                last = op(start=last)
            ends.append(last)
        return taken(ends=ends)

    compose.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in after]
    )
    compose.__name__ = step.name
    return dg.graph_asset(
        name=step.name,
        key_prefix=[assets.name],
        ins={name: dg.AssetIn(key=assets.key(name), dagster_type=dg.Nothing) for name in after},
        description=step.description,
        group_name=step.group,
        owners=list(assets.recipe.definition.owners),
        metadata=assets.references(step.when),
    )(compose)


def _inner(assets: "RecipeAssets", step: Stage) -> dg.OpDefinition:
    """A stage as an op of a graph; it makes no asset of its own."""

    @dg.op(
        name=f"{assets.name}__{step.name}",
        ins={"start": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
        required_resource_keys=assets.keys,
        description=step.description,
    )
    def compiled(context: dg.OpExecutionContext) -> Any:
        result = assets.perform(context, step)
        yield dg.Output(None, metadata=dict(result.metadata) if result is not None else {})

    return compiled
