"""A small hub on loopback, with the parts of the Hugging Face Hub's API that fetching uses.

Files that a real hub keeps in large-file storage are served by a second server, on a port (so an origin) of
its own, as the hub's CDN is. All that either of them is asked is on record, and faults are put in by hand.
"""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import _tree_cache, close_session, constants

from tests.hub_writes import HubWrites

LARGE = (".safetensors", ".parquet", ".bin")
_API = re.compile(r"/api/(models|datasets)/(.+?)/(revision|tree)/([^/]+)")
_INFO = re.compile(r"/api/models/([^/]+/[^/]+)")
_RESOLVE = re.compile(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)")


@dataclass
class HubRepo:
    """A repository: its commits, each with its files, and what its branches and tags point to."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], *refs: str) -> str:
        content = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(files.items())]
        commit = hashlib.sha1(repr((len(self.commits), content)).encode()).hexdigest()
        self.commits[commit] = files
        self.refs.update(dict.fromkeys(refs or ("main",), commit))
        return commit

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    server: str
    method: str
    path: str
    token: str
    range: str
    user_agent: str


@dataclass
class Fault:
    """What goes wrong with requests whose method and path match, so many times."""

    pattern: str
    times: int
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_at: int | None = None
    ignore_range: bool = False


class LoopbackHub:
    """The hub: its repositories, accounts, faults and record."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], HubRepo] = {}
        self.access: dict[str, set[str]] = {}
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.page_size = 1000
        self.uploads: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.endpoint = ""
        self.cdn = ""
        self._lock = threading.Lock()

    def model(self, repo_id: str, *, gated: bool = False, private: bool = False) -> HubRepo:
        return self.repos.setdefault(("models", repo_id), HubRepo(gated=gated, private=private))

    def dataset(self, repo_id: str, *, gated: bool = False, private: bool = False) -> HubRepo:
        return self.repos.setdefault(("datasets", repo_id), HubRepo(gated=gated, private=private))

    def fault(self, pattern: str, times: int = 10**6, **what: object) -> None:
        self.faults.append(Fault(pattern, times, **what))  # type: ignore[arg-type]

    def paths(self, method: str = "", server: str = "") -> list[str]:
        return [a.path for a in self.asked if method in ("", a.method) and server in ("", a.server)]

    def record(self, asked: Asked) -> Fault | None:
        with self._lock:
            self.asked.append(asked)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, f"{asked.method} {asked.path}"):
                    fault.times -= 1
                    return fault
        return None


