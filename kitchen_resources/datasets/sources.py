"""Where data sets come from: files, folders, a hub, and the sets that are made here."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from kitchen_resources.datasets.files import is_data_file, read_rows, reader_of
from kitchen_resources.datasets.port import RawDataset, RawRow
from kitchen_resources.digests import FileDigests, digest_json
from kitchen_resources.errors import DataError

EMBEDDED = "embedded:"
_CHOICES = "name a file, a folder, a hub id such as org/name, or embedded:NAME"

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
# A hub's own name for the files of a split, which may be any: data/train_sft-00000-of-00003.parquet.
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*")
_NOT_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})


class SourceDatasets:
    """The data sets of this machine and of the hub."""

    def __init__(self) -> None:
        self._digests = FileDigests()

    def open(self, reference: str, *, split: str = "train") -> RawDataset:
        """See `DatasetStore.open`."""
        if reference.startswith(EMBEDDED):
            return self._embedded(reference, split)
        if not reference:
            raise DataError("no data set is named", where="dataset", fix=_CHOICES)
        path = Path(reference).expanduser()
        if path.is_file():
            return self._file(reference, path, split)
        if path.is_dir():
            return self._folder(reference, path, split)
        return self._hub(reference, split)

    def look(self, reference: str, *, split: str = "train") -> str:
        """See `DatasetStore.look`."""
        path = Path(reference).expanduser()
        if reference and path.is_dir():
            return _stamp(path, _files_of_split(reference, path, split))
        if reference and path.is_file():
            return _stamp(path.parent, [path])
        if reference.startswith(EMBEDDED):
            return reference
        from kitchen_resources.hub import current_commit

        repo_id, revision = _repo_of(reference)
        return current_commit("dataset", repo_id, revision=revision)

    def _file(self, reference: str, path: Path, split: str) -> RawDataset:
        if split != "train":
            raise DataError(
                f"is one file and has no split {split!r}",
                where=reference,
                fix="split: train, or name a folder",
            )
        return self._of_files(reference, "file", path.parent, [path])

    def _folder(self, reference: str, folder: Path, split: str) -> RawDataset:
        return self._of_files(reference, "folder", folder, _files_of_split(reference, folder, split))

    def _hub(self, reference: str, split: str) -> RawDataset:
        from kitchen_resources.hub import fetch_dataset

        place, _, subset = reference.partition("#")
        repo_id, revision = _repo_of(reference)
        snapshot = fetch_dataset(repo_id, revision=revision)
        files = _files_of_split(reference, _subset_folder(reference, snapshot.folder, subset), split)
        _require_one_subset(place, snapshot.folder, files)
        raw = self._of_files(reference, "hub", snapshot.folder, files)
        return RawDataset(reference, "hub", raw.digest, raw.files, snapshot.commit, snapshot.note, raw.read)

    def _of_files(self, reference: str, kind: str, folder: Path, paths: list[Path]) -> RawDataset:
        names = {path: path.relative_to(folder).as_posix() for path in paths}
        for path, name in names.items():
            reader_of(path, name)
            if path.stat().st_size == 0:
                raise DataError("is empty", where=name, fix="write at least one row to it")
        files = {name: self._digests(path) for path, name in names.items()}

        def read() -> Iterator[RawRow]:
            row_id = 0
            for path, name in names.items():
                for where, value in read_rows(path, name):
                    yield RawRow(row_id, where, value)
                    row_id += 1

        return RawDataset(reference, kind, digest_json(files), files, "", "", read)  # type: ignore[arg-type]

    def _embedded(self, reference: str, split: str) -> RawDataset:
        from kitchen_resources import embedded

        name = reference.removeprefix(EMBEDDED)
        if name not in embedded.PROCEDURAL or split != "train":
            what = f"there is no embedded data set {name!r}" if split == "train" else f"it has no split {split!r}"
            raise DataError(
                what,
                where=f"dataset {reference!r}",
                fix=f"one of {', '.join(EMBEDDED + n for n in embedded.PROCEDURAL)}",
            )

        def read() -> Iterator[RawRow]:
            for row_id, value in enumerate(embedded.rows(name)):
                yield RawRow(row_id, f"{reference}[{row_id}]", value)

        return RawDataset(reference, "embedded", _embedded_digest(name), {}, "", "", read)


@cache
def _embedded_digest(name: str) -> str:
    """Digest of an embedded set's rows, which are made for it: 0.5 s, and a run asks twice."""
    from kitchen_resources import embedded

    return digest_json({"embedded": name, "rows": list(embedded.rows(name))})


