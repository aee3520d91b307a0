"""Publishing a model on a hub: a folder, as one commit."""

from dataclasses import dataclass
from pathlib import Path

from kitchen_resources.errors import HubError
from kitchen_resources.hub.client import HubClient
from kitchen_resources.hub.repo import Repo
from kitchen_resources.hub.settings import HubSettings


@dataclass(frozen=True)
class Pushed:
    """A model as it is on a hub now.

    Attributes:
        repo_id: Its repository.
        branch: The branch.
        commit: The commit, 40 hexadecimal digits.
        page: Where people see it.
        existed: Whether the repository was there before; then it is as private or public as it was.
    """

    repo_id: str
    branch: str
    commit: str
    page: str
    existed: bool


def push_folder(folder: Path, repo_id: str, *, branch: str = "main", private: bool = True, message: str) -> Pushed:
    """Make a repository's branch hold a model's folder.

    Files of a model that aren't in the folder are deleted from the branch; they stay in its history. Other files, such
    as pictures of the page, are left alone.

    Args:
        folder: The files.
        repo_id: `organisation/name`; made when it isn't there.
        branch: Made when it isn't there.
        private: Whether only its members see a repository that is made now.
        message: Of the commit.

    Raises:
        ConfigError: The name isn't one that a hub can have.
        HubError: The hub refuses it, or is away.
    """
    settings = HubSettings.from_environment()
    repo = Repo.checked("model", repo_id, branch)
    if settings.offline:
        raise HubError(
            f"{settings.offline} forbids the network", where=repo.title, fix=f"unset {settings.offline} to publish"
        )
    client = HubClient.connect(settings, repo)
    commit, existed = client.push(folder, private=private, message=message)
    return Pushed(repo_id, branch, commit, repo.page(settings.endpoint), existed)
