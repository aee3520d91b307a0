"""Which jobs of a cluster are of a run: those of a lost process are stopped, and nobody else's."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kitchen_resources.training.ray.jobs import stop_lost, submission_prefix

FINGERPRINT = "ab" * 32


class Cluster:
    """Jobs by id; one that is stopped is over at the second look."""

    def __init__(self, ids: Sequence[str], over: Sequence[str] = ()) -> None:
        self.ids = ids
        self.over = set(over)
        self.stopped: list[str] = []

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id=name, status=self.get_job_status(name)) for name in [None, *self.ids]]

    def stop_job(self, name: str) -> None:
        self.stopped.append(name)

    def get_job_status(self, name: str | None) -> Any:
        over = name in self.over
        if name in self.stopped:
            self.over.add(str(name))
        return SimpleNamespace(is_terminal=lambda: over)


def job(folder: str, fingerprint: str = FINGERPRINT) -> Any:
    """An attempt at a run whose attempts work in a folder."""
    return SimpleNamespace(fingerprint=fingerprint, scratch=Path(folder) / "an-attempt")


def test_jobs_of_a_run_begin_alike_and_those_of_others_do_not() -> None:
    ours = submission_prefix(job("/shared/a/runs/abab"))
    assert ours.startswith("kitchen-abababababababab-")
    assert submission_prefix(job("/shared/a/runs/abab")) == ours
    assert submission_prefix(job("/shared/b/runs/abab")) != ours, "the same recipe in another store"
    assert submission_prefix(job("/shared/a/runs/abab", "cd" * 32)) != ours, "another recipe"


def test_only_a_runs_own_jobs_that_go_on_are_stopped() -> None:
    ours = submission_prefix(job("/shared/a/runs/abab"))
    theirs = submission_prefix(job("/shared/b/runs/abab"))
    cluster = Cluster([f"{ours}1", f"{ours}2", f"{theirs}1", "something-else"], over=[f"{ours}1"])
    said: list[str] = []
    stop_lost(cluster, ours, SimpleNamespace(log=SimpleNamespace(info=said.append)))
    assert cluster.stopped == [f"{ours}2"]
    assert cluster.get_job_status(f"{ours}2").is_terminal(), "waited for"
    assert len(said) == 1
    assert f"{ours}2" in said[0]