def _stamp(folder: Path, paths: list[Path]) -> str:
    """Digest of files' names, sizes and times of change."""
    found = {path.relative_to(folder).as_posix(): path.stat() for path in paths}
    return digest_json({name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()})


def _repo_of(reference: str) -> tuple[str, str | None]:
    """Repository and revision of a hub data set.

    Raises:
        DataError: It isn't one, nor anything else.
    """
    from kitchen_resources.hub import is_repo_id

    repo_id, _, revision = reference.partition("#")[0].partition("@")
    if not is_repo_id(repo_id) or is_data_file(Path(repo_id)):
        raise DataError("there is no such file or folder", where=f"dataset {reference!r}", fix=_CHOICES)
    return repo_id, revision or None


def _subset_folder(reference: str, folder: Path, subset: str) -> Path:
    """The part of a hub data set that `#name` picks: a folder of it."""
    chosen = folder / subset if subset else folder
    if not chosen.is_dir() or not chosen.resolve().is_relative_to(folder.resolve()):
        found = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "no folders"
        raise DataError(f"has no folder {subset!r}", where=f"dataset {reference!r}", fix=f"it has {found}")
    return chosen


def _require_one_subset(place: str, folder: Path, files: list[Path]) -> None:
    """Refuse to mix the configurations of a hub data set, which lie in folders of their own."""
    folders = sorted({path.parent.relative_to(folder).as_posix() for path in files})
    if len(folders) > 1:
        raise DataError(
            f"has several parts with this split: {', '.join(folders)}",
            where=f"dataset {place!r}",
            fix=f"dataset: {place}#{folders[0]}",
        )


def _files_of_split(reference: str, folder: Path, split: str) -> list[Path]:
    """The data files of a folder that belong to a split, told by words in their names, as hubs do it."""
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and is_data_file(path)
        and path.name not in _NOT_DATA
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise DataError(
            "the folder holds no data file",
            where=reference,
            fix="put a .jsonl, .json, .csv, .parquet or .arrow file there",
        )
    by_split: dict[str, list[Path]] = {}
    for path in paths:
        by_split.setdefault(_split_of(path.relative_to(folder)) or "", []).append(path)
    if set(by_split) == {""}:
        by_split = {"train": by_split[""]}
    wanted = _plain_name(split)
    if wanted not in by_split:
        found = ", ".join(sorted(name for name in by_split if name))
        raise DataError(f"has no split {split!r}", where=reference, fix=f"split: one of {found}")
    return by_split[wanted]


def _plain_name(split: str) -> str:
    return next((name for name, words in _SPLIT_NAMES.items() if split in words), split)


def _split_of(path: Path) -> str | None:
    shard = _SHARD.fullmatch(path.as_posix())
    if shard is not None:
        return _plain_name(shard[1])
    words = re.split(r"[^a-z0-9]+", path.with_suffix("").as_posix().lower())
    for name, known in _SPLIT_NAMES.items():
        if any(word in known for word in words):
            return name
    return None


class NoopDatasets:
    """A data set store with no data behind it: any reference gives `size` simulated rows."""

    def __init__(self, size: int = 64) -> None:
        self.size = size

    def open(self, reference: str, *, split: str = "train") -> RawDataset:
        """See `DatasetStore.open`; every reference exists, and has every split."""
        name = reference if split == "train" else f"{reference}, {split}"

        def read() -> Iterator[RawRow]:
            for row_id in range(self.size):
                value = {
                    "prompt": f"Example {row_id} from dataset {name}",
                    "completion": f"label {row_id % 2}",
                    "chosen": f"label {row_id % 2}",
                    "rejected": f"label {1 - row_id % 2}",
                    "answer": f"label {row_id % 2}",
                }
                yield RawRow(row_id, f"{reference}[{row_id}]", value)

        digest = self.look(reference, split=split)
        return RawDataset(reference, "simulated", digest, {}, "", "simulated rows", read)

    def look(self, reference: str, *, split: str = "train") -> str:
        """See `DatasetStore.look`."""
        return digest_json({"simulated": reference, "split": split, "size": self.size})
