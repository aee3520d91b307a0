"""The executor of the location: in process by default, switchable in run config.

A step costs 0.03 s in process, 9 s in a spawned process that imports trl, and about 1 s in one that is forked from a
server that has imported it (examples/configs/processes.yaml); the bits are the same.
"""

from typing import Any

import dagster as dg

from kitchen_assets.canceling import canceled_by_interrupts
from kitchen_assets.recovery import first_tags

_base = dg.multi_or_in_process_executor


@dg.executor(
    name="kitchen",
    config_schema=dg.Field(
        _base.config_schema.config_type,
        default_value={"in_process": {}},
        description="`in_process` (default), or `multiprocess` with a process for each step.",
    ),
    requirements=[],
)
def kitchen_executor(init_context: Any) -> Any:
    """Dagster's own executors, with the in-process one as the default."""
    create = _base.executor_creation_fn
    assert create is not None
    return _Cancelable(create(init_context))


class _Cancelable(dg.Executor):
    """An executor whose runs end as canceled when they are interrupted between two steps, too."""

    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> Any:
        return self._executor.retries

    @property
    def step_dependency_config(self) -> Any:
        return self._executor.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Any:
        plan_context.instance.add_run_tags(plan_context.run_id, first_tags(plan_context.dagster_run))
        with canceled_by_interrupts(plan_context.instance, plan_context.run_id):
            yield from self._executor.execute(plan_context, execution_plan)
