"""A run that somebody stops is canceled: on every door, and not only where the UI's Terminate was clicked.

Dagster calls a run that Ctrl-C or SIGTERM ended a failure. It would look broken, and be taken for one to go on with.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

INTERRUPTS = (KeyboardInterrupt, dg.DagsterExecutionInterruptedError)


@contextmanager
def canceled_by_interrupts(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Note on the run that an interrupt which comes through was asked for, so that the run ends as canceled."""
    try:
        yield
    except INTERRUPTS:
        run = instance.get_run_by_id(run_id)
        if run is not None and run.status == dg.DagsterRunStatus.STARTED:
            instance.report_run_canceling(run, message="The run was interrupted: it stops, and shows as canceled.")
        raise
