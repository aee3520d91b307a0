"""What a service that trains on its own is to the kitchen: jobs that are made by name, and looked at by it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Phase = Literal["waiting", "working", "paused", "done", "failed", "stopping", "stopped", "gone", "unknown"]
"""`waiting`: it has not begun. `paused`: it is not at work, and may have been."""


@dataclass(frozen=True)
class JobStatus:
    """How a job stands.

    Attributes:
        phase: What the state means; `unknown` for one that this version has never heard of.
        state: As the service has it.
        said: What the service says about it, in words.
        mendable: Of one that failed: whether it may well fare better another time.
        progress: From 0 to 1; None where it isn't told.
        cost_usd: What it costs by the service's estimate, in US dollars; None where it isn't told.
        seconds: From its making to its end, in seconds; None where it isn't told.
        model: The service's name of what it makes.
        record: What else is worth keeping on record; no credential, and no link that opens anything.
    """

    phase: Phase
    state: str
    said: str = ""
    mendable: bool = False
    progress: float | None = None
    cost_usd: float | None = None
    seconds: float | None = None
    model: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)


class HostedJobs(Protocol):
    """Jobs at a service. Each method raises `BackendError`, retriable when the service may well answer it later."""

    @property
    def where(self) -> str:
        """The setting that names the service, for errors: `trainer.backend.fireworks_jobs`."""
        ...

    def place(self) -> Mapping[str, str]:
        """Where the jobs are, such as account and address: elsewhere a name says nothing of them."""
        ...

    def look(self, job: str) -> JobStatus | None:
        """How a job stands; None when there is none of that name."""
        ...

    def create(self, job: str, rows: Path) -> None:
        """Make a job, once the service has its rows; one that is there already is left as it is."""
        ...

    def cancel(self, job: str) -> None:
        """End a job, whatever it is doing. One that is over is left as it is."""
        ...

    def resume(self, job: str) -> bool:
        """Let a job that failed or was canceled go on; False where the service doesn't."""
        ...

    def download(self, model: str, target: Path) -> bool:
        """Bring the adapter that a job has made into a folder; False where the service has it no more."""
        ...
