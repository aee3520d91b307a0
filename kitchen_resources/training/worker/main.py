"""What a worker process does: epochs of one job, as it is told to, until it is told to end.

Started as `python -m kitchen_resources.training.worker.main FOLDER`, alone or once a rank by torchrun. The first of the
ranks speaks through Dagster Pipes; all of them hear through the folder.
"""

import base64
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kitchen_resources.errors import KitchenError
from kitchen_resources.training.port import CheckpointDraft, LocalCheckpoint, StepMetrics
from kitchen_resources.training.worker.job_file import (
    checkpoint_from,
    job_from,
    result_value,
    steps_from,
)
from kitchen_resources.training.worker.mailbox import LauncherGone, Mailbox

Tell = Callable[[Mapping[str, Any]], None]

ENDED_WITH_ITS_LAUNCHER = 75
"""Exit status of a worker whose launcher is gone."""


def main(folder: Path) -> int:
    """Work until told to end; returns the exit status."""
    mailbox, rank = Mailbox(folder), int(os.environ.get("RANK", "0"))
    try:
        with ExitStack() as stack:
            _work(mailbox, rank, _teller(stack, rank))
        return 0
    except LauncherGone:
        return ENDED_WITH_ITS_LAUNCHER
    except BaseException as error:  # noqa: BLE001  (whatever went wrong is told to the launcher)
        mailbox.put(f"failed-{rank}", told(error))
        traceback.print_exc()
        return 1


def _work(mailbox: Mailbox, rank: int, tell: Tell) -> None:
    from kitchen_resources.training.pytorch.importing import import_trainer_libraries

    import_trainer_libraries()
    from kitchen_resources.training.trl.processes import require_world_size
    from kitchen_resources.training.trl.session import TrlSession

    told = mailbox.wait("job")
    asked, device = told["processes"], None
    if told["job"]["resolution"]["device"] != "cpu" and asked > 1:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    job = job_from(told["job"], rank=rank, device=device)
    job.scratch.mkdir(parents=True, exist_ok=True)
    require_world_size(asked, device=job.resolution.device)
    session = TrlSession(job, exact_inside=told["exact_inside"])
    number = 0
    while True:
        number += 1
        request = mailbox.wait(f"request-{number}")
        if request["end"]:
            return
        events = WorkerEvents(mailbox, number, rank, tell, request)
        done = session.train_epoch(request["epoch"], checkpoint_from(request["parent"]), events)
        if rank == 0:
            tell({"kind": "done", "request": number, **result_value(done)})


class WorkerEvents:
    """The `TrainingEvents` of a worker: the first rank asks the launcher, the others hear what it was told."""

    def __init__(self, mailbox: Mailbox, number: int, rank: int, tell: Tell, request: Mapping[str, Any]) -> None:
        self._mailbox = mailbox
        self._number = number
        self._rank = rank
        self._tell = tell
        self._request = request
        self._asked = 0

    def step(self, metrics: StepMetrics) -> None:
        """See `TrainingEvents.step`."""
        if self._rank == 0:
            self._mailbox.require_launcher()
            self._tell({"kind": "step", "metrics": asdict(metrics)})

    def stopping(self, *, exact: bool) -> bool:
        """See `TrainingEvents.stopping`."""
        return bool(self._answer({"kind": "stopping", "exact": exact})["stop"])

    def checkpoint(self, draft: CheckpointDraft) -> LocalCheckpoint:
        """See `TrainingEvents.checkpoint`."""
        value = {
            **asdict(draft),
            "folder": str(draft.folder),
            "records": {name: base64.b64encode(data).decode() for name, data in draft.records.items()},
        }
        published = checkpoint_from(self._answer({"kind": "checkpoint", "draft": value})["checkpoint"])
        assert published is not None
        return published

    def check(self) -> None:
        """See `TrainingEvents.check`: the launcher does, at every step."""

    def earlier_rows(self) -> Sequence[Sequence[int]]:
        """See `TrainingEvents.earlier_rows`."""
        return list(self._request["earlier_rows"])

    def earlier_steps(self) -> Sequence[StepMetrics]:
        """See `TrainingEvents.earlier_steps`."""
        return steps_from(self._request["earlier_steps"])

    def _answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """What the launcher says to a question, on every rank the same."""
        from kitchen_resources.training.trl.processes import from_first

        self._asked += 1
        name = f"answer-{self._number}-{self._asked}"
        answer = None
        if self._rank == 0:
            self._tell({**question, "answer": name})
            answer = self._mailbox.wait(name)
        shared: dict[str, Any] = from_first(answer)
        return shared


def _teller(stack: ExitStack, rank: int) -> Tell:
    """How a rank speaks: the first one through Dagster Pipes, the others not at all."""
    if rank:
        return lambda message: None
    from dagster_pipes import open_dagster_pipes

    pipes = stack.enter_context(open_dagster_pipes())

    def tell(message: Mapping[str, Any]) -> None:
        pipes.report_custom_message(dict(message))

    return tell


def told(error: BaseException) -> dict[str, Any]:
    """An error as JSON values, for the launcher to raise."""
    if isinstance(error, KitchenError):
        return {
            "type": type(error).__name__,
            "what": error.what,
            "where": error.where,
            "fix": error.fix,
            "mendable": error.mendable,
        }
    return {"type": "", "what": f"{type(error).__name__}: {error}", "where": "", "fix": "", "mendable": False}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
