"""Rows that nearly repeat an earlier one, found in memory that doesn't grow with their text.

The bands and the shingles of all rows lie in files; in memory are a few numbers a row, and one band at a time.
"""

import hashlib
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitchen_resources.formulas.similarity import BANDS, band, jaccard, runs, signature

if TYPE_CHECKING:
    from kitchen_resources.formulas.similarity import Hashes

ALIKE = 0.8
"""Likeness from which on a row nearly repeats another."""

SHINGLE = 5
"""Words in a run."""

_CHUNK = 4096
_SAMPLE, _SHARE, _LEAST = 1000, 0.05, 10
"""What at least 10 rows and 5 % of the first 1,000 different ones hold is their template, and is left out."""


class NearDuplicates:
    """Takes rows one by one, and then says which of them nearly repeat an earlier one. A context manager.

    Runs of words that many rows hold are instructions, which say nothing of how alike two rows are.

    Args:
        folder: An existing folder for its files, some 600 bytes a row of sixty words.
    """

    def __init__(self, folder: Path) -> None:
        self._bands_path, self._shingles_path = folder / "bands.bin", folder / "shingles.bin"
        self._bands = self._bands_path.open("wb")
        self._shingles = self._shingles_path.open("wb")
        self._first: list[Any] | None = []
        self._template: Any = None
        self._pending: list[Any] = []
        self._ends = array("Q")
        self._same = array("Q")

    def __enter__(self) -> "NearDuplicates":
        return self

    def __exit__(self, *_: object) -> None:
        self._bands.close()
        self._shingles.close()

    def add(self, content: str, words: list[str]) -> None:
        """Take the next row.

        Args:
            content: All of it: rows of one content are exact duplicates, which are counted elsewhere.
            words: Its words, in order.
        """
        import numpy

        self._same.append(int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little"))
        shingles = numpy.unique(runs(words, SHINGLE))
        if self._first is None:
            self._write(shingles)
        else:
            self._first.append(shingles)
            if len(self._first) == _SAMPLE:
                self._look_at_first()

    def _look_at_first(self) -> None:
        """Learn from the first rows what the template is, and write them."""
        import numpy

        first, self._first = self._first or [], None
        _, different = numpy.unique(numpy.frombuffer(self._same, numpy.uint64), return_index=True)
        held = [first[place] for place in different]
        found, counts = numpy.unique(numpy.concatenate([*held, numpy.empty(0, numpy.uint64)]), return_counts=True)
        self._template = found[counts >= max(_LEAST, _SHARE * len(held))]
        for shingles in first:
            self._write(shingles)

    def _write(self, shingles: "Hashes") -> None:
        import numpy

        if len(self._template):
            shingles = numpy.setdiff1d(shingles, self._template, assume_unique=True)
        self._shingles.write(shingles.tobytes())
        self._ends.append((self._ends[-1] if self._ends else 0) + len(shingles))
        # A row without words is never looked at, whatever its signature.
        self._pending.append(signature(shingles if len(shingles) else numpy.zeros(1, numpy.uint64)))
        if len(self._pending) == _CHUNK:
            self._flush()

    def find(self) -> list[tuple[int, int, float]]:
        """Rows that nearly repeat an earlier one: its place, that one's, and how alike they are; in order.

        Each is compared with the first and with the row before of those that share a band with it, so a row that is
        like several is found by one of them.
        """
        import numpy

        if self._first is not None:
            self._look_at_first()
        self._flush()
        self._bands.close()
        self._shingles.close()
        count = len(self._ends)
        if count < 2:
            return []
        _, first = numpy.unique(numpy.frombuffer(self._same, numpy.uint64), return_index=True)
        # Neither rows without words, nor those that repeat one exactly.
        looked_at = numpy.zeros(count, dtype=bool)
        looked_at[first] = True
        looked_at &= numpy.diff(numpy.frombuffer(self._ends, numpy.uint64), prepend=numpy.uint64(0)) > 0
        found: dict[int, tuple[int, float]] = {}
        with self._shingles_path.open("rb") as file:
            for index in range(BANDS):
                for row, other in _candidates(self._keys(index), looked_at):
                    likeness = jaccard(self._read(file.fileno(), row), self._read(file.fileno(), other))
                    if likeness >= ALIKE:
                        looked_at[row] = False
                        if row not in found or other < found[row][0]:
                            found[row] = (other, likeness)
        return [(row, *found[row]) for row in sorted(found)]

    def _flush(self) -> None:
        import numpy

        if self._pending:
            signatures = numpy.stack(self._pending)
            self._bands.write(numpy.stack([band(signatures, index) for index in range(BANDS)], axis=1).tobytes())
            self._pending = []

    def _keys(self, index: int) -> "Hashes":
        """One band of all rows."""
        import numpy

        parts = []
        with self._bands_path.open("rb") as file:
            while len(read := numpy.fromfile(file, numpy.uint64, _CHUNK * BANDS)):
                parts.append(read.reshape(-1, BANDS)[:, index].copy())
        return numpy.concatenate(parts)

    def _read(self, file: int, row: int) -> "Hashes":
        """The shingles of a row."""
        import numpy

        begin = self._ends[row - 1] if row else 0
        return numpy.frombuffer(os.pread(file, 8 * (self._ends[row] - begin), 8 * begin), numpy.uint64)


def _candidates(keys: "Hashes", looked_at: Any) -> Iterator[tuple[int, int]]:
    """Pairs of a row and an earlier one that share a band; `looked_at` may change meanwhile."""
    import numpy

    order = numpy.argsort(keys, kind="stable")
    begins = numpy.ones(len(keys), dtype=bool)
    begins[1:] = keys[order[1:]] != keys[order[:-1]]
    begin = numpy.maximum.accumulate(numpy.where(begins, numpy.arange(len(keys)), 0))
    for place in numpy.flatnonzero(~begins & looked_at[order]).tolist():
        row, first, before = int(order[place]), int(order[begin[place]]), int(order[place - 1])
        yield row, first
        if before != first and looked_at[row]:
            yield row, before
