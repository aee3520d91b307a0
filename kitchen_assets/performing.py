"""Doing what a workflow says, inside one Dagster step: a stage with its hooks, ordered turns, conditions, branches."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kitchen_assets.composition import ExternalStage, Loop, Stage, StageResult
from kitchen_assets.context import StageContext
from kitchen_assets.control import (
    Conditional,
    IndependentLoop,
    Node,
    OrderedLoop,
    Parallel,
    Sub,
    children,
    place,
)
from kitchen_assets.limits import time_limit
from kitchen_resources.digests import digest_json
from kitchen_resources.errors import ConfigError

AssetStep = Stage | ExternalStage | Loop | Conditional
"""What has an asset of its own."""


def perform_stage(kitchen: StageContext, stage: Stage) -> StageResult | None:
    """A stage, again as often as its `retries` say while it fails of what a repeat may mend."""
    before = kitchen.state.snapshot() if stage.retries else {}
    for attempt in range(stage.retries):
        try:
            return _perform_once(kitchen, stage)
        except Exception as error:
            if not is_worth_retrying(error):
                raise
            kitchen.warn(f"{stage.name}: attempt {attempt + 1} of {stage.retries + 1} failed: {error}")
            # As the stage found it: what a failed attempt left is not to be built on.
            kitchen.state.replace(before)
            time.sleep(stage.retry_wait_s)
    return _perform_once(kitchen, stage)


def _perform_once(kitchen: StageContext, stage: Stage) -> StageResult | None:
    """What a stage requires, then itself, and in any case what it leaves behind cleaned up."""
    try:
        with time_limit(stage.timeout_s, stage.name):
            if stage.validate is not None:
                stage.validate(kitchen)
            result = stage.execute(kitchen)
    except BaseException:
        if stage.cleanup is not None:
            try:
                stage.cleanup(kitchen)
            except Exception as error:  # noqa: BLE001  (why the stage failed is what matters)
                kitchen.warn(f"{stage.name}: its cleanup failed too: {error!r}")
        raise
    if stage.cleanup is not None:
        stage.cleanup(kitchen)
    return result


def perform(kitchen: StageContext, steps: Sequence[Node]) -> None:
    """Steps in order, in this process."""
    for step in steps:
        if isinstance(step, Stage):
            perform_stage(kitchen, step)
        elif isinstance(step, OrderedLoop):
            for value in step.over(kitchen):
                with kitchen.turn(step.name, value):
                    perform(kitchen, step.body)
        elif isinstance(step, Conditional):
            perform(kitchen, step.then if step.when(kitchen) else step.otherwise)
        elif isinstance(step, Parallel):
            with ThreadPoolExecutor(len(step.branches)) as pool:
                for done in [pool.submit(perform, kitchen, branch) for branch in step.branches]:
                    done.result()
        elif isinstance(step, Sub):
            perform(kitchen, step.steps)
        else:
            raise AssertionError(f"{step} was to be refused when the workflow was made")


def asset_steps(steps: Sequence[Node]) -> list[tuple[AssetStep, tuple[str, ...]]]:
    """The assets of a workflow, in order, each with the names of those that it needs."""
    return [(as_asset(node), after) for node, after in place(steps)[0]]


def earlier_steps(steps: Sequence[Node]) -> dict[str, list[str]]:
    """Of each step, and of the ops that stand for it, the names of the steps that are surely done before it, in order.

    Of branches side by side none is before the other.
    """
    order: list[str] = []
    above: dict[str, set[str]] = {}
    whole: dict[str, set[str]] = {}
    for node, after in place(steps)[0]:
        before = set().union(*(whole[name] for name in after if name in whole))
        name = _ops_of(node)[0]
        above.update(dict.fromkeys(_ops_of(node), before))
        inner: list[str] = []
        for way in (node.then, node.otherwise) if isinstance(node, Conditional) else ():
            done: list[str] = []
            for stage in as_stages(way):
                above[stage.name] = {*before, *done}
                done.append(stage.name)
            inner += done
        order += [*inner, name]
        whole[name] = {*before, name, *inner}
    return {name: [each for each in order if each in before] for name, before in above.items()}


def _ops_of(node: Node) -> list[str]:
    """The names under which the ops of an asset are executed."""
    name = str(getattr(node, "name", ""))
    if isinstance(node, Loop):
        return [name, node.plan.__name__, node.turn.__name__]
    if isinstance(node, IndependentLoop):
        return [name, f"plan_{name}", f"turn_of_{name}"]
    return [name, f"decide_{name}"] if isinstance(node, Conditional) else [name]


def as_asset(node: Node) -> AssetStep:
    """A node that has an asset of its own, as what is compiled."""
    if isinstance(node, OrderedLoop):
        return ordered_as_stage(node)
    if isinstance(node, IndependentLoop):
        return independent_as_loop(node)
    assert not isinstance(node, (Parallel, Sub))
    return node


def as_stages(steps: Sequence[Node]) -> list[Stage]:
    """The steps of a way that a condition may take, each as a stage."""
    made: list[Stage] = []
    for step in steps:
        if isinstance(step, Sub):
            made += as_stages(step.steps)
        elif isinstance(step, Stage):
            made.append(step)
        elif isinstance(step, OrderedLoop):
            made.append(ordered_as_stage(step))
        else:
            made.append(_as_stage(step))
    return made


def _as_stage(step: Node) -> Stage:
    """Branches or a further condition, done in one step."""
    name = getattr(step, "name", "") or "_and_".join(str(getattr(inner, "name", "")) for inner in children(step))

    def execute(kitchen: StageContext) -> StageResult:
        perform(kitchen, [step])
        return StageResult(digest_json(kitchen.state.snapshot()))

    return Stage(name=name, execute=execute, description=f"{name}, in one step.", group="training")


def is_worth_retrying(error: BaseException) -> bool:
    """Whether a repeat may succeed: not when the kitchen says that it can't."""
    return bool(getattr(error, "mendable", True))


