"""From workflows and recipes to Dagster definitions."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import dagster as dg

from kitchen_assets.beta import code_references, versioned_output
from kitchen_assets.branching import conditional_graph
from kitchen_assets.composition import (
    CheckOutcome,
    CheckpointJob,
    ExternalStage,
    Gate,
    Loop,
    Stage,
    StageResult,
    Workflow,
)
from kitchen_assets.context import StageContext, resource_keys
from kitchen_assets.control import Conditional
from kitchen_assets.execution import KitchenFailure, run_stage
from kitchen_assets.performing import AssetStep, as_stages, asset_steps, earlier_steps, perform_stage
from kitchen_assets.tags import BACKEND, KIND, RECIPE, WORKFLOW
from kitchen_resources.recipes.recipe import Recipe


class RecipeAssets:
    """The Dagster definitions of one recipe.

    Args:
        workflow: How it is trained.
        recipe: What is trained; its definition gives the name.
        location: Name of the code location, part of names that are shared across an instance.
        upstream: Names of the recipes whose registered models it reads, and of those that they read, nearest first.
        ports: Keys of the resources that its stages ask for besides the kitchen's own.
    """

    def __init__(
        self,
        workflow: Workflow,
        recipe: Recipe,
        location: str,
        upstream: Sequence[str] = (),
        ports: Sequence[str] = (),
    ) -> None:
        self.workflow = workflow
        self.recipe = recipe
        self.name = recipe.definition.name
        self._location = location
        self.keys = {*resource_keys(self.name, *upstream), *ports}
        self._placed = asset_steps(workflow.stages)
        self._made = [step for step, _ in self._placed if not isinstance(step, ExternalStage)]
        conditions = [step for step in self._made if isinstance(step, Conditional)]
        self._inside = {each.name for step in conditions for each in as_stages((*step.then, *step.otherwise))}
        self._earlier = earlier_steps(workflow.stages)
        self._upstream = upstream

    # Definitions.

    def assets(self) -> list[dg.AssetsDefinition | dg.AssetSpec]:
        """All assets, in the workflow's order."""
        made = [self._asset(step, after) for step, after in self._placed]
        before = self._placed[-1][0].name
        for step in (step for step in self.workflow.promotion if isinstance(step, Stage)):
            made.append(self._asset(step, step.after if step.after is not None else (before,)))
            before = step.name
        return made

    def checks(self) -> list[dg.AssetChecksDefinition]:
        """The gates of the promotion job."""
        return [self._gate(step) for step in self.workflow.promotion if isinstance(step, Gate)]

    def _gate_keys(self) -> list[dg.AssetCheckKey]:
        steps = [step for step in self.workflow.promotion if isinstance(step, Gate)]
        return [dg.AssetCheckKey(self.key(step.asset), step.name) for step in steps]

    def jobs(self) -> list[Any]:
        """The training job, named as the recipe, and the promotion job."""
        stages = [self.key(step.name) for step in self._made]
        selection = dg.AssetSelection.assets(*stages)
        gates = self._gate_keys()
        jobs = [
            dg.define_asset_job(
                self.name,
                selection=selection - dg.AssetSelection.checks(*gates) if gates else selection,
                description=self.recipe.definition.description or self.workflow.description,
                tags=self._tags("training"),
            )
        ]
        promoted = [self.key(step.name) for step in self.workflow.promotion if isinstance(step, Stage)]
        if promoted:
            jobs.append(
                dg.define_asset_job(
                    f"{self.name}_promote",
                    selection=dg.AssetSelection.assets(*promoted) | dg.AssetSelection.checks(*gates),
                    description=f"Move the alias `production` of {self.name}, if the gate lets it through.",
                    tags=self._tags("promotion"),
                )
            )
        return jobs

    def checkpoint_jobs(self) -> list[dg.JobDefinition]:
        """A job for each thing that can be done with one of the recipe's checkpoints."""
        return [self._checkpoint_job(job) for job in self.workflow.checkpoint_jobs]

    def _checkpoint_job(self, job: CheckpointJob) -> dg.JobDefinition:
        @dg.op(
            name=f"{self.name}__{job.name}",
            required_resource_keys=self.keys,
            description=job.description,
            config_schema={"checkpoint": dg.Field(str, description="Key of its partition: 3f2a91c04b77/000000400")},
            out=dg.Out(dg.Nothing),
        )
        def work(context: dg.OpExecutionContext) -> Any:
            found = self.run(context, job.name, lambda kitchen: job.execute(kitchen, context.op_config["checkpoint"]))
            yield dg.Output(None, metadata=dict(found))

        @dg.job(name=f"{self.name}_{job.name}", description=job.description, tags=self._tags("maintenance"))
        def compiled() -> None:
            work()

        return compiled

    def chain(self) -> list[Any]:
        """A job for each recipe that this one reads the model of: it runs that one and then this, in one run."""
        return [
            dg.define_asset_job(
                f"{name}_then_{self.name}",
                selection=self._chained(name),
                description=f"Runs {name} to its registered model, and {self.name} from that.",
                tags={**self._tags("training"), RECIPE: self.name},
            )
            for name in read_recipes(self.recipe, chained=True)
        ]

    def _chained(self, name: str) -> dg.AssetSelection:
        stages = [step.name for step in self._made]
        gates = self._gate_keys()
        registered = dg.AssetKey([name, "registered_model"])
        within = dg.AssetSelection.key_prefixes([name])
        first = within & dg.AssetSelection.assets(registered).upstream().materializable()
        own = dg.AssetSelection.assets(*(self.key(stage) for stage in stages))
        gates.append(dg.AssetCheckKey(registered, "promotion_gate"))
        return (first | own) - dg.AssetSelection.checks(*gates)

    def schedules(self) -> list[dg.ScheduleDefinition]:
        """The recipe's own schedule, off until it is switched on."""
        timetable = self.recipe.definition.schedule
        if timetable is None:
            return []
        return [
            dg.ScheduleDefinition(
                name=f"{self.name}_schedule",
                job_name=self.name,
                cron_schedule=timetable.cron,
                execution_timezone=timetable.timezone,
                default_status=dg.DefaultScheduleStatus.STOPPED,
                description=f"Launches {self.name} at {timetable.cron} ({timetable.timezone}).",
            )
        ]

    def key(self, stage: str) -> dg.AssetKey:
        """Key of a stage's asset."""
        return dg.AssetKey([self.name, stage])

    # Assets.

    def _asset(self, step: AssetStep, after: Sequence[str]) -> dg.AssetsDefinition | dg.AssetSpec:
        if isinstance(step, ExternalStage):
            return dg.AssetSpec(
                key=self.key(step.name),
                deps=[self.key(name) for name in after],
                description=step.description,
                group_name=step.group,
                kinds=set(step.kinds),
                owners=list(self.recipe.definition.owners),
                partitions_def=self.checkpoint_partitions(),
                metadata=self.references(None),
            )
        if isinstance(step, Conditional):
            return conditional_graph(self, step, after)
        return self._loop(step, after) if isinstance(step, Loop) else self._stage(step, after)

    def _read_models(self) -> list[dg.AssetKey]:
        """The registered models of other recipes that this one is trained from: the edges of its lineage to them."""
        return [dg.AssetKey([name, "registered_model"]) for name in read_recipes(self.recipe)]

    def checkpoint_partitions(self) -> dg.DynamicPartitionsDefinition:
        """The partitions of the recipe's checkpoints."""
        return dg.DynamicPartitionsDefinition(name=partitions_name(self._location, self.name))

    def _stage(self, step: Stage, after: Sequence[str]) -> dg.AssetsDefinition:
        key = self.key(step.name)
        read = self._read_models() if step.reads_models and step.group == "datasets" else []

        @dg.asset(
            key=key,
            deps=[*(self.key(name) for name in after), *read],
            description=step.description,
            group_name=step.group,
            kinds=set(step.kinds),
            owners=list(self.recipe.definition.owners),
            code_version=step.code_version,
            required_resource_keys=self.keys,
            metadata=self.references(step.execute),
            check_specs=[dg.AssetCheckSpec(name, asset=key, blocking=True) for name in step.checks],
            output_required=not step.optional,
        )
        def compiled(context: dg.AssetExecutionContext):  # type: ignore[no-untyped-def]  # Dagster reads a return annotation
            result = self.perform(context, step)
            if result is None:
                return
            yield dg.MaterializeResult(
                asset_key=key,
                metadata=dict(result.metadata),
                data_version=dg.DataVersion(result.data_version),
                check_results=[_check_result(outcome, key) for outcome in result.checks],
            )

        return compiled

    def _loop(self, step: Loop, after: Sequence[str]) -> dg.AssetsDefinition:
        prefix = f"{self.name}__"
        key = self.key(step.name)
        checks = [
            dg.AssetCheckSpec(check.name, asset=key, blocking=True, description=check.description)
            for check in step.checks
        ]

        ins = {
            **{name: self.key(name) for name in after},
            **{f"{key.path[0]}__{key.path[-1]}": key for key in self._read_models()},
        }

        @dg.op(
            name=f"{prefix}{step.plan.__name__}",
            ins={name: dg.In(dg.Nothing) for name in ins},
            out={step.turn_name: dg.DynamicOut(int, io_manager_key="epoch_references")},
            required_resource_keys=self.keys,
            description=described_op(step.plan),
        )
        def plan(context: dg.OpExecutionContext) -> Any:
            for number in self.run(context, step.plan.__name__, step.plan):
                yield dg.DynamicOutput(
                    number, mapping_key=f"{step.turn_name}_{number:04d}", output_name=step.turn_name
                )

        @dg.op(
            name=f"{prefix}{step.turn.__name__}",
            out=dg.Out(dg.Any, io_manager_key="epoch_references"),
            required_resource_keys=self.keys,
            description=described_op(step.turn),
        )
        def turn(context: dg.OpExecutionContext, number: int) -> Any:
            try:
                result = self.run(context, step.turn.__name__, lambda kitchen: step.turn(kitchen, number))
            except KitchenFailure as failure:
                yield from _failed_check(step, failure, key)
                raise
            yield dg.Output(result)

        @dg.op(
            name=f"{prefix}{step.finish.__name__}",
            out={"result": dg.Out(dg.Nothing), **{check.name: dg.Out(dg.Nothing) for check in step.checks}},
            required_resource_keys=self.keys,
            description=described_op(step.finish),
        )
        def finish(context: dg.OpExecutionContext, turns: list[Any]) -> Any:
            try:
                result = self.run(context, step.name, lambda kitchen: step.finish(kitchen, turns))
            except KitchenFailure as failure:
                yield from _failed_check(step, failure, key)
                raise
            yield versioned_output(result.data_version, result.metadata)
            for outcome in result.checks:
                yield _check_result(outcome, key)

        def compose(**ins: Any) -> Any:
            planned = plan(**ins)
            outputs = finish(planned.map(turn).collect())
            if not checks:
                return outputs
            return {
                "result": outputs.result,
                **{spec.get_python_identifier(): getattr(outputs, spec.name) for spec in checks},
            }

        # Dagster reads the inputs of a graph from the function's signature.
        compose.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ins]
        )
        compose.__name__ = step.name
        asset = dg.graph_asset(
            name=step.name,
            key_prefix=[self.name],
            ins={name: dg.AssetIn(key=key, dagster_type=dg.Nothing) for name, key in ins.items()},
            description=step.description,
            group_name=step.group,
            kinds=set(step.kinds),
            owners=list(self.recipe.definition.owners),
            metadata=self.references(step.turn),
            check_specs=checks,
        )(compose)
        return asset.map_asset_specs(lambda spec: spec.replace_attributes(code_version=step.code_version))

    def perform(self, context: Any, step: Stage) -> StageResult | None:
        """Do a stage with its hooks in a Dagster step."""

        def work(kitchen: StageContext) -> StageResult | None:
            result = perform_stage(kitchen, step)
            if step.name in self._inside:
                kitchen.launch.write(f"made-{step.name}", {"version": result.data_version if result else ""})
            return result

        found: StageResult | None = self.run(context, step.name, work, reads_models=step.reads_models)
        return found

    def _gate(self, step: Gate) -> dg.AssetChecksDefinition:
        key = self.key(step.asset)

        @dg.asset_check(
            asset=key,
            name=step.name,
            blocking=True,
            description=step.description,
            required_resource_keys=self.keys,
        )
        def decide(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
            blocking = self._promotes(context)
            outcome = self.run(context, step.name, lambda kitchen: replace(step.decide(kitchen), blocking=blocking))
            if blocking and not outcome.passed:
                context.log.error(outcome.description)
            return _check_result(outcome, key)

        return decide

    # Running.

    def run(self, context: Any, name: str, work: Callable[..., Any], *, reads_models: bool = True) -> Any:
        """Do a stage's work in a Dagster step; see `run_stage`."""
        return run_stage(
            context,
            self.name,
            partitions_name(self._location, self.name),
            self.workflow.name,
            name,
            ends=self._ends(context),
            needs_preflight=name
            not in {step.name for step in (*self.workflow.promotion, *self.workflow.checkpoint_jobs)},
            reads_models=reads_models,
            steps=self._earlier.get(name, []),
            work=work,
        )

    def _promotes(self, context: Any) -> bool:
        """Whether a run is to move `production`; a training that is judged by the way doesn't fail by the gate."""
        return bool(context.run.job_name == f"{self.name}_promote")

    def _ends(self, context: Any) -> list[str]:
        """The stages with which this run is over: of those that it makes, the ones that no other waits for."""
        # Empty where a whole job runs in process.
        selected = context.run.asset_selection
        training = [step.name for step in self._made]
        promoted = [step.name for step in self.workflow.promotion if isinstance(step, Stage)]
        made = promoted if self._promotes(context) else training
        if selected:
            made = [name for name in (*training, *promoted) if self.key(name) in selected]
        if not set(made) <= set(training):
            return made[-1:]
        waited_for = {before for name in made for before in self._earlier.get(name, ())}
        return [name for name in made if name not in waited_for]

    def _tags(self, kind: str) -> dict[str, str]:
        return {
            RECIPE: self.name,
            WORKFLOW: self.workflow.name,
            KIND: kind,
            # The default backend of this location; a launch that chooses another says so by this tag, on which
            # the instance's run limits act.
            **({BACKEND: "trl"} if kind == "training" else {}),
            # Re-execution starts at the plan, which asks the store what is missing.
            "dagster/retry_strategy": "ALL_STEPS",
            **dict(self.recipe.definition.tags),
        }

    def references(self, function: Callable[..., Any] | None) -> dict[str, Any]:
        """Where the stage and the recipe are written, as the UI opens them."""
        places: list[tuple[str, int, str]] = []
        if function is not None:
            path, line = _place(function)
            if path:
                places.append((path, line, "stage"))
        path, _, written = self.recipe.definition.source.rpartition(":")
        if path:
            places.append((path, int(written), f"recipe {self.name}"))
        return code_references(places)


def read_recipes(recipe: Recipe, *, chained: bool = False) -> list[str]:
    """Names of the recipes whose registered models a recipe reads by its definition, each once.

    Args:
        recipe: The recipe.
        chained: Only those of which it takes what is registered newly, and not a version or alias.
    """
    named = (recipe.definition.base_from, recipe.definition.teacher_from)
    return list(dict.fromkeys(name.partition("@")[0] for name in named if name and not (chained and "@" in name)))


def partitions_name(location: str, recipe_name: str) -> str:
    """Name of the partitions of a recipe's checkpoints; shared across an instance, so it carries the location's."""
    return f"{location}__{recipe_name}__checkpoints"


@cache
def _place(function: Callable[..., Any]) -> tuple[str, int]:
    """Path and line of a function's source; once for all recipes, for the file is read in pieces to find it."""
    path = inspect.getsourcefile(function)
    return (path, inspect.getsourcelines(function)[1]) if path else ("", 0)


def described_op(function: Callable[..., Any]) -> str:
    """The first paragraph of a function's docstring."""
    return (inspect.getdoc(function) or "").split("\n\n")[0]


def _failed_check(step: Loop, failure: KitchenFailure, key: dg.AssetKey) -> Iterator[dg.AssetCheckEvaluation]:
    """A loop's check that fails with the step: there is no asset to go with it, and its outcome is an event alone."""
    for outcome in (check.of_error(failure.error) for check in step.checks):
        if outcome is not None:
            yield dg.AssetCheckEvaluation(
                asset_key=key,
                check_name=outcome.name,
                passed=outcome.passed,
                metadata=dict(outcome.metadata),
                description=outcome.description,
                severity=dg.AssetCheckSeverity.ERROR,
                blocking=True,
            )


def _check_result(outcome: CheckOutcome, key: dg.AssetKey) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=outcome.name,
        passed=outcome.passed,
        severity=dg.AssetCheckSeverity.ERROR if outcome.blocking else dg.AssetCheckSeverity.WARN,
        description=outcome.description,
        metadata=dict(outcome.metadata),
    )
