"""The parts of the Hugging Face Hub's API that publishing uses, for the hub on loopback."""

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from tests.loopback_hub import HubRepo, LoopbackHub

_BATCH = re.compile(r"/(.+?)\.git/info/lfs/objects/batch")
_REPO = re.compile(r"/api/models/(.+?)/(preupload|commit|branch)/([^/]+)")


class HubWrites:
    """What a hub does with requests that change it; mixed into its handler."""

    # Of the handler.
    hub: "LoopbackHub"
    name: str
    path: str
    headers: Any
    rfile: Any
    token: str
    if TYPE_CHECKING:

        def _refuse(self, status: int, code: str, message: str) -> None: ...
        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None: ...
        def _answer_json(self, value: object, headers: dict[str, str] | None = None) -> None: ...

    def body(self) -> bytes:
        """All of the request's body, also where its length isn't told beforehand."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            data: bytes = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return data
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def serve_write(self, method: str) -> None:
        """Answer a POST or PUT."""
        path, body = urlsplit(self.path).path, self.body()
        if self.name == "cdn":
            oid = path.rpartition("/")[2]
            if hashlib.sha256(body).hexdigest() != oid:
                self._refuse(400, "", "the bytes aren't those that were announced")
                return
            self.hub.uploads[oid] = body
            self._answer(200, b"", {})
        elif self.token not in self.hub.access:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif path == "/api/validate-yaml":
            self._answer_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := _BATCH.fullmatch(path):
            self._announce(found[1], json.loads(body))
        elif found := _REPO.fullmatch(path):
            self._change(found[1], found[2], unquote(found[3]), body)
        else:
            self._refuse(404, "", "Not found")

    def _create(self, asked: dict[str, Any]) -> None:
        repo_id = f"{asked['organization']}/{asked['name']}"
        if repo_id not in self.hub.access[self.token]:
            self._refuse(403, "", f"You don't have the rights to create a model under {asked['organization']}")
        elif ("models", repo_id) in self.hub.repos:
            self._refuse(409, "", "You already created this model repo")
        else:
            repo = self.hub.model(repo_id, private=asked.get("visibility") == "private")
            repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
            self._answer_json({"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id})

    def _writable(self, repo_id: str) -> "HubRepo | None":
        if repo_id not in self.hub.access[self.token] or ("models", repo_id) not in self.hub.repos:
            self._refuse(403, "", "Forbidden: you may not write here")
            return None
        return self.hub.repos["models", repo_id]

    def _announce(self, repo_id: str, asked: dict[str, Any]) -> None:
        if self._writable(repo_id) is None:
            return
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.cdn}/upload/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        self._answer_json({"transfer": "basic", "objects": objects})

    def _change(self, repo_id: str, verb: str, revision: str, body: bytes) -> None:
        from tests.loopback_hub import LARGE

        repo = self._writable(repo_id)
        if repo is None:
            return
        if verb == "branch":
            if revision in repo.refs:
                self._refuse(409, "", "Reference already exists")
                return
            repo.refs[revision] = repo.refs["main"]
            self._answer_json({})
        elif repo.resolve(revision) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif verb == "preupload":
            files = [
                {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular"}
                for each in json.loads(body)["files"]
            ]
            self._answer_json({"files": [{**each, "shouldIgnore": False} for each in files]})
        else:
            commit = self._commit(repo, revision, body)
            url = f"{self.hub.endpoint}/{repo_id}/commit/{commit}"
            self._answer_json({"commitUrl": url, "commitOid": commit, "pullRequestUrl": None})

    def _commit(self, repo: "HubRepo", revision: str, body: bytes) -> str:
        files = dict(repo.commits[repo.refs[revision]])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        return repo.commit(files, revision)