def ordered_as_stage(loop: OrderedLoop) -> Stage:
    """An ordered loop as the stage that does its turns, each on record when it is finished."""

    def execute(kitchen: StageContext) -> StageResult:
        values = list(loop.over(kitchen))
        asked = digest_json([repr(value) for value in values])
        record = kitchen.launch.read(f"loop-{loop.name}") or {"turns": asked, "done": 0, "state": None}
        if record["turns"] != asked:
            raise ConfigError(
                f"its turns are others than when it was begun: {len(values)} now",
                where=f"loop {loop.name}",
                fix="give the same ones at every call, or launch it anew",
            )
        done: int = record["done"]
        if done:
            kitchen.state.replace(record["state"])
            kitchen.forget_objects()
            kitchen.say(f"{loop.name}: going on after turn {done} of {len(values)}")
        for number, value in list(enumerate(values, 1))[done:]:
            with kitchen.turn(loop.name, value):
                perform(kitchen, loop.body)
            state = kitchen.state.snapshot()
            kitchen.launch.write(f"loop-{loop.name}", {"turns": asked, "done": number, "state": state})
        return StageResult(digest_json(kitchen.state.snapshot()), {"turns": len(values)})

    return Stage(
        name=loop.name,
        execute=execute,
        description=loop.description,
        group=loop.group,
        kinds=loop.kinds,
        code_version=loop.code_version,
    )


def independent_as_loop(loop: IndependentLoop) -> Loop:
    """A loop of independent turns as the plan, the turn and the end that become dynamic outputs."""

    def make(kitchen: StageContext, number: int) -> Any:
        """Make the result of a turn exist."""
        note = f"turn-{loop.name}-{number:06d}"
        found = kitchen.launch.read(note)
        if found is None:
            value = list(loop.over(kitchen))[number - 1]
            with kitchen.turn(loop.name, value):
                perform(kitchen, loop.body)
            found = {"state": kitchen.state.snapshot()}
            kitchen.launch.write(note, found)
        return found["state"]

    def plan(kitchen: StageContext) -> Sequence[int]:
        """Which turns there are; those that are done are found so."""
        return range(1, len(list(loop.over(kitchen))) + 1)

    def turn(kitchen: StageContext, number: int) -> None:
        """One turn."""
        make(kitchen, number)
        # What it left is on record under its own name: its siblings must not see it.
        kitchen.state.forget_changes()

    def finish(kitchen: StageContext, _: list[Any]) -> StageResult:
        """What all turns left, in order; turns that Dagster dropped are made here."""
        results = []
        for number in plan(kitchen):
            results.append(make(kitchen, number))
            kitchen.state.forget_changes()
        kitchen.state[loop.name] = results
        return StageResult(digest_json(results), {"turns": len(results)})

    plan.__name__, turn.__name__, finish.__name__ = (
        f"plan_{loop.name}",
        f"turn_of_{loop.name}",
        f"finish_{loop.name}",
    )
    return Loop(
        name=loop.name,
        plan=plan,
        turn=turn,
        finish=finish,
        turn_name="turn",
        description=loop.description,
        group=loop.group,
        kinds=loop.kinds,
        code_version=loop.code_version,
    )
