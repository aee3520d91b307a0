"""Managed fine-tuning jobs at Fireworks, by its REST client."""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kitchen_resources.digests import digest_file
from kitchen_resources.errors import BackendError
from kitchen_resources.training.fireworks.account import PASSING, Account, Refused, Unfit, state_of
from kitchen_resources.training.hosted.port import JobStatus, Phase

WHERE = "trainer.backend.fireworks_jobs"
BY_REQUEST = 150_000_000
"""Bytes of a data set up to which it is sent in one request; a larger one goes to a signed link."""

_PREFIX = "JOB_STATE_"
_PHASES: Mapping[str, Phase] = {
    **dict.fromkeys(("UNSPECIFIED", "CREATING", "VALIDATING", "PENDING", "CREATING_INPUT_DATASET"), "waiting"),
    # It may have trained for hours before.
    **dict.fromkeys(("RE_QUEUEING", "PAUSED", "IDLE"), "paused"),
    "CANCELLING": "stopping",
    **dict.fromkeys(("RUNNING", "WRITING_RESULTS"), "working"),
    **dict.fromkeys(("COMPLETED", "EARLY_STOPPED"), "done"),
    **dict.fromkeys(("FAILED", "EXPIRED"), "failed"),
    "CANCELLED": "stopped",
    **dict.fromkeys(("DELETING", "DELETING_CLEANING_UP"), "gone"),
}


class FireworksJobs:
    """See `HostedJobs`.

    Args:
        account: Whose jobs they are.
        method: `supervised` or `preference`.
        settings: What a job is made with, by the SDK's own names.
        ready_s: How long a data set may take until it can be trained on, in seconds.
        pause_s: Between two looks at one, in seconds.
    """

    def __init__(
        self,
        account: Account,
        method: str,
        settings: Mapping[str, Any],
        *,
        ready_s: float = 3600.0,
        pause_s: float = 3.0,
    ) -> None:
        self._account = account
        self._is_pairs = method == "preference"
        rest = account.rest
        self._jobs = rest.dpo_jobs if self._is_pairs else rest.supervised_fine_tuning_jobs
        self._settings = dict(settings)
        self._ready_s = ready_s
        self._pause_s = pause_s

    @property
    def where(self) -> str:
        """See `HostedJobs.where`."""
        return WHERE

    def place(self) -> Mapping[str, str]:
        """See `HostedJobs.place`."""
        return {"account": self._account.name, "address": self._account.url}

    def look(self, job: str) -> JobStatus | None:
        """See `HostedJobs.look`."""
        found: JobStatus | None = self._found(
            lambda: self._status(job, self._jobs.get(job, account_id=self._account.name)), f"job {job}"
        )
        return found

    def create(self, job: str, rows: Path) -> None:
        """See `HostedJobs.create`."""
        dataset = self._dataset(rows)
        named = {"dataset": f"accounts/{self._account.name}/datasets/{dataset}", "account_id": self._account.name}
        training = {**self._settings, "output_model": job}
        loss = training.pop("loss_config", None)
        try:
            if self._is_pairs:
                self._account.ask(
                    lambda: self._jobs.create(**named, dpo_job_id=job, training_config=training, loss_config=loss),
                    f"making job {job}",
                )
            else:
                self._account.ask(
                    lambda: self._jobs.create(**named, supervised_fine_tuning_job_id=job, **training),
                    f"making job {job}",
                )
        except Refused as error:
            # Made by a launcher that didn't live to hear so.
            if error.status != 409:
                raise _perhaps_closed(error) from None

    def cancel(self, job: str) -> None:
        """See `HostedJobs.cancel`."""
        try:
            self._account.ask(
                lambda: self._jobs.cancel(job, account_id=self._account.name, body={}, timeout=5.0),
                f"canceling job {job}",
            )
        except Refused as error:
            if error.status not in (400, 404):
                raise

    def resume(self, job: str) -> bool:
        """See `HostedJobs.resume`."""
        try:
            self._account.ask(
                lambda: self._jobs.resume(job, account_id=self._account.name, body={}), f"resuming job {job}"
            )
        except Refused as error:
            if error.status in (400, 404, 405, 409, 501):
                return False
            raise
        return True

    def download(self, model: str, target: Path) -> bool:
        """See `HostedJobs.download`."""
        there = self._found(
            lambda: self._account.rest.models.get(model.rpartition("/")[2], account_id=self._account.name), model
        )
        if there is None:
            return False
        self._account.download_adapter(model, target)
        return True

    def _status(self, job: str, found: Any) -> JobStatus:
        state = str(found.state or f"{_PREFIX}UNSPECIFIED").removeprefix(_PREFIX)
        told = found.status
        progress = getattr(found, "job_progress", None)
        percent, epoch = getattr(progress, "percent", None), getattr(progress, "epoch", None)
        cost = _dollars(getattr(found, "estimated_cost", None))
        training = getattr(found, "training_config", None) or found
        model = str(training.output_model or job)
        code = told.code if told is not None and told.code not in (None, "OK") else ""
        return JobStatus(
            phase=_PHASES.get(state, "unknown"),
            state=state,
            said=": ".join(part for part in (code, told.message if told is not None else "") if part),
            mendable=state == "FAILED" and code in PASSING,
            progress=_progress(percent, epoch, training.epochs),
            cost_usd=cost,
            seconds=(found.completed_time - found.create_time).total_seconds()
            if found.completed_time and found.create_time
            else None,
            model=model if model.startswith("accounts/") else f"accounts/{self._account.name}/models/{model}",
            record={"account": self._account.name, "dataset": found.dataset, "cost_usd": cost},
        )

    # The rows.

    def _dataset(self, rows: Path) -> str:
        """The data set of a file, by the file's digest: uploaded once, and ready."""
        name = f"kitchen-{digest_file(rows)[:24]}"
        place = {"dataset_id": name, "account_id": self._account.name}
        datasets, what = self._account.rest.datasets, f"data set {name}"
        state = self._found(lambda: str(datasets.get(**place).state), what)
        if state is None:
            with rows.open("rb") as stream:
                count = sum(1 for _ in stream)
            about = {"format": "CHAT", "example_count": str(count), "user_uploaded": {}}
            try:
                self._account.ask(lambda: datasets.create(dataset=about, **place), f"making {what}")
            except Refused as error:
                if error.status != 409:
                    raise _perhaps_closed(error) from None
        if state in (None, "UPLOADING"):
            try:
                self._upload(rows, place, what)
            except Refused as error:
                # What took the file before, and was not heard to, takes no other.
                now = self._found(lambda: datasets.get(**place).state, what)
                if error.status not in (400, 409) or now != "READY":
                    raise
        try:
            self._account.wait_until_ready(lambda: datasets.get(**place), what, self._ready_s, self._pause_s)
        except Unfit:
            # Whatever became of it, the next try is to begin with another.
            with suppress(BackendError):
                self._account.ask(lambda: datasets.delete(**place), f"deleting {what}")
            raise
        return name

    def _upload(self, rows: Path, place: Mapping[str, str], what: str) -> None:
        datasets, size = self._account.rest.datasets, rows.stat().st_size
        with rows.open("rb") as stream:
            if size <= BY_REQUEST:
                self._account.ask(lambda: datasets.upload(file=(rows.name, stream), **place), f"uploading {what}")
                return
            links = self._account.ask(
                lambda: datasets.get_upload_endpoint(filename_to_size={rows.name: str(size)}, **place),
                f"a link for {what}",
            )
            self._account.ask(
                lambda: _put(links.filename_to_signed_urls[rows.name], stream, size), f"uploading {what}"
            )
        self._validate(place, what)

    def _validate(self, place: Mapping[str, str], what: str) -> None:
        """Have what was sent to a link taken in; refused while it isn't all there yet."""
        datasets, end = self._account.rest.datasets, time.monotonic() + self._ready_s
        while True:
            try:
                self._account.ask(lambda: datasets.validate_upload(body={}, **place), f"uploading {what}")
                return
            except Refused as error:
                state, status = self._account.ask(lambda: state_of(datasets.get(**place)), what)
                if state == "READY" or (status is not None and status.code not in (None, "OK")):
                    # It was taken in before, or never will be.
                    return
                if error.status != 400 or time.monotonic() > end:
                    raise
            time.sleep(self._pause_s)

    def _found(self, question: Any, what: str) -> Any:
        """What there is; None where there is no such thing, but an account."""
        try:
            return self._account.ask(question, what)
        except Refused as error:
            if error.status != 404:
                raise
        # Of an account that is gone all is gone, and nothing of it is to be made anew.
        self._account.ask(lambda: self._account.rest.accounts.get(account_id=self._account.name), "the account")
        return None


