"""Control flow of workflows: loops, conditions, branches side by side, and steps taken over from elsewhere.

    stages=[
        load,
        loop("epochs", over=epochs, ordered=True, body=[
            loop("batches", over=batches, ordered=True, body=[forward_backward, optim_step]),
            conditional("due", when=is_due, then=[save]),
        ]),
        parallel([measure], [describe]),
        finish,
    ]

All of it is compiled to Dagster assets and graphs; what Dagster can't express is refused when the workflow is made.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Union

from kitchen_assets.composition import ExternalStage, Loop, Stage
from kitchen_assets.context import StageContext
from kitchen_resources.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


@dataclass(frozen=True)
class Turns:
    """Steps that are done again for each of several things; one of the two kinds below.

    Attributes:
        name: Name of the asset, and of the turn in `kitchen.turns`.
        over: Gives what the turns are about, the same at every call.
        body: What a turn does, in order.
        description: As in Stage.
        group: As in Stage.
        kinds: As in Stage.
        code_version: As in Stage.
        after: As in Stage.
    """

    name: str
    over: Callable[[StageContext], Iterable[Any]]
    body: tuple["Node", ...]
    description: str = ""
    group: str = "training"
    kinds: frozenset[str] = frozenset()
    code_version: str = "1"
    after: tuple[str, ...] | None = None


class OrderedLoop(Turns):
    """Turns one after the other, in one Dagster step: each goes on from what the one before left in `kitchen.state`.

    A finished turn is on record in the store. A run that was killed and is executed again goes on with the next one.
    """


class IndependentLoop(Turns):
    """Turns that need nothing of each other: a Dagster step each (dynamic outputs), which may run at once.

    Each starts from the state before the loop; what it leaves in it is, afterwards, an item of `kitchen.state[name]`.
    """


@dataclass(frozen=True)
class Conditional:
    """Steps that are taken only when something holds. As a step of a workflow it is a graph, whose other way is skipped.

    Attributes:
        name: Name of the asset: which way was taken.
        when: Decides.
        then: Steps when it holds.
        otherwise: Steps when it doesn't.
        description: As in Stage.
        group: As in Stage.
        after: As in Stage.
    """

    name: str
    when: Callable[[StageContext], bool]
    then: tuple["Node", ...]
    otherwise: tuple["Node", ...] = ()
    description: str = ""
    group: str = "training"
    after: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Parallel:
    """Branches side by side; what follows waits for all of them.

    Attributes:
        branches: The steps of each.
    """

    branches: tuple[tuple["Node", ...], ...]


@dataclass(frozen=True)
class Sub:
    """Steps of another workflow, in this place.

    Attributes:
        name: What they are called in messages.
        steps: The steps.
    """

    name: str
    steps: tuple["Node", ...]


Node = Union[Stage, ExternalStage, Loop, OrderedLoop, IndependentLoop, Conditional, Parallel, Sub]


def loop(
    name: str,
    *,
    over: Callable[[StageContext], Iterable[Any]],
    body: Sequence[Node],
    ordered: bool,
    description: str = "",
    group: str = "training",
    kinds: Iterable[str] = (),
    code_version: str = "1",
    after: Sequence[str] | None = None,
) -> OrderedLoop | IndependentLoop:
    """Steps that are done again for each of several things.

    Args:
        name: Name of the asset.
        over: Gives the things, the same ones at every call.
        body: The steps of a turn.
        ordered: Whether each turn needs the one before. Ordered turns are one Dagster step; others are a step each.
        description: As in Stage.
        group: As in Stage.
        kinds: As in Stage.
        code_version: As in Stage.
        after: As in Stage.
    """
    kind = OrderedLoop if ordered else IndependentLoop
    return kind(
        name=name,
        over=over,
        body=tuple(body),
        description=description or f"For each of {getattr(over, '__name__', 'several things')}: {_said(body)}.",
        group=group,
        kinds=frozenset(kinds),
        code_version=code_version,
        after=None if after is None else tuple(after),
    )


def conditional(
    name: str,
    *,
    when: Callable[[StageContext], bool],
    then: Sequence[Node],
    otherwise: Sequence[Node] = (),
    description: str = "",
    group: str = "training",
    after: Sequence[str] | None = None,
) -> Conditional:
    """Steps that are taken only when something holds; see `Conditional`."""
    return Conditional(
        name=name,
        when=when,
        then=tuple(then),
        otherwise=tuple(otherwise),
        description=description or f"When {getattr(when, '__name__', 'it holds')}: {_said(then)}.",
        group=group,
        after=None if after is None else tuple(after),
    )


def parallel(*branches: Sequence[Node]) -> Parallel:
    """Branches side by side; see `Parallel`."""
    return Parallel(tuple(tuple(branch) for branch in branches))


def sub_workflow(name: str, steps: Sequence[Node]) -> Sub:
    """Steps of another workflow in this place: `sub_workflow("prepare", other.stages[:2])`."""
    return Sub(name, tuple(steps))


def children(node: Node) -> Iterator[Node]:
    """What a node consists of."""
    if isinstance(node, Turns):
        yield from node.body
    elif isinstance(node, Conditional):
        yield from (*node.then, *node.otherwise)
    elif isinstance(node, Parallel):
        for branch in node.branches:
            yield from branch
    elif isinstance(node, Sub):
        yield from node.steps


def every_node(steps: Sequence[Node]) -> Iterator[Node]:
    """All nodes of a workflow, in order, with what they consist of."""
    for step in steps:
        yield step
        yield from every_node(list(children(step)))


def place(
    steps: Sequence[Node], before: tuple[str, ...] = ()
) -> tuple[list[tuple[Node, tuple[str, ...]]], tuple[str, ...]]:
    """The assets of a workflow, each with the names of those that it needs; and the names of the last ones.

    Args:
        steps: The workflow's steps.
        before: Names of what the first of them needs.
    """
    placed: list[tuple[Node, tuple[str, ...]]] = []
    for step in steps:
        if isinstance(step, Sub):
            inner, before = place(step.steps, before)
            placed += inner
        elif isinstance(step, Parallel):
            ends: list[str] = []
            for branch in step.branches:
                inner, end = place(branch, before)
                placed += inner
                ends += end
            before = tuple(ends)
        else:
            placed.append((step, before if step.after is None else step.after))
            before = (step.name,)
    return placed, before


def check_steps(workflow: str, steps: Sequence[Node]) -> None:
    """Refuse what Dagster can't express, or what would be lost.

    Raises:
        ConfigError: A name is taken twice or isn't one, a loop of independent turns stands inside another step, a stage
            inside one has checks, or a branch is empty.
    """
    where = f"workflow {workflow}"
    if not steps:
        raise ConfigError("has no stages", where=where, fix="stages=[…]")
    seen: set[str] = set()
    for node in every_node(steps):
        name = getattr(node, "name", None)
        if name is None or isinstance(node, Sub):
            continue
        if not _NAME.match(name):
            raise ConfigError(f"{name!r} can't be a step's name", where=where, fix="lower-case letters, digits and _")
        if name in seen:
            raise ConfigError(f"two steps are called {name!r}", where=where, fix="rename one of them")
        seen.add(name)
    for node in every_node(steps):
        if isinstance(node, Parallel) and (len(node.branches) < 2 or not all(node.branches)):
            raise ConfigError(
                "parallel wants two branches or more, none of them empty", where=where, fix="parallel([a], [b])"
            )
        if isinstance(node, Turns) and not node.body:
            raise ConfigError(f"the loop {node.name!r} has no body", where=where, fix="body=[…]")
        if isinstance(node, (Turns, Conditional)):
            for inner in every_node(list(children(node))):
                _check_inner(inner, f"{where}, {node.name}")


def _check_inner(node: Node, where: str) -> None:
    if isinstance(node, (IndependentLoop, Loop)):
        raise ConfigError(
            f"the loop {node.name!r} has turns of their own, which Dagster can't have inside another step",
            where=where,
            fix=f"loop({node.name!r}, …, ordered=True)",
        )
    if isinstance(node, ExternalStage):
        raise ConfigError(
            f"{node.name!r} is brought forth by no step here", where=where, fix="put it among the stages"
        )
    if isinstance(node, Stage) and (node.checks or node.optional):
        what = "checks" if node.checks else "may leave its asset as it is"
        raise ConfigError(
            f"{node.name!r} has {what}, and is no asset here"
            if node.checks
            else f"{node.name!r} {what}, and is no asset here",
            where=where,
            fix="put it among the stages",
        )


def _said(steps: Sequence[Node]) -> str:
    return ", ".join(str(getattr(step, "name", "…")) for step in steps)
