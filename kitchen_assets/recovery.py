"""Which runs are lost, and which of those that failed are worth running again.

Running again is always safe: it goes on from what the store holds. It is worth it only where a repeat can mend what
went wrong: the process died, the lease was lost, a backend or store was away. A refused config or data set, a failed
check, a divergence or a cancellation would end the same way, or was meant.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import dagster as dg

from kitchen_assets.tags import (
    ATTEMPT,
    ERROR,
    EXPECTED,
    FINGERPRINT,
    FROM_STEP,
    IN_PROCESS,
    KIND,
    MENDABLE,
    REFUSED,
    RESUME_OF,
    RUN_OWN,
    WORKER,
)
from kitchen_resources.checkpoints.head import Head, Holder
from kitchen_resources.checkpoints.holder import has_rebooted, is_gone, this_holder
from kitchen_resources.checkpoints.lease import LEASE_TTL_S


def looks_until_lost(every_s: float) -> int:
    """At how many looks in a row a heartbeat must stand still before its holder is taken to be gone.

    Looks are counted, and not seconds by a clock that may be set.

    Args:
        every_s: Least pause between two looks, in seconds.
    """
    return 1 + math.ceil(3 * LEASE_TTL_S / every_s)


_DIED = frozenset({"", "UNKNOWN", "RUN_WORKER_RESTART", "START_TIMEOUT", "UNEXPECTED_TERMINATION"})
_CRASHES = frozenset({"ChildProcessCrashException", "DagsterSubprocessError"})


def worker_tag(run_id: str) -> dict[str, str]:
    """The tag that says which process executes a run: this one."""
    return {WORKER: json.dumps(asdict(this_holder(run_id)))}


def first_tags(run: dg.DagsterRun) -> dict[str, str]:
    """The tags of a run that starts: its process, and nothing of how the run ended that it re-executes."""
    return {**dict.fromkeys(RUN_OWN & run.tags.keys(), ""), **worker_tag(run.run_id)}


# Lost runs.


@dataclass(frozen=True)
class Seen:
    """A heartbeat, and at how many looks in a row it was this one."""

    token: int
    heartbeat: int
    times: int

    def again(self, head: Head) -> "Seen":
        """What is seen at the next look."""
        same = (head.token, head.heartbeat) == (self.token, self.heartbeat)
        return Seen(head.token, head.heartbeat, self.times + 1 if same else 1)


def lost_because(worker: str, run_id: str, head: Head | None, seen: Seen, *, looks: int) -> str:
    """Why a run that Dagster takes to be going is lost; empty when it isn't, or it can't be told.

    Args:
        worker: Its tag `kitchen/worker`; empty when it has none.
        run_id: The run.
        head: Head of what it trains, if it does.
        seen: The heartbeat of that head.
        looks: See `looks_until_lost`.
    """
    process = _process(worker)
    # A run that has only just been started again still has the tag of the run that it re-executes.
    if process is not None and process.run == run_id:
        if is_gone(process):
            return f"its process {process.pid} on {process.host.split('/')[0]} is gone"
        if has_rebooted(process):
            return f"{process.host.split('/')[0]} was started anew since"
    holds = head is not None and head.holder is not None and head.holder.run == run_id
    if holds and seen.times >= looks:
        return f"its heartbeat stood still at {seen.times} looks in a row"
    return ""


def _process(worker: str) -> Holder | None:
    """The process that a tag names; None when it names none, as whoever launches a run may give it any tag."""
    try:
        return Holder(**json.loads(worker))
    except (ValueError, TypeError):
        return None


# Failed runs.


@dataclass(frozen=True)
class Verdict:
    """Whether to run a failed run again, and why or why not."""

    resume: bool
    reason: str


def judge_failure(tags: Mapping[str, str], step_failures: Sequence[str]) -> Verdict:
    """Whether running again can mend what went wrong with a run.

    Args:
        tags: Tags of the run.
        step_failures: Class of the error of each of its steps that failed.
    """
    # Materialize tags nothing, but every run of the location's executor says which process it is.
    kind = tags.get(KIND, "training" if WORKER in tags else "run of something else")
    if kind != "training":
        return Verdict(False, f"it is a {kind}")
    if tags.get(IN_PROCESS):
        return Verdict(False, f"it was given what isn't in its config: {tags[IN_PROCESS]}")
    if tags.get(REFUSED):
        return Verdict(False, f"it was refused ({tags[REFUSED]})")
    if tags.get(ERROR):
        mendable = tags.get(MENDABLE) == "true"
        return Verdict(mendable, f"{tags[ERROR]} {'may pass' if mendable else 'would come again'}")
    others = sorted(set(step_failures) - _CRASHES)
    if others:
        return Verdict(False, f"{', '.join(others)} would come again")
    reason = tags.get("dagster/failure_reason", "")
    if not step_failures and reason not in _DIED:
        return Verdict(False, f"it failed outside of its steps ({reason})")
    return Verdict(True, "its process died")


@dataclass(frozen=True)
class Attempt:
    """One more attempt at a run.

    Attributes:
        number: From 1; it starts at 1 again when the one before has published something.
        wait_s: How long after the failure, in seconds.
        tags: Tags of the new run.
    """

    number: int
    wait_s: float
    tags: Mapping[str, str]


def next_attempt(run: dg.DagsterRun, head: Head | None, *, first_wait_s: float) -> Attempt:
    """What comes after a run that failed.

    Args:
        run: The run.
        head: Head of what it trains, if it came to that.
        first_wait_s: How long to wait before a second attempt in a row that got nowhere; each further one waits four
            times as long.
    """
    newest = max((entry.step for entry in head.entries()), default=0) if head else 0
    got_on = newest > number_tag(run, FROM_STEP)
    number = 1 if got_on else number_tag(run, ATTEMPT) + 1
    wait_s = 0.0 if number == 1 else first_wait_s * 4.0 ** (number - 2)
    kept = {
        name: value
        for name, value in run.tags.items()
        if not name.startswith(("dagster/", ".dagster/")) and name not in RUN_OWN
    }
    root = run.tags.get(RESUME_OF) or run.root_run_id or run.run_id
    planned = run.tags.get(FINGERPRINT) or run.tags.get(EXPECTED)
    expected = {EXPECTED: planned} if planned else {}
    return Attempt(
        number, wait_s, {**kept, **expected, RESUME_OF: root, ATTEMPT: str(number), FROM_STEP: str(newest)}
    )


def number_tag(run: dg.DagsterRun, name: str) -> int:
    """A tag that is a number; 0 when it isn't there, or isn't one."""
    value = run.tags.get(name, "")
    return int(value) if value.isdecimal() else 0
