"""A server on loopback that keeps what Fireworks would: data sets, managed fine-tuning jobs and the models they make.

It answers the vendor's own SDK, checks what that sends by the SDK's own types, and has no clock: a job goes one step on
with every look at it. What the real service does is known from its documentation and its SDK, not from watching it.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.fireworks_schema import (
    FAILED_PRECONDITION,
    Answer,
    Fault,
    Faults,
    Listener,
    Lost,
    Refusal,
    Request,
    account_said,
    checked,
    format_of,
    request_problems,
    resource_id,
    storage_error,
)

KEY = "fw-a-key-for-the-tests"
BASE_ACCOUNT = "fireworks"
CREATED = "2026-01-01T00:00:00Z"
FINE = {"code": "OK", "message": ""}
OVER = {"COMPLETED", "EARLY_STOPPED", "FAILED", "CANCELLED", "EXPIRED"}
RESUMABLE = {"CANCELLED", "FAILED", "PAUSED"}
JOBS = {"supervisedFineTuningJobs": "SupervisedFineTuningJob", "dpoJobs": "DpoJob"}
PATH = re.compile(r"/v1/accounts/([^/:]+)/(\w+)(?:/([^/:]+))?(?::(\w+))?")
SIGNED_PUT = {"content-type": "application/octet-stream", "x-goog-content-length-range": "{0},{0}"}


class Moment:
    """What one look at a job says: its state, with or without `JOB_STATE_`, and fields by their wire names."""

    def __init__(self, state: str, **fields: Any) -> None:
        self.state = state.removeprefix("JOB_STATE_")
        self.fields = fields


def default_script(collection: str) -> list[Moment]:
    """All goes well; only supervised jobs have fields for progress and cost."""
    states = ["CREATING", "VALIDATING", "PENDING", "RUNNING", "RUNNING", "RUNNING", "WRITING_RESULTS", "COMPLETED"]
    script = [Moment(state) for state in states]
    if collection == "supervisedFineTuningJobs":
        for moment, epoch, percent in zip(script[3:6], (0, 0, 1), (0, 50, 100), strict=True):
            moment.fields = {"jobProgress": {"epoch": epoch, "percent": percent}}
        script[-1].fields = {"estimatedCost": {"currencyCode": "USD", "units": "1", "nanos": 250_000_000}}
    return script


def default_files(job: dict[str, Any]) -> dict[str, bytes]:
    """An adapter without any tensor, and a file nobody asked for."""
    settings = job.get("trainingConfig", job)
    base, rank = settings.get("baseModel"), settings.get("loraRank", 8)
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": rank}
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": (2).to_bytes(8, "little") + b"{}",
        "README.md": b"# An adapter\n",
    }


@dataclass
class Dataset:
    """A data set.

    Attributes:
        sizes: Names and sizes of the files that are to come to signed URLs.
        looks: How many more looks at it find it not ready; None while nothing came.
        format: `chat` or `preference`, once its lines were read.
    """

    fields: dict[str, Any]
    sizes: dict[str, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    looks: int | None = None
    format: str = ""
    status: dict[str, str] = field(default_factory=lambda: dict(FINE))

    @property
    def ready(self) -> bool:
        return self.looks == 0


@dataclass
class Job:
    """A job; `at` is where in its script the last look found it, -1 before the first."""

    collection: str
    name: str
    fields: dict[str, Any]
    model: str
    script: Sequence[Moment]
    at: int = -1

    @property
    def now(self) -> Moment:
        return self.script[self.at] if self.at >= 0 else Moment("CREATING")


@dataclass(frozen=True)
class Signed:
    """What a signed URL is for; a model's file has content, a data set's is to get it."""

    dataset: str
    name: str
    content: bytes | None = None


@dataclass(frozen=True)
class Call:
    """A request that was let in, and what it names."""

    collection: str
    name: str
    query: Mapping[str, str]
    body: Any


@dataclass
class FireworksServer:
    """See the module.

    Attributes:
        script: What looks at jobs say that are created from now on, one each, the last ever after; None for
            `default_script`.
        resumed: The same for jobs that are resumed, which are PENDING first; None for the end of `default_script`.
        ready_after: How many looks at a data set that was uploaded find it not ready.
        upload_limit: Largest body of `:upload`, in bytes.
        fewest: Fewest lines of a data set.
        base_models: Names of the models that can be tuned.
        adapter_files: What a job's model consists of.
        hostile: Whether a model also has a file `../evil`.
        full_names: Whether a job says its output model's resource name, not just its id.
        record: All requests, in order.
        errors: Errors of the server itself; `fireworks_server` raises the first.
    """

    key: str
    account: str
    script: Sequence[Moment] | None = None
    resumed: Sequence[Moment] | None = None
    ready_after: int = 1
    upload_limit: int = 150_000_000
    fewest: int = 3
    base_models: set[str] = field(default_factory=lambda: {"llama-v3p1-8b-instruct", "qwen3-8b"})
    adapter_files: Callable[[dict[str, Any]], dict[str, bytes]] = default_files
    hostile: bool = False
    full_names: bool = True
    port: int = 0
    record: list[Request] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    jobs: dict[str, dict[str, Job]] = field(default_factory=lambda: {collection: {} for collection in JOBS})
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    _faults: Faults = field(default_factory=Faults)
    _signed: dict[str, Signed] = field(default_factory=dict)
    _expired: set[str] = field(default_factory=set)
    _held: str = ""
    _made: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, at the port it had before where it was stopped."""
        self._listener = Listener(self.port, self.key, self._answer, self.errors)
        self.port = self._listener.server_address[1]
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close all connections and the port; what it keeps stays."""
        self._listener.end()
        self._thread.join()

    def fault(
        self,
        pattern: str,
        status: int | Lost,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> Fault:
        """Let something else happen to the next requests whose `<method> <path>` matches a pattern."""
        fault = Fault(pattern, status, times, headers or {}, body)
        self._faults.waiting.append(fault)
        return fault

    def hold_at(self, state: str) -> None:
        """Let jobs that are in a state, or come to it, stay there."""
        self._held = state.removeprefix("JOB_STATE_")

    def release(self) -> None:
        """Let them go on."""
        self._held = ""

    def expire_urls(self) -> None:
        """Let no URL that was signed so far be good any more."""
        self._expired |= self._signed.keys()

    def _answer(self, request: Request) -> Answer | None:
        with self._lock:
            self.record.append(request)
            return self._faults.answer(request, self._do)

    def _do(self, request: Request) -> Answer:
        if request.path.startswith("/signed/"):
            return self._do_signed(request)
        try:
            return Answer(200, json.dumps(self._routed(request)).encode())
        except Refusal as refusal:
            return refusal.answer

    def _routed(self, request: Request) -> dict[str, Any]:
        if not request.key:
            raise Refusal(401, "the API key is missing or wrong")
        if request.method == "GET" and (said := account_said(self.account, request.path)) is not None:
            return said
        found = PATH.fullmatch(request.path)
        account, collection, name, verb = found.groups("") if found else ("", "", "", "")
        kind = "jobs" if collection in JOBS else collection
        route = ROUTES.get(f"{request.method} {kind}{'/*' if name else ''}{':' + verb if verb else ''}")
        is_base = (account, request.method, collection) == (BASE_ACCOUNT, "GET", "models") and not verb
        if route is None or (account != self.account and not is_base):
            raise Refusal(404, f"{request.method} {request.path} isn't found")
        call, do = route
        body = None if request.method in ("GET", "DELETE") or call == "upload" else request.body
        resource = re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", collection.removesuffix("s"))
        problems = request_problems(f"{resource}_{call}", body, request.query)
        if request.method == "POST" and not isinstance(request.body, dict):
            problems = ["body: it is no object"]
        if problems:
            raise Refusal(422, "; ".join(problems))
        return self._base_model(name) if is_base else do(self, Call(collection, name, request.query, request.body))

    def _shelf(self, call: Call) -> dict[str, Any]:
        shelves: dict[str, dict[str, Any]] = {"datasets": self.datasets, "models": self.models, **self.jobs}
        return shelves[call.collection]

    def _kept(self, call: Call) -> Any:
        if call.name not in self._shelf(call):
            raise Refusal(404, f"{call.collection} {call.name} isn't found")
        return self._shelf(call)[call.name]

    def _delete(self, call: Call) -> dict[str, Any]:
        self._kept(call)
        del self._shelf(call)[call.name]
        return {}

    # Data sets.

    def _create_dataset(self, call: Call) -> dict[str, Any]:
        name = resource_id(call.body["datasetId"])
        if name in self.datasets:
            raise Refusal(409, f"dataset {name} already exists")
        self.datasets[name] = Dataset(call.body["dataset"])
        return self._dataset_said(name)

    def _dataset_said(self, name: str) -> dict[str, Any]:
        dataset = self.datasets[name]
        said = {"state": "READY" if dataset.ready else "UPLOADING", "status": dataset.status, "createTime": CREATED}
        if dataset.format == "chat":
            said["format"] = "CHAT"
        return checked("Dataset", {**dataset.fields, **said, "name": f"accounts/{self.account}/datasets/{name}"})

    def _get_dataset(self, call: Call) -> dict[str, Any]:
        dataset = self._kept(call)
        said = self._dataset_said(call.name)
        if dataset.looks:
            dataset.looks -= 1
        return said

    def _upload(self, call: Call) -> dict[str, Any]:
        dataset = self._dataset_to_fill(call)
        if "file" not in call.body:
            raise Refusal(422, "file: required")
        name, content = call.body["file"]
        if len(content) > self.upload_limit:
            raise Refusal(413, f"{len(content)} bytes are more than {self.upload_limit}")
        dataset.files = {name: content}
        self._take(dataset)
        said = {"id": call.name, "bytes": len(content), "created_at": 0, "filename": name, "object": "file"}
        return checked("DatasetUploadResponse", {**said, "purpose": "fine-tune"})

    def _get_upload_endpoint(self, call: Call) -> dict[str, Any]:
        dataset = self._dataset_to_fill(call)
        try:
            sizes = {name: int(size) for name, size in call.body["filenameToSize"].items()}
        except ValueError as error:
            raise Refusal(400, f"filenameToSize: {error}") from error
        # Each call names all files anew.
        dataset.sizes, dataset.files = sizes, {}
        urls = {name: self._sign(Signed(call.name, name)) for name in sizes}
        return checked("DatasetGetUploadEndpointResponse", {"filenameToSignedUrls": urls})

    def _validate_upload(self, call: Call) -> dict[str, Any]:
        dataset = self._dataset_to_fill(call)
        missing = sorted(dataset.sizes.keys() - dataset.files.keys())
        if missing or not dataset.files:
            raise Refusal(400, f"not uploaded: {', '.join(missing) or 'any file'}", FAILED_PRECONDITION)
        self._take(dataset)
        return {}

    def _dataset_to_fill(self, call: Call) -> Dataset:
        dataset: Dataset = self._kept(call)
        if dataset.ready:
            raise Refusal(400, f"dataset {call.name} is ready already", FAILED_PRECONDITION)
        return dataset

    def _take(self, dataset: Dataset) -> None:
        """Read a data set's lines."""
        try:
            if bad := [name for name in dataset.files if not name.endswith(".jsonl")]:
                raise ValueError(f"{bad[0]} is no .jsonl file")
            content = b"".join(dataset.files[name].removesuffix(b"\n") + b"\n" for name in sorted(dataset.files))
            dataset.format, count = format_of(content, self.fewest)
        except ValueError as error:
            dataset.looks, dataset.status = None, {"code": "INVALID_ARGUMENT", "message": str(error)}
            raise Refusal(400, str(error)) from error
        dataset.looks, dataset.status = self.ready_after, dict(FINE)
        dataset.fields["exampleCount"] = str(count)

    # Jobs.

    def _create_job(self, call: Call) -> dict[str, Any]:
        jobs = self.jobs[call.collection]
        self._made += 1
        name = resource_id(call.query.get(call.collection.removesuffix("s") + "Id", f"job-{self._made}"))
        if name in jobs:
            raise Refusal(409, f"{call.collection} {name} already exists")
        settings = call.body if call.collection == "supervisedFineTuningJobs" else call.body.get("trainingConfig", {})
        self._check_origin(settings)
        wanted = "preference" if call.collection == "dpoJobs" else "chat"
        for which in ("dataset", "evaluationDataset"):
            if which in call.body:
                self._check_dataset(call.body[which], wanted)
        model = resource_id(settings.get("outputModel", name).removeprefix(f"accounts/{self.account}/models/"))
        if model in self.models:
            raise Refusal(400, f"model {model} already exists")
        script = default_script(call.collection) if self.script is None else list(self.script)
        jobs[name] = Job(call.collection, name, call.body, model, script)
        return self._job_said(jobs[name])

    def _check_origin(self, settings: Mapping[str, Any]) -> None:
        base, warm = settings.get("baseModel", ""), settings.get("warmStartFrom", "")
        if bool(base) == bool(warm):
            raise Refusal(400, "exactly one of base_model and warm_start_from must be given")
        if base and base not in {f"accounts/{BASE_ACCOUNT}/models/{name}" for name in self.base_models}:
            raise Refusal(400, f"base model {base} isn't found or can't be tuned")
        if warm and warm not in {f"accounts/{self.account}/models/{name}" for name in self.models}:
            raise Refusal(400, f"model {warm} isn't found")

    def _check_dataset(self, name: str, wanted: str) -> None:
        dataset = self.datasets.get(name.removeprefix(f"accounts/{self.account}/datasets/"))
        if dataset is None:
            raise Refusal(400, f"dataset {name} isn't found")
        if not dataset.ready:
            raise Refusal(400, f"dataset {name} isn't ready", FAILED_PRECONDITION)
        if dataset.format != wanted:
            raise Refusal(400, f"dataset {name} has {dataset.format} lines, not {wanted} lines")

    def _job_said(self, job: Job) -> dict[str, Any]:
        said = {**job.fields, "name": f"accounts/{self.account}/{job.collection}/{job.name}", "createTime": CREATED}
        output = {"outputModel": f"accounts/{self.account}/models/{job.model}" if self.full_names else job.model}
        config = job.fields.get("trainingConfig")
        said |= output if config is None else {"trainingConfig": {**config, **output}}
        said |= {"state": f"JOB_STATE_{job.now.state}", "status": FINE, **job.now.fields}
        return checked(JOBS[job.collection], said, but="state")

    def _get_job(self, call: Call) -> dict[str, Any]:
        job: Job = self._kept(call)
        if job.now.state != self._held:
            job.at = min(job.at + 1, len(job.script) - 1)
        said = self._job_said(job)
        if job.now.state in ("COMPLETED", "EARLY_STOPPED"):
            self.models.setdefault(job.model, said)
        return said

    def _cancel(self, call: Call) -> dict[str, Any]:
        job: Job = self._kept(call)
        if job.now.state in OVER:
            raise Refusal(400, f"the job is {job.now.state}, it can't be cancelled", FAILED_PRECONDITION)
        if job.now.state != "CANCELLING":
            job.script, job.at = [Moment("CANCELLING"), Moment("CANCELLING"), Moment("CANCELLED")], 0
        return {}

    def _resume(self, call: Call) -> dict[str, Any]:
        job: Job = self._kept(call)
        if job.now.state not in RESUMABLE:
            raise Refusal(400, f"the job is {job.now.state}, it can't be resumed", FAILED_PRECONDITION)
        job.script, job.at = [Moment("PENDING"), *(self.resumed or default_script(call.collection)[3:])], 0
        return self._job_said(job)

    def _list_jobs(self, call: Call) -> dict[str, Any]:
        if unknown := call.query.keys() - {"pageSize", "pageToken"}:
            raise Refusal(501, f"this server doesn't know {', '.join(sorted(unknown))}")
        jobs = self.jobs[call.collection]
        start, size = int(call.query.get("pageToken") or 0), min(int(call.query.get("pageSize") or 50), 200)
        page = [self._job_said(jobs[name]) for name in sorted(jobs)[start : start + size]]
        return {call.collection: page, "nextPageToken": str(start + size) if start + size < len(jobs) else ""}

    # Models.

    def _base_model(self, name: str) -> dict[str, Any]:
        if name not in self.base_models:
            raise Refusal(404, f"model {name} isn't found")
        said = {"kind": "HF_BASE_MODEL", "state": "READY", "public": True, "tunable": True, "supportsLora": True}
        return checked("Model", {**said, "name": f"accounts/{BASE_ACCOUNT}/models/{name}", "status": FINE})

    def _get_model(self, call: Call) -> dict[str, Any]:
        job = self._kept(call)
        settings = job.get("trainingConfig", job)
        said = {"kind": "HF_PEFT_ADDON", "state": "READY", "public": False, "createTime": CREATED, "status": FINE}
        base, rank = settings.get("baseModel", ""), settings.get("loraRank", 8)
        peft = {"baseModel": base, "r": rank, "targetModules": ["q_proj"]}
        names = {"name": f"accounts/{self.account}/models/{call.name}", "fineTuningJob": job["name"]}
        return checked("Model", {**said, **names, "peftDetails": peft})

    def _get_download_endpoint(self, call: Call) -> dict[str, Any]:
        files = dict(self.adapter_files(self._kept(call)))
        if self.hostile:
            files["../evil"] = b"evil"
        urls = {name: self._sign(Signed("", name, content)) for name, content in files.items()}
        return checked("ModelGetDownloadEndpointResponse", {"filenameToSignedUrls": urls})

    # Signed URLs.

    def _sign(self, signed: Signed) -> str:
        path = f"/signed/{len(self._signed) + 1}"
        self._signed[path] = signed
        return f"{self.url}{path}?X-Goog-SignedHeaders={';'.join(SIGNED_PUT) if signed.dataset else 'host'}"

    def _do_signed(self, request: Request) -> Answer:
        signed = self._signed.get(request.path)
        if request.key is not None:
            return storage_error(400, "InvalidArgument", "an Authorization header beside a signature")
        if signed is None or request.path in self._expired:
            return storage_error(403, "ExpiredToken", "the URL isn't good, or no more")
        if request.method == "GET" and signed.content is not None:
            return Answer(200, signed.content, {"Content-Type": "application/octet-stream"})
        dataset = self.datasets.get(signed.dataset)
        if request.method != "PUT" or dataset is None or signed.name not in dataset.sizes:
            return storage_error(403, "SignatureDoesNotMatch", "signed for something else")
        size = dataset.sizes[signed.name]
        if any(request.headers.get(name) != value.format(size) for name, value in SIGNED_PUT.items()):
            return storage_error(403, "SignatureDoesNotMatch", f"it takes {', '.join(SIGNED_PUT)}")
        if len(request.body or b"") != size:
            return storage_error(400, "EntityTooLarge", f"it takes {size} bytes")
        dataset.files[signed.name] = request.body
        return Answer(200, b"")