class _Handler(HubWrites, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the acknowledgement of its headers
    hub: LoopbackHub
    name: str

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        agent = self.headers.get("User-Agent", "")
        ranged = self.headers.get("Range", "")
        self.fault = self.hub.record(Asked(self.name, self.command, self.path, self.token, ranged, agent))
        if self.fault and self.fault.status:
            if self.command in ("POST", "PUT"):
                self.body()
            self._answer(self.fault.status, self.fault.body, self.fault.headers)
        elif self.command in ("POST", "PUT"):
            self.serve_write(self.command)
        elif self.name == "cdn":
            self._serve_large(self.path.rpartition("/")[2])
        elif found := _INFO.fullmatch(urlsplit(self.path).path):
            self._serve_api("models", found[1], "revision", "main")
        elif found := _API.fullmatch(urlsplit(self.path).path):
            kind, repo_id, verb, revision = found.groups()
            self._serve_api(kind, repo_id, verb, unquote(revision))
        elif found := _RESOLVE.fullmatch(urlsplit(self.path).path):
            kind = "datasets" if found[1] else "models"
            self._serve_file(kind, found[2], unquote(found[3]), unquote(found[4]))
        else:
            self._refuse(404, "", "Not found")

    def _open(self, kind: str, repo_id: str, *, content: bool) -> HubRepo | None:
        """The repository, when the request may see it (its content); else it is answered already."""
        repo = self.hub.repos.get((kind, repo_id))
        may = repo_id in self.hub.access.get(self.token, set())
        if self.token and self.token not in self.hub.access:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and not may):
            self._refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and content and not may:
            self._refuse(403 if self.token else 401, "GatedRepo", f"Access to {repo_id} is restricted")
        else:
            return repo
        return None

    def _serve_api(self, kind: str, repo_id: str, verb: str, revision: str) -> None:
        repo = self._open(kind, repo_id, content=False)
        if repo is None:
            return
        commit = repo.resolve(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif verb == "revision":
            siblings = [{"rfilename": name} for name in repo.commits[commit]]
            self._answer_json({"id": repo_id, "sha": commit, "siblings": siblings})
        else:
            self._answer_tree(repo.commits[commit])

    def _answer_tree(self, files: dict[str, bytes]) -> None:
        entries = [_tree_entry(name, data) for name, data in sorted(files.items())]
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        end = start + self.hub.page_size
        link = f'<{self.hub.endpoint}{urlsplit(self.path).path}?recursive=True&cursor={end}>; rel="next"'
        self._answer_json(entries[start:end], {"Link": link} if end < len(entries) else {})

    def _serve_file(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        repo = self._open(kind, repo_id, content=True)
        if repo is None:
            return
        commit = repo.resolve(revision)
        data = repo.commits[commit].get(name) if commit else None
        if commit is None or data is None:
            self._refuse(404, "EntryNotFound" if commit else "RevisionNotFound", "Not found")
            return
        sha256, headers = hashlib.sha256(data).hexdigest(), {"X-Repo-Commit": commit}
        if name.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
            headers["Location"] = f"{self.hub.cdn}/{sha256}"
            self._answer(302, b"", headers)
        else:
            self._answer_content(data, headers | {"ETag": f'"{_blob_id(data)}"'})

    def _serve_large(self, sha256: str) -> None:
        for repo in self.hub.repos.values():
            for files in repo.commits.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == sha256:
                        self._answer_content(data, {"ETag": f'"{sha256}"'})
                        return
        self._refuse(404, "", "Not found")

    def _answer_content(self, data: bytes, headers: dict[str, str]) -> None:
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if ranged is None or (self.fault and self.fault.ignore_range):
            self._answer(200, data, headers)
            return
        start = int(ranged[1])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(206, data[start:], headers)

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._answer(status, json.dumps({"error": message}).encode(), headers)

    def _answer_json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value.replace("{token}", self.token))
        body = body.replace(b"{token}", self.token.encode())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.cut_at is not None:
            body = body[: self.fault.cut_at]
            self.close_connection = True
        self.wfile.write(body)


def _tree_entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "oid": _blob_id(data), "size": len(data)}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle of an answer is part of the tests."""


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """A running hub; it stops at the end of the block."""
    hub = LoopbackHub()
    stops: list[Callable[[], None]] = []
    for name in ("hub", "cdn"):
        handler = type("Handler", (_Handler,), {"hub": hub, "name": name})
        server = _Server(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        stops += [server.shutdown, server.server_close, thread.join]
        url = f"http://127.0.0.1:{server.server_port}"
        hub.endpoint, hub.cdn = (url, hub.cdn) if name == "hub" else (hub.endpoint, url)
    try:
        yield hub
    finally:
        for stop in stops:
            stop()


# What the tests of fetching share: an environment that points to a hub, and things to fetch from it.

TOKEN = "hf_thisTokenIsNeverShown"
WEIGHTS = bytes(range(256)) * 40
MODEL = {
    "config.json": b'{"model_type": "tiny"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"pad_token": "x"}',
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "model.safetensors": WEIGHTS,
}
ROWS = {"README.md": b"---\n---\n", "data/train.jsonl": b'{"text": "a"}\n', "data/test.parquet": b"PAR1" * 9}


@contextmanager
def hub_in_use(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[LoopbackHub]:
    """A running hub that the environment points to, with an empty cache in `folder` and no token."""
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_OIDC_RESOURCE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "KITCHEN_ALLOWED_ENDPOINTS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(folder / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "never"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    close_session()
    with loopback_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub
        close_session()
    assert not (folder / "never").exists()


def record_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that the client asks for from now on; none is waited."""
    asked: list[float] = []
    monkeypatch.setattr("time.sleep", asked.append)
    return asked


def leave_network(monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the environment to an endpoint where nothing listens, as a new process would find it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    return endpoint


def content(folder: Path) -> dict[str, bytes]:
    """The files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def sharded(**files: bytes) -> dict[str, bytes]:
    """A model whose weights lie in two files and an index, with `files` put over it."""
    shards = {f"model-0000{n}-of-00002.safetensors": WEIGHTS + bytes([n]) for n in (1, 2)}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    others = {name: data for name, data in MODEL.items() if name != "model.safetensors"}
    return others | shards | {"model.safetensors.index.json": json.dumps(index).encode()} | files
