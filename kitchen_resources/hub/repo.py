"""What is fetched from a hub, and what is known about it afterwards."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kitchen_resources.errors import ConfigError, HubError

Kind = Literal["model", "dataset"]

DEFAULT_REVISION = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# A revision becomes a file name in the cache's `refs` folder, so git's own rule for names is enforced here.
_NOT_IN_REVISION = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|/\.|@\{|\A[-./]|[./]\Z|\.lock(/|\Z)")
_MAX_REVISION = 200


@dataclass(frozen=True)
class Snapshot:
    """A model or data set of a hub on the local disk, at one commit.

    Attributes:
        folder: The local snapshot folder; read-only for its readers.
        repo_id: The repository, as asked for.
        commit: The commit that the revision resolved to, 40 hexadecimal digits.
        cached: Whether the copy was used without asking the hub: no network was needed, or none was there.
        note: "" or the sentence that says why the hub was not asked.
    """

    folder: Path
    repo_id: str
    commit: str
    cached: bool
    note: str


class HubUnreachable(HubError):
    """The hub gave no usable answer: no network, a time-out, or an error of its own. It may answer later."""

    mendable = True


@dataclass(frozen=True)
class Repo:
    """A repository on a hub at a revision: a branch, a tag, another ref, or a commit."""

    kind: Kind
    repo_id: str
    revision: str

    @classmethod
    def checked(cls, kind: Kind, repo_id: str, revision: str | None) -> "Repo":
        """The repository of that name.

        Raises:
            ConfigError: The name or the revision is not one that a hub can have.
        """
        if not has_repo_id_form(repo_id):
            raise ConfigError(
                f"{repo_id[:200]!r} is not the name of a {kind} on a hub",
                where=kind,
                fix=f"write {kind}: organisation/name, or the path of a local folder that exists",
            )
        named = DEFAULT_REVISION if revision is None else revision
        if not named or len(named) > _MAX_REVISION or _NOT_IN_REVISION.search(named):
            raise ConfigError(
                f"{named[:_MAX_REVISION]!r} is not a revision",
                where=f"{kind} {repo_id}",
                fix="name a branch, a tag, or a commit by its 40 hexadecimal digits",
            )
        return cls(kind, repo_id, named)

    @property
    def title(self) -> str:
        """The repository for messages: `model organisation/name at main`."""
        return f"{self.kind} {self.repo_id} at {self.revision}"

    @property
    def commit(self) -> str | None:
        """The revision itself, when it is a commit."""
        return self.revision if is_commit(self.revision) else None

    def page(self, endpoint: str) -> str:
        """The repository's page, for people."""
        return f"{endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo_id}"


def is_commit(text: str) -> bool:
    """Whether a text is a full commit: 40 lower-case hexadecimal digits."""
    return _COMMIT.fullmatch(text) is not None


def has_repo_id_form(text: str) -> bool:
    """Whether a text is `name` or `organisation/name` by the hub's own rule."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def is_repo_id(text: str) -> bool:
    """Whether a text names a repository on a hub: it has the form of one, and no local path has that name."""
    return has_repo_id_form(text) and not Path(text).exists()
