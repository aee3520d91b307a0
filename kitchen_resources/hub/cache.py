"""The Hugging Face cache on the local disk: what is in it, and whether it is whole.

The layout is the client's public one: `<kind>s--<organisation>--<name>/` with `refs/<revision>` (a commit),
`snapshots/<commit>/` (links to `blobs/`) and the list of files of each commit that was downloaded as a whole.
"""

import json
import logging
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from kitchen_resources.hub.files import wanted_files
from kitchen_resources.hub.repo import Repo, is_commit

_LOG = logging.getLogger(__name__)
_SHARD = re.compile(r".+-\d+-of-\d+\.safetensors")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tekken.json")


@dataclass(frozen=True)
class RepoCache:
    """One repository in the cache.

    Attributes:
        root: The folder of the whole cache.
        repo: The repository, at the revision asked for.
    """

    root: Path
    repo: Repo

    @property
    def folder(self) -> Path:
        """The repository's own folder; it need not exist."""
        return self.root / "--".join([f"{self.repo.kind}s", *self.repo.repo_id.split("/")])

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit's files; it need not exist."""
        return self.folder / "snapshots" / commit

    def commit(self) -> str | None:
        """The revision itself when it is a commit, else the commit that it was at when last fetched."""
        if self.repo.commit:
            return self.repo.commit
        try:
            text = (self.folder / "refs" / self.repo.revision).read_text().strip()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, UnicodeDecodeError):
            return None
        return text if is_commit(text) else None

    def remember(self, commit: str) -> None:
        """Record that the revision is at `commit`, once the commit's files are all there.

        After the download, where the client does it before: an interrupted download leaves the revision at
        the commit before, whose files are whole. A cache that can't be written is left as it is: the files
        that were asked for are there, and the note only serves a later fetch without network.
        """
        if self.repo.commit or self.commit() == commit:
            return
        path = self.folder / "refs" / self.repo.revision
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(commit)
            os.replace(partial, path)
        except OSError as error:
            _LOG.warning("%s: can't note its commit in %s (%s)", self.repo.title, path, error.strerror)

    def listing(self, commit: str) -> dict[str, int] | None:
        """The size in bytes of each file of a commit, as the hub listed it; None when that was not kept."""
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        try:
            files = get_cached_repo_tree(
                self.repo.repo_id, repo_type=self.repo.kind, revision=commit, cache_dir=self.root
            )
        except CachedRepoTreeNotFoundError:
            return None
        return {file.path: file.size for file in files}

    def wrong_files(self, commit: str, listing: dict[str, int]) -> dict[str, str]:
        """The wanted files that are not there as listed, each with what is wrong with it."""
        wrong = {}
        for name in wanted_files(self.repo.kind, listing):
            path = self.snapshot(commit) / name
            if not path.is_file():
                wrong[name] = f"{name} is missing"
            elif path.stat().st_size != listing[name]:
                wrong[name] = f"{name} has {path.stat().st_size:,} bytes instead of {listing[name]:,}"
        return wrong

    def defect(self, commit: str, listing: dict[str, int] | None) -> str:
        """What a commit's snapshot lacks, as far as one can tell without the hub; "" when it is whole.

        Args:
            commit: The commit.
            listing: The sizes of its files, None when they are not known. A model is then judged by its own
                index; a data set can't be judged, and training on a part of one would go unnoticed.
        """
        folder = self.snapshot(commit)
        if not folder.is_dir():
            return "its snapshot folder doesn't exist"
        if listing is not None:
            wrong = self.wrong_files(commit, listing)
            if wrong:
                more = f" (and {len(wrong) - 1} more files)" if len(wrong) > 1 else ""
                return next(iter(wrong.values())) + more
        elif self.repo.kind == "dataset":
            return "it was cached without its list of files, so whether all are there can't be told"
        else:
            names = sorted(path.name for path in folder.iterdir() if path.is_file())
            if lacking := _lacking_in_model(names):
                return lacking
        return _missing_shard(folder) if self.repo.kind == "model" else ""


def _lacking_in_model(names: list[str]) -> str:
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        return "it holds no .safetensors file"
    if any(_SHARD.fullmatch(name) for name in weights) and not any(
        name.endswith(".safetensors.index.json") for name in names
    ):
        return "it holds parts of the weights without their index (model.safetensors.index.json)"
    if not {"config.json", "adapter_config.json"} & set(names):
        return "config.json is missing"
    if not any(name in _TOKENIZER or name.endswith(".model") for name in names):
        return "its tokenizer is missing"
    return ""


def _missing_shard(folder: Path) -> str:
    names = wanted_files("model", [path.name for path in folder.iterdir()])
    for index in (folder / name for name in names if name.endswith(".safetensors.index.json")):
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} is not an index of weights"
        for shard in shards:
            # Only plain names: the index comes from the hub, and its readers join it to the folder.
            if not isinstance(shard, str) or "/" in shard or "\\" in shard or not (folder / shard).is_file():
                return f"{str(shard)[:200]}, which {index.name} names, is missing"
    return ""
