"""What a failed request to a hub means, in words that help.

The client's own messages quote whatever the server answers, and a server may answer with the request's
headers. So an explanation is built anew, quotes the server in one short line, and never holds the token.
"""

import errno
from dataclasses import dataclass

from kitchen_resources.errors import DiskFull, HubError, KitchenError
from kitchen_resources.hub.patience import AskedToWait
from kitchen_resources.hub.repo import HubUnreachable, Repo

_MAX_QUOTE = 200
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def client_errors() -> tuple[type[Exception], ...]:
    """What the client raises when the hub, the network or the disk fails it."""
    import httpx2
    from huggingface_hub.errors import OIDCError

    # RuntimeError is the Xet downloader's; KeyError and TypeError come of an answer that is not a hub's.
    return (httpx2.HTTPError, OSError, ValueError, RuntimeError, KeyError, TypeError, OIDCError, AskedToWait)


@dataclass(frozen=True)
class Failures:
    """Explains the failures of requests for one repository.

    Attributes:
        repo: The repository.
        endpoint: Where the requests go.
        token: The token that they carry, "" for none. It is held to be taken out of quotes.
    """

    repo: Repo
    endpoint: str
    token: str

    def __repr__(self) -> str:
        return f"Failures({self.repo.title!r}, {self.endpoint!r})"

    def explain(self, error: Exception) -> KitchenError:
        """The error to raise for an error of the client, of the network or of the disk."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        # The client reports "not in the cache either" and keeps the reason as the cause.
        while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        if isinstance(error, HfHubHTTPError):
            return self._answered(error)
        if isinstance(error, (httpx2.HTTPError, OfflineModeIsEnabled, AskedToWait, ConnectionError, TimeoutError)):
            return self.unreachable(self._quote(error))
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return DiskFull(
                f"the disk is full ({self._quote(error)})",
                where=self.repo.title,
                fix="free space, or export HF_HUB_CACHE=<a folder on a larger disk>",
            )
        if isinstance(error, OSError) and error.filename:
            return HubError(
                f"the cache can't be written or read: {self._quote(error)}",
                where=self.repo.title,
                fix="make the folder writable, or export HF_HUB_CACHE=<another folder>",
            )
        # What is left: a file of another size than announced, or an answer that is not a hub's.
        return self.unreachable(self._quote(error), how="gave no usable answer")

    @property
    def _login(self) -> str:
        return f"export HF_TOKEN=… (a token from {self.endpoint}/settings/tokens), or type: hf auth login"

    def unreachable(self, reason: str, how: str = "could not be reached") -> HubUnreachable:
        """The error for a hub that gives no answer, or none that can be used."""
        return HubUnreachable(
            f"{self.endpoint} {how} ({reason})",
            where=self.repo.title,
            fix=f"check the network and HF_ENDPOINT (in use: {self.endpoint}), then run it again",
        )

    def _answered(self, error: Exception) -> KitchenError:
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        assert isinstance(error, HfHubHTTPError)
        status = error.response.status_code
        if isinstance(error, GatedRepoError):
            return self._gated(error)
        if isinstance(error, RevisionNotFoundError):
            return self._no_revision()
        if isinstance(error, RepositoryNotFoundError) or status == 404:
            return self._no_repository()
        if status in (401, 403):
            return self._refused(status, error)
        if status in (408, 429) or status >= 500:
            return self.unreachable(f"HTTP {status}, also after retries")
        return HubError(
            f"the hub refused the request: HTTP {status}{self._server_says(error)}",
            where=self.repo.title,
            fix=f"check that HF_ENDPOINT is a hub (in use: {self.endpoint})",
        )

    def _gated(self, error: Exception) -> HubError:
        page = self.repo.page(self.endpoint)
        if not self.token:
            return HubError(
                "it is gated, and no token was sent",
                where=self.repo.title,
                fix=f"ask for access at {page}, then {self._login}",
            )
        return HubError(
            f"it is gated, and the token that was sent has no access to it{self._server_says(error)}",
            where=self.repo.title,
            fix=f"ask for access at {page} with the token's account and wait until it is granted; a "
            "fine-grained token also needs read access to public gated repositories "
            f"({self.endpoint}/settings/tokens)",
        )

    def _no_repository(self) -> HubError:
        page, kind = self.repo.page(self.endpoint), self.repo.kind
        if not self.token:
            return HubError(
                f"there is no such {kind} on {self.endpoint}, or it is private and no token was sent; "
                "nor is there a local path of that name",
                where=self.repo.title,
                fix=f"check the spelling at {page}; if it is private: {self._login}",
            )
        return HubError(
            f"there is no such {kind} on {self.endpoint} that the token that was sent may see; "
            "nor is there a local path of that name",
            where=self.repo.title,
            fix=f"check the spelling at {page}; if it is private, use a token of an account that can open it",
        )

    def _no_revision(self) -> HubError:
        return HubError(
            f"the {self.repo.kind} exists, but has no revision {self.repo.revision}",
            where=self.repo.title,
            fix=f"check the branches and tags at {self.repo.page(self.endpoint)}/tree/main, that a commit is "
            f"written in full, and that it is one of this {self.repo.kind}",
        )

    def _refused(self, status: int, error: Exception) -> HubError:
        if not self.token:
            return HubError(
                f"the hub wants to know who asks (HTTP {status}), and no token was sent",
                where=self.repo.title,
                fix=self._login,
            )
        if status == 401:
            return HubError(
                f"the token that was sent is not valid (HTTP 401{self._server_says(error)})",
                where=self.repo.title,
                fix=f"it may be mistyped, expired or revoked; {self._login}",
            )
        return HubError(
            f"the token that was sent has no access to it (HTTP 403{self._server_says(error)})",
            where=self.repo.title,
            fix=f"give the token read access to this repository at {self.endpoint}/settings/tokens, "
            f"or ask for access at {self.repo.page(self.endpoint)}",
        )

    def _server_says(self, error: Exception) -> str:
        said = getattr(error, "server_message", None)
        return f": {self._short(said)}" if said else ""

    def _quote(self, error: Exception) -> str:
        return self._short(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

    def _short(self, text: str) -> str:
        # The token goes before anything is cut: half a token is still a secret.
        plain = text.replace(self.token, "<token>") if self.token else text
        line = " ".join(plain.split())
        return line if len(line) <= _MAX_QUOTE else f"{line[:_MAX_QUOTE]}…"
