"""Workers as a job of a Ray cluster, through dagster-ray's Pipes client; no other module imports it on this side.

The job's id begins with the run and its folder on the shared disk, so that whoever trains the run next finds the job of
a process that was lost, and stops it before it submits its own. There are never two, and a run of the same recipe in
another store is left alone.
"""

import asyncio
import hashlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kitchen_resources.dagster_context import current_context
from kitchen_resources.errors import BackendError, CapabilityError
from kitchen_resources.training.port import TrainingJob
from kitchen_resources.training.worker.messages import NAME, Message, custom_messages

JOB_TAG = "kitchen/ray_job"
"""Tag of a Dagster run: the Ray job that trains it."""

_WHERE = "trainer.backend.ray"
_POLL_S = 0.5
_STOP_S = 60.0
_LAUNCHED_S = 300.0


class RayJobs:
    """Starts workers as a Ray job: the first of them in the job's own process, the others as actors beside it.

    Args:
        address: The cluster's dashboard, such as `http://127.0.0.1:8265`.
        processes: Workers that train together.
        cpus: CPUs of each.
        gpus: GPUs of each.
    """

    def __init__(self, address: str, *, processes: int, cpus: float, gpus: float) -> None:
        self._address = address
        self._processes = processes
        self._cpus = cpus
        self._gpus = gpus

    def __call__(self, folder: Path, job: TrainingJob) -> "RayWorkers":
        """See `Starter`.

        Raises:
            CapabilityError: There is no Dagster run, or a package is missing.
            BackendError: The cluster can't be reached, or takes no job.
        """
        context = current_context(where=_WHERE)
        client = _client(self._address)
        prefix = submission_prefix(job)
        stop_lost(client, prefix, context)
        submission = f"{prefix}{uuid.uuid4().hex[:8]}"
        # Before there is a job, so that one that was submitted and never seen again has left its name.
        context.instance.add_run_tags(context.run.run_id, {JOB_TAG: submission})
        command = [sys.executable, "-m", "kitchen_resources.training.ray.main", str(folder)]
        parameters = {
            "entrypoint": " ".join([*command, str(self._processes), str(self._cpus), str(self._gpus)]),
            "entrypoint_num_cpus": self._cpus,
            "entrypoint_num_gpus": self._gpus,
            "submission_id": submission,
            "metadata": {"kitchen_run": job.fingerprint, "kitchen_folder": str(job.scratch.parent)},
            "runtime_env": {
                "env_vars": {
                    "OMP_NUM_THREADS": str(job.resolution.threads),
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                }
            },
        }
        return RayWorkers(self._address, client, submission, parameters, context, folder)


class RayWorkers:
    """See `Workers`."""

    def __init__(
        self, address: str, client: Any, submission: str, parameters: dict[str, Any], context: Any, folder: Path
    ) -> None:
        self._client = client
        self._submission = submission
        self._path = folder / NAME
        self._path.touch()
        self._reader = _logs_only(self._path)
        self._ended: str | None = None
        self._thread = threading.Thread(
            target=self._run, args=(address, parameters, context), name="ray job", daemon=True
        )
        self._thread.start()

    def _run(self, address: str, parameters: dict[str, Any], context: Any) -> None:
        from dagster_ray.core.pipes import PipesRayJobClient

        try:
            pipes = PipesRayJobClient(
                address=address,
                message_reader=self._reader,
                poll_interval=_POLL_S,
                forward_termination=False,
            )
            pipes.run(context=context, submit_job_params=parameters)
            self._ended = "the job is done"
        except Exception as error:  # noqa: BLE001  (whoever waits for the workers is told)
            self._ended = f"{type(error).__name__}: {error}"

    @property
    def ended(self) -> str | None:
        """See `Workers.ended`."""
        return self._ended

    def messages(self) -> Iterator[Message | None]:
        """See `Workers.messages`."""
        return custom_messages(self._path, lambda message: self._reader.handler.handle_message(message))

    def log(self) -> Sequence[str]:
        """See `Workers.log`."""
        with suppress(Exception):
            text: str = self._client.get_job_logs(self._submission)
            return text.splitlines()
        return []

    def wait(self, seconds: float) -> None:
        """See `Workers.wait`."""
        self._thread.join(seconds)

    def kill(self) -> None:
        """See `Workers.kill`."""
        if self._ended is None:
            with suppress(Exception):
                _stop(self._client, self._submission)
        self._thread.join(_STOP_S)


