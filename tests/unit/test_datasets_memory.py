"""Data sets larger than memory: rows are read, checked and rendered in chunks, and let go again."""

import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import pytest

from kitchen_resources.datasets import rows
from kitchen_resources.datasets.port import Example, RawDataset, RawRow
from kitchen_resources.datasets.prepare import RawSplits, prepare
from kitchen_resources.datasets.rows import normalized_examples
from tests.unit.dataset_rows import chat
from tests.unit.preparing import Pantry, recipe_of

pytestmark = pytest.mark.full

ROWS = 20_000


class Row(dict[str, Any]):
    """A row that tells whether it is still held; one like it is never equal to another."""

    __slots__ = ("__weakref__",)

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class Generated:
    """A data set made row by row, that counts how many of its rows are held at once."""

    def __init__(self, rows: int, kilobytes: int = 0) -> None:
        self.rows, self.kilobytes = rows, kilobytes
        self.held: WeakSet[Row] = WeakSet()
        self.most_held = 0

    def raw(self) -> RawDataset:
        return RawDataset("generated", "file", str(self.rows), {}, "", "", self._read)

    def _read(self) -> Iterator[RawRow]:
        for index in range(self.rows):
            row = Row(chat(f"{index} " + "x" * (self.kilobytes << 10), "A"))
            self.held.add(row)
            self.most_held = max(self.most_held, len(self.held))
            yield RawRow(index, f"generated[{index}]", row)


class CountingRenderer:
    """A renderer whose rows are short, so that what is held is what the data stage holds."""

    pad_token_id = 0
    stop_token_ids = (1,)
    tokenizer = SimpleNamespace()

    def conversation(self, messages: Any, tools: Any) -> Any:
        return SimpleNamespace(text="", input_ids=[3, 4], weights=[0.0, 1.0], trained_text=lambda tokenizer: "")

    def generation_prompt(self, messages: Any, tools: Any) -> list[int]:
        return [3]


def test_examples_hold_two_chunks_of_rows_at_most() -> None:
    source = Generated(ROWS)
    count = sum(isinstance(outcome, Example) for outcome in normalized_examples(source.raw(), {}, None, True))
    assert count == ROWS
    assert 1000 <= source.most_held <= 2000


def test_no_row_is_read_before_the_chunk_that_needs_it() -> None:
    source = Generated(ROWS)
    outcomes = normalized_examples(source.raw(), {}, None, True)
    next(outcomes)
    assert len(source.held) == 1000


def prepare_generated(pantry: Pantry, source: Generated, other: Generated | None = None) -> int:
    """Rows that are written, trained and held out."""
    prepared, report = prepare(
        recipe_of("generated"),
        RawSplits(source.raw(), other.raw() if other else None, 0.1),
        CountingRenderer(),
        pantry.content,
        conversational=True,
        rendering={},
        simulated=False,
    )
    assert prepared.held_out is not None
    assert report.rows_read == prepared.train.rows + prepared.held_out.rows
    return report.rows_read


def test_preparing_holds_two_chunks_of_rows_at_most() -> None:
    source = Generated(ROWS)
    assert prepare_generated(Pantry(), source) == ROWS
    assert source.most_held <= 2000


@pytest.mark.parametrize("other", [None, Generated(500, 8)])
def test_the_peak_is_that_of_a_few_chunks(monkeypatch: pytest.MonkeyPatch, other: Generated | None) -> None:
    # 16 MiB of rows in chunks of 100, which are 0.8 MiB: one as read, one as examples, two as they are written.
    monkeypatch.setattr(rows, "_CHUNK", 100)
    pantry, source = Pantry(), Generated(2000, 8)
    prepare_generated(Pantry(), Generated(10), other)
    tracemalloc.start()
    try:
        prepare_generated(pantry, source, other)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert source.most_held <= 200
    assert peak < 5 << 20
