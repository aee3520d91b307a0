"""How a workflow is written: a list of stages, compiled to Dagster assets, graphs and jobs.

    supervised = Workflow(
        name="supervised",
        recipe=SupervisedRecipe,
        stages=[raw, dataset, model, evaluation, registered_model],
        ...
    )

A stage is a function from a `StageContext` to a `StageResult`, and becomes an asset named `<recipe>/<stage>`. A loop
is three functions (which turns, one turn, the end) and becomes a graph asset whose turns are dynamic outputs. No value
passes between stages through Dagster: what they share they read from the store, by the launch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kitchen_assets.context import StageContext
from kitchen_resources.errors import KitchenError
from kitchen_resources.recipes.recipe import Recipe


@dataclass(frozen=True)
class CheckOutcome:
    """The outcome of one of a stage's checks.

    Attributes:
        name: One of the stage's `checks`.
        passed: Whether it passed.
        description: What was found.
        metadata: Numbers and tables of it, as Dagster metadata.
        blocking: Whether not passing stops what is downstream and fails the run; else it only warns.
    """

    name: str
    passed: bool
    description: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    blocking: bool = True


@dataclass(frozen=True)
class StageResult:
    """What a stage made.

    Attributes:
        data_version: Content digest: the same content has the same version, and makes nothing downstream stale.
        metadata: What a person should see, as Dagster metadata.
        checks: One outcome for each of the stage's checks.
    """

    data_version: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[CheckOutcome] = ()


@dataclass(frozen=True)
class Stage:
    """A step of a workflow that makes one asset.

    Attributes:
        name: Name of the asset.
        execute: Makes it; inside a loop or a condition it may return None.
        description: What it is; markdown.
        group: Noun it belongs to: datasets, training, checkpoints, evaluation, registry.
        kinds: Up to three labels that the UI shows.
        code_version: Raised by hand when the same inputs would give another result.
        checks: Names of its blocking checks.
        after: Names of the assets it needs; None for the stage before it in the list.
        optional: Whether it may return None, and leave the asset as it is.
        reads_models: Whether it reads the base model, and so waits for the recipe that this one builds on.
        validate: Raises when what the stage needs isn't there; called before it.
        cleanup: Called after it, whether it succeeded, failed or was refused.
        timeout_s: How long it may take, in seconds; None for as long as it takes.
        retries: How often it is done again when it failed and a repeat may succeed.
        retry_wait_s: How long to wait before that, in seconds.
    """

    name: str
    execute: Callable[[StageContext], StageResult | None]
    description: str
    group: str
    kinds: frozenset[str] = frozenset()
    code_version: str = "1"
    checks: tuple[str, ...] = ()
    after: tuple[str, ...] | None = None
    optional: bool = False
    reads_models: bool = True
    validate: Callable[[StageContext], None] | None = None
    cleanup: Callable[[StageContext], None] | None = None
    timeout_s: float | None = None
    retries: int = 0
    retry_wait_s: float = 0.0


@dataclass(frozen=True)
class ExternalStage:
    """An asset that a loop's turns bring forth while they run, in partitions of its own; nobody materializes it alone.

    Attributes:
        name: Name of the asset.
        description: What it is; markdown.
        group: As in Stage.
        kinds: As in Stage.
        after: As in Stage.
    """

    name: str
    description: str
    group: str
    kinds: frozenset[str] = frozenset()
    after: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LoopCheck:
    """A blocking check on the asset of a loop, decided by the loop's end.

    Attributes:
        name: Name of the check.
        description: What it asks.
        of_error: Its failed outcome, when that is what an error of a turn or of the end says; else None.
    """

    name: str
    description: str
    of_error: Callable[[KitchenError], CheckOutcome | None]


@dataclass(frozen=True)
class Loop:
    """A step of a workflow that makes one asset in turns.

    The turns are siblings to Dagster: they may be retried, reordered or dropped. So a turn must mean "make the result
    of turn k exist", whatever was done before, and `finish` must make what Dagster never scheduled.

    Attributes:
        name: Name of the asset.
        plan: The numbers of the turns that are missing.
        turn: Makes the result of one turn exist; returns a small JSON value.
        finish: Makes the rest, and the asset; gets what the turns returned, in no particular order.
        turn_name: What a turn is called, such as `epoch`.
        description: As in Stage.
        group: As in Stage.
        kinds: As in Stage.
        code_version: As in Stage.
        checks: Its checks; `finish` gives one outcome for each, or fails.
        after: As in Stage; an external asset orders nothing, so name what must really come first as well.
    """

    name: str
    plan: Callable[[StageContext], Iterable[int]]
    turn: Callable[[StageContext, int], Any]
    finish: Callable[[StageContext, list[Any]], StageResult]
    turn_name: str
    description: str
    group: str
    kinds: frozenset[str] = frozenset()
    code_version: str = "1"
    checks: tuple[LoopCheck, ...] = ()
    after: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Gate:
    """A blocking check on an asset, decided in the promotion job.

    Attributes:
        name: Name of the check.
        asset: Name of the asset it is on.
        decide: Decides it.
        description: What it asks.
    """

    name: str
    asset: str
    decide: Callable[[StageContext], CheckOutcome]
    description: str


@dataclass(frozen=True)
class CheckpointJob:
    """Something to do with one checkpoint of a run, as a job `<recipe>_<name>` of its own.

    Attributes:
        name: Name of the job, after the recipe's.
        execute: Does it; gets the checkpoint's partition key.
        description: What it does; markdown.
    """

    name: str
    execute: Callable[[StageContext, str], Mapping[str, Any]]
    description: str


@dataclass(frozen=True)
class Workflow:
    """A way to train, as the list of its stages.

    Attributes:
        name: Name of the workflow, which recipe files give as `workflow`.
        recipe: Class of its recipes: one of the methods', or a subclass with fields of its own.
        description: What it does; markdown.
        stages: In order; each needs the one before it unless it says otherwise. Besides stages, what `control` has: loops,
            conditions, branches side by side, steps of other workflows.
        promotion: The gate and the stages of the job `<recipe>_promote`.
        checkpoint_jobs: What can be done with one checkpoint.
        required_ports: Resources of the location that its stages ask for by `StageContext.port`, by key.
        optional_ports: Resources that they use where the location has them.
    """

    name: str
    recipe: type[Recipe]
    description: str
    stages: Sequence[Any]
    promotion: Sequence[Gate | Stage] = ()
    checkpoint_jobs: Sequence[CheckpointJob] = ()
    required_ports: tuple[str, ...] = ()
    optional_ports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what Dagster can't express.

        Raises:
            ConfigError: See `control.check_steps`.
        """
        from kitchen_assets.control import check_steps

        check_steps(self.name, self.stages)