def submission_prefix(job: TrainingJob) -> str:
    """How the ids of all Ray jobs of a run begin: by its fingerprint, and its folder, which no other store has."""
    folder = hashlib.sha256(str(job.scratch.parent).encode()).hexdigest()
    return f"kitchen-{job.fingerprint[:16]}-{folder[:8]}-"


def require_packages() -> None:
    """Refuse to go on without Ray.

    Raises:
        CapabilityError: A package is missing.
    """
    try:
        import dagster_ray  # noqa: F401
        import ray  # noqa: F401
    except ImportError as error:
        raise CapabilityError(
            f"needs the package {error.name}, which isn't installed",
            where=_WHERE,
            fix="pip install 'crucible-kitchen[ray]'",
        ) from error


def require_room(address: str, *, processes: int, cpus: float, gpus: float) -> None:
    """Refuse more than the cluster has, which it would wait for without end.

    Raises:
        BackendError: It can't be reached.
        CapabilityError: It has less.
    """
    import json
    import urllib.error
    import urllib.request

    token = os.environ.get("RAY_AUTH_TOKEN", "")
    request = urllib.request.Request(
        f"{address.rstrip('/')}/api/v0/nodes",
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            found = json.loads(response.read())
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise BackendError(
            f"the cluster at {address} can't be asked: {error}",
            where=_WHERE,
            fix="start it, name its dashboard as address, and set RAY_AUTH_TOKEN where it wants one",
            retriable=True,
        ) from error
    nodes = [node for node in found["data"]["result"]["result"] if node["state"] == "ALIVE"]
    for name, wanted in (("CPU", cpus * processes), ("GPU", gpus * processes)):
        there = sum(node["resources_total"].get(name, 0) for node in nodes)
        if wanted > there:
            raise CapabilityError(
                f"{processes} processes want {wanted:g} {name}s, and the cluster has {there:g}",
                where=_WHERE,
                fix="lower processes, or add nodes to the cluster",
            )


def _client(address: str) -> Any:
    require_packages()
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise BackendError(
            f"the cluster at {address} can't be reached: {error}",
            where=_WHERE,
            fix="start it, and name its dashboard as address",
            retriable=True,
        ) from error


def stop_lost(client: Any, prefix: str, context: Any) -> None:
    """Stop jobs of this run whose launcher was lost: whoever holds the run's lease is the only one at work."""
    for found in client.list_jobs():
        name = found.submission_id or ""
        if name.startswith(prefix) and not found.status.is_terminal():
            context.log.info(f"stopping the Ray job {name}, whose process was lost")
            _stop(client, name)


def _stop(client: Any, submission: str) -> None:
    """Stop a job, and wait until it is over."""
    client.stop_job(submission)
    until = time.monotonic() + _STOP_S
    while not client.get_job_status(submission).is_terminal():
        if time.monotonic() > until:
            raise BackendError(
                f"the Ray job {submission} doesn't stop",
                where=_WHERE,
                fix=f"ray job stop {submission}",
                retriable=True,
            )
        time.sleep(_POLL_S)


def _logs_only(messages: Path) -> Any:
    """dagster-ray's reader of a job's log, which is for people: what workers tell goes to a file."""
    from dagster_pipes import PipesDefaultMessageWriter
    from dagster_ray.core.pipes import PipesRayJobMessageReader

    class Reader(PipesRayJobMessageReader):  # type: ignore[misc]
        handler: Any = None

        @contextmanager
        def read_messages(self, handler: Any) -> Iterator[Any]:
            self.handler = handler
            with super().read_messages(handler):
                yield {PipesDefaultMessageWriter.FILE_PATH_KEY: str(messages)}

        def handle_job_logs(self, handler: Any) -> None:
            # It makes a loop for its thread, and leaves it open.
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            try:
                super().handle_job_logs(handler)
            finally:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()

    return Reader()
