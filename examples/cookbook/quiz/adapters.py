"""Quizzes as data sets: `quiz:sums` is sums.md, with `- question :: answer` a line."""

from collections.abc import Iterator
from pathlib import Path

from kitchen_resources.datasets.port import RawDataset, RawRow
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.digests import digest_bytes
from kitchen_resources.errors import DataError


class QuizDatasets(SourceDatasets):
    """The kitchen's own sources, and quizzes in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def open(self, reference: str, *, split: str = "train") -> RawDataset:
        """See `DatasetStore.open`."""
        if not reference.startswith("quiz:"):
            return super().open(reference, split=split)
        path = self._folder / f"{reference.removeprefix('quiz:')}.md"
        if not path.is_file():
            there = ", ".join(sorted(f"quiz:{each.stem}" for each in self._folder.glob("*.md")))
            raise DataError("there is no such quiz", where=f"dataset {reference!r}", fix=f"one of {there}")
        digest = digest_bytes(path.read_bytes())

        def read() -> Iterator[RawRow]:
            lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            asked = ((number, line[2:].split(" :: ")) for number, line in lines if line.startswith("- "))
            for row_id, (number, parts) in enumerate(asked):
                if len(parts) != 2:
                    raise DataError("has no answer", where=f"{path.name}:{number}", fix="- question :: answer")
                yield RawRow(row_id, f"{path.name}:{number}", {"prompt": parts[0], "completion": parts[1]})

        return RawDataset(reference, "file", digest, {path.name: digest}, "", "", read)

    def look(self, reference: str, *, split: str = "train") -> str:
        """See `DatasetStore.look`."""
        quiz = reference.startswith("quiz:")
        return self.open(reference).digest if quiz else super().look(reference, split=split)
