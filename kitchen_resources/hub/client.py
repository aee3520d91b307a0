"""The one place that talks to a hub, through huggingface_hub."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from kitchen_resources.errors import HubError
from kitchen_resources.hub.failures import Failures, client_errors
from kitchen_resources.hub.patience import LIBRARY_NAME, bound_waits
from kitchen_resources.hub.repo import DEFAULT_REVISION, Repo, is_commit
from kitchen_resources.hub.settings import HubSettings

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_RESOLVE_TIMEOUT_S = 10.0
# The client repeats every request but the GET of a file that answers 5xx, which storage servers do when they
# are busy. These are the waits that it makes for the others; what has arrived by then is not asked for again.
_FILE_WAITS_S = (1, 2, 4, 8, 8)
# What a model consists of; other files of a repository are its owners'.
_OF_A_MODEL = (
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "adapter/*",
    "*tokenizer*",
    "*.jinja",
)
# A character that HTTP refuses in a header makes the client quote the whole header, token included.
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class HubClient:
    """A hub, seen through one repository. Every method raises what `Failures.explain` makes of an error."""

    settings: HubSettings
    repo: Repo
    failures: Failures

    @classmethod
    def connect(cls, settings: HubSettings, repo: Repo) -> "HubClient":
        """The client for a repository; nothing is sent yet, but for renewing a login that is about to expire.

        Raises:
            HubError: The token can't be sent, or can't be had.
        """
        client = cls(settings, repo, Failures(repo, settings.endpoint, token=""))
        token = client._call(_token_to_send)
        if token and not _TOKEN.fullmatch(token):
            raise HubError(
                "the token holds a space or another character that a token can't hold",
                where=repo.title,
                fix="write it anew without quotes and spaces: export HF_TOKEN=…, or type: hf auth login",
            )
        return cls(settings, repo, Failures(repo, settings.endpoint, token))

    def resolve(self, *, hurried: bool) -> str:
        """The commit that the revision stands for now.

        Args:
            hurried: Don't repeat a request that found no connection, since a cached copy can stand in.

        Returns:
            The commit, 40 hexadecimal digits.
        """
        return self._call(lambda: self._resolve(hurried))

    def listing(self, commit: str) -> dict[str, int]:
        """The path and size in bytes of every file of a commit."""
        return self._call(lambda: self._listing(commit))

    def download(self, commit: str, patterns: list[str], *, again: bool = False) -> None:
        """Bring the files that match the patterns into the cache.

        Args:
            commit: The commit to take them from.
            patterns: Glob patterns; `*` also matches `/`.
            again: Replace files that are there already.
        """
        self._call(lambda: self._download(commit, patterns, again))

    def push(self, folder: Path, *, private: bool, message: str) -> tuple[str, bool]:
        """Make the branch hold a folder, as one commit; the repository and the branch are made when they aren't there.

        Returns:
            The commit, and whether the repository was there before.
        """
        if not self.failures.token:
            raise HubError(
                "publishing needs a token",
                where=self.repo.title,
                fix="export HF_TOKEN=… (one that may write), or type: hf auth login",
            )
        return self._call(lambda: self._push(folder, private, message))

    def _push(self, folder: Path, private: bool, message: str) -> tuple[str, bool]:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.settings.endpoint, library_name=LIBRARY_NAME)
        repo_id, branch = self.repo.repo_id, self.repo.revision
        existed = api.repo_exists(repo_id, repo_type=self.repo.kind)
        if not existed:
            api.create_repo(repo_id, repo_type=self.repo.kind, private=private, exist_ok=True)
        if branch != DEFAULT_REVISION:
            api.create_branch(repo_id, repo_type=self.repo.kind, branch=branch, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            repo_type=self.repo.kind,
            folder_path=folder,
            revision=branch,
            commit_message=message,
            delete_patterns=list(_OF_A_MODEL),
        )
        return done.oid, existed

    def _resolve(self, hurried: bool) -> str:
        import httpx2
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_backoff,
        )

        repo, revision = self.repo, quote(self.repo.revision, safe="")
        lost = () if hurried else (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
        # Not HfApi.repo_info, the one call that the client never repeats.
        response = http_backoff(
            "GET",
            f"{self.settings.endpoint}/api/{repo.kind}s/{repo.repo_id}/revision/{revision}",
            headers=build_hf_headers(library_name=LIBRARY_NAME),
            timeout=_RESOLVE_TIMEOUT_S,
            retry_on_exceptions=lost,
        )
        hf_raise_for_status(response)
        answer = response.json()
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not is_commit(commit):
            raise ValueError("the answer names no commit, as a hub's would")
        return commit

    def _listing(self, commit: str) -> dict[str, int]:
        from huggingface_hub import HfApi, RepoFile

        api = HfApi(endpoint=self.settings.endpoint, library_name=LIBRARY_NAME)
        tree = api.list_repo_tree(self.repo.repo_id, repo_type=self.repo.kind, revision=commit, recursive=True)
        return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}

    def _download(self, commit: str, patterns: list[str], again: bool) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        for wait in _FILE_WAITS_S:
            try:
                return self._download_once(commit, patterns, again)
            except HfHubHTTPError as error:
                if error.response.status_code < 500 or error.response.request.method != "GET":
                    raise
                _LOG.warning("%s: a file gave HTTP %d", self.repo.title, error.response.status_code)
            time.sleep(wait)
        return self._download_once(commit, patterns, again)

    def _download_once(self, commit: str, patterns: list[str], again: bool) -> None:
        from huggingface_hub import snapshot_download

        snapshot_download(
            self.repo.repo_id,
            repo_type=self.repo.kind,
            revision=commit,
            cache_dir=self.settings.cache,
            endpoint=self.settings.endpoint,
            library_name=LIBRARY_NAME,
            allow_patterns=patterns,
            force_download=again,
        )

    def _call(self, request: Callable[[], T]) -> T:
        bound_waits()
        try:
            return request()
        except client_errors() as error:
            problem = self.failures.explain(error)
        # Raised out here, so that the client's error, which may quote the token, isn't chained to it.
        raise problem


def _token_to_send() -> str:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return build_hf_headers().get("authorization", "").removeprefix("Bearer ")
