"""The executor of the location: in process by default, switchable in run config.

A step costs 0.03 s in process, 9 s in a spawned process that imports trl, and about 1 s in one that is forked from a
server that has imported it (examples/configs/processes.yaml); the bits are the same.
"""

from typing import Any

import dagster as dg

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
    return create(init_context)