def _put(url: str, stream: Any, size: int) -> None:
    """Send a file to a signed link, which takes just this size and type; no credential is sent there."""
    import httpx

    headers = {
        "content-type": "application/octet-stream",
        "content-length": str(size),
        "x-goog-content-length-range": f"{size},{size}",
    }
    answer = httpx.put(url, content=stream, headers=headers, timeout=3600.0)
    if answer.status_code >= 400:
        # Without the link, which opens what it names. Asked for again there is another.
        raise Refused(f"the link of the upload is refused with {answer.status_code}", retriable=True)


def _progress(percent: int | None, epoch: int | None, epochs: int | None) -> float | None:
    """Of the whole job; what is told is of an epoch, from 0, where one is named."""
    if percent is None:
        return None
    if epoch is None or not epochs:
        return percent / 100
    return min(1.0, (epoch + percent / 100) / epochs)


def _dollars(cost: Any) -> float | None:
    if cost is None or cost.currency_code != "USD":
        return None
    return int(cost.units or 0) + (cost.nanos or 0) / 1e9


def _perhaps_closed(error: Refused) -> BackendError:
    """A refusal to make something, with what the vendor's documentation says of it."""
    if error.mendable or error.status not in (400, 403, 404, 405, 410, 412, 501):
        return error
    return Refused(
        error.what,
        where=error.where,
        fix="see the message of the service; where it takes no new managed jobs, as its documentation says, "
        "backend: {fireworks: …} trains the same recipe",
        status=error.status,
    )