ROUTES: dict[str, tuple[str, Callable[[FireworksServer, Call], dict[str, Any]]]] = {
    "POST datasets": ("create", FireworksServer._create_dataset),
    "GET datasets/*": ("get", FireworksServer._get_dataset),
    "DELETE datasets/*": ("delete", FireworksServer._delete),
    "POST datasets/*:upload": ("upload", FireworksServer._upload),
    "POST datasets/*:getUploadEndpoint": ("get_upload_endpoint", FireworksServer._get_upload_endpoint),
    "POST datasets/*:validateUpload": ("validate_upload", FireworksServer._validate_upload),
    "POST jobs": ("create", FireworksServer._create_job),
    "GET jobs": ("list", FireworksServer._list_jobs),
    "GET jobs/*": ("get", FireworksServer._get_job),
    "DELETE jobs/*": ("delete", FireworksServer._delete),
    "POST jobs/*:cancel": ("cancel", FireworksServer._cancel),
    "POST jobs/*:resume": ("resume", FireworksServer._resume),
    "GET models/*": ("get", FireworksServer._get_model),
    "DELETE models/*": ("delete", FireworksServer._delete),
    "GET models/*:getDownloadEndpoint": ("get_download_endpoint", FireworksServer._get_download_endpoint),
}


@contextmanager
def fireworks_server(key: str = KEY, account: str = "kitchen-tests") -> Iterator[FireworksServer]:
    """A running server.

    Raises:
        BaseException: The first error of the server itself, at the end.
    """
    server = FireworksServer(key, account)
    server.start()
    try:
        yield server
    finally:
        server.stop()
    if server.errors:
        raise server.errors[0]