def stage(
    *,
    group: str,
    kinds: Iterable[str] = (),
    code_version: str = "1",
    checks: Sequence[str] = (),
    after: Sequence[str] | None = None,
    optional: bool = False,
    reads_models: bool = True,
    validate: Callable[[StageContext], None] | None = None,
    cleanup: Callable[[StageContext], None] | None = None,
    timeout_s: float | None = None,
    retries: int = 0,
    retry_wait_s: float = 0.0,
) -> Callable[[Callable[[StageContext], StageResult | None]], Stage]:
    """Make a stage of a function; its name and docstring are the asset's. For the rest see `Stage`."""

    def make(function: Callable[[StageContext], StageResult | None]) -> Stage:
        return Stage(
            name=function.__name__,
            execute=function,
            description=described(function),
            group=group,
            kinds=frozenset(kinds),
            code_version=code_version,
            checks=tuple(checks),
            after=None if after is None else tuple(after),
            optional=optional,
            reads_models=reads_models,
            validate=validate,
            cleanup=cleanup,
            timeout_s=timeout_s,
            retries=retries,
            retry_wait_s=retry_wait_s,
        )

    return make


def described(function: Callable[..., Any]) -> str:
    """A function's docstring without its indentation."""
    lines = (function.__doc__ or "").strip().splitlines()
    return "\n".join([lines[0], *(line.strip() for line in lines[1:])]) if lines else ""
