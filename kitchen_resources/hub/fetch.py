"""Fetching a model or a data set, or using the cached copy when the hub can't be asked."""

import glob
import shutil

from kitchen_resources.errors import DiskFull, HubError
from kitchen_resources.hub.cache import RepoCache
from kitchen_resources.hub.client import HubClient
from kitchen_resources.hub.files import check_usable, download_patterns, wanted_files
from kitchen_resources.hub.repo import HubUnreachable, Kind, Repo, Snapshot
from kitchen_resources.hub.settings import HubSettings


def fetch_model(repo_id: str, *, revision: str | None = None) -> Snapshot:
    """Fetch a model: its safetensors weights, configs, tokenizer and chat templates.

    Args:
        repo_id: `organisation/name` on the hub.
        revision: A branch, tag, other ref or commit; None for `main`.

    Returns:
        The local snapshot, whole. Where the hub can't be reached, or `HF_HUB_OFFLINE` is set, it is the
        cached copy of that revision, and `note` says so.

    Raises:
        ConfigError: The name, the revision or the endpoint is not one that can be asked for.
        HubError: The model is missing, gated, only there as pickles or GGUF, or can't be had now
            (`HubUnreachable`) and has no whole copy in the cache.
        DiskFull: The cache's disk has no room for it.
    """
    return _fetch("model", repo_id, revision)


def fetch_dataset(repo_id: str, *, revision: str | None = None) -> Snapshot:
    """Fetch a data set: its JSONL, JSON, CSV, Parquet and Arrow files, README and YAML; never a script.

    Args:
        repo_id: `organisation/name` on the hub.
        revision: A branch, tag, other ref or commit; None for `main`.

    Returns:
        As `fetch_model`.

    Raises:
        ConfigError: As `fetch_model`.
        HubError: The data set is missing, gated, has no such files, or can't be had now (`HubUnreachable`)
            and has no whole copy in the cache.
        DiskFull: The cache's disk has no room for it.
    """
    return _fetch("dataset", repo_id, revision)


def current_commit(kind: Kind, repo_id: str, *, revision: str | None = None) -> str:
    """The commit that a revision stands for now, by one small request.

    Raises:
        ConfigError: As `fetch_model`.
        HubError: There is no such repository or revision, or the hub can't be asked now (`HubUnreachable`).
    """
    repo = Repo.checked(kind, repo_id, revision)
    return HubClient.connect(HubSettings.from_environment(), repo).resolve(hurried=False)


def _fetch(kind: Kind, repo_id: str, revision: str | None) -> Snapshot:
    repo = Repo.checked(kind, repo_id, revision)
    settings = HubSettings.from_environment()
    cache = RepoCache(settings.cache, repo)
    if settings.offline:
        return _offline(cache, settings)
    if repo.commit and _is_proven_whole(cache, repo.commit):
        check_usable(repo, list(cache.listing(repo.commit) or {}), settings.endpoint)
        return Snapshot(cache.snapshot(repo.commit), repo_id, repo.commit, cached=True, note="")
    client = HubClient.connect(settings, repo)
    try:
        commit = client.resolve(hurried=_has_whole_copy(cache))
    except HubUnreachable as unreachable:
        return _stand_in(cache, cache.commit(), unreachable, settings)
    try:
        _bring(client, cache, commit)
    except HubUnreachable as unreachable:
        # Only this commit will do now: the hub has said that it is the one that was asked for.
        return _stand_in(cache, commit, unreachable, settings)
    cache.remember(commit)
    return Snapshot(cache.snapshot(commit), repo_id, commit, cached=False, note="")


def _bring(client: HubClient, cache: RepoCache, commit: str) -> None:
    """Download what the cache lacks of a commit, and prove that all of it arrived."""
    repo = client.repo
    listing = cache.listing(commit) or client.listing(commit)
    check_usable(repo, list(listing), client.settings.endpoint)
    if lacking := cache.wrong_files(commit, listing):
        _check_space(client, sum(listing[name] for name in lacking))
        client.download(commit, download_patterns(repo.kind, wanted_files(repo.kind, listing)))
    # The client takes a file that exists for a whole one, so one of another size has to be asked for by name.
    if damaged := cache.wrong_files(commit, listing):
        client.download(commit, [glob.escape(name) for name in damaged], again=True)
    if defect := cache.defect(commit, listing):
        raise HubError(
            f"what the hub sent is not whole: {defect}",
            where=repo.title,
            fix=f"delete {cache.snapshot(commit)} and fetch it again",
        )


def _offline(cache: RepoCache, settings: HubSettings) -> Snapshot:
    forbidden = HubError(
        f"{settings.offline} is set",
        where=cache.repo.title,
        fix=f"unset {settings.offline} and fetch it once, or copy the folder of a machine that has it to "
        f"{cache.folder}",
    )
    return _stand_in(cache, cache.commit(), forbidden, settings)


def _stand_in(cache: RepoCache, commit: str | None, problem: HubError, settings: HubSettings) -> Snapshot:
    """The cached copy of a commit, if it is whole; else the problem, with what the cache lacks added."""
    if commit is None:
        lacking = f"no copy of that revision is cached in {cache.root}"
    else:
        listing = cache.listing(commit)
        if listing is not None:
            check_usable(cache.repo, list(listing), settings.endpoint)
        if not (defect := cache.defect(commit, listing)):
            folder = cache.snapshot(commit)
            note = f"{problem.what}; using the cached copy of {commit} from {folder}"
            return Snapshot(folder, cache.repo.repo_id, commit, cached=True, note=note)
        lacking = f"the cached copy of {commit} in {cache.root} can't be used: {defect}"
    raise type(problem)(f"{problem.what}, and {lacking}", where=problem.where, fix=problem.fix) from None


def _is_proven_whole(cache: RepoCache, commit: str) -> bool:
    listing = cache.listing(commit)
    return listing is not None and not cache.defect(commit, listing)


def _has_whole_copy(cache: RepoCache) -> bool:
    commit = cache.commit()
    return commit is not None and not cache.defect(commit, cache.listing(commit))


def _check_space(client: HubClient, needed: int) -> None:
    folder = client.settings.cache
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(
            f"{needed:,} bytes are to be downloaded, and {folder} has {free:,} free",
            where=client.repo.title,
            fix="free space, or export HF_HUB_CACHE=<a folder on a larger disk>",
        )
