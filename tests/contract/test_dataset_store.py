"""The data set port's contract, run over every kind of data set of every adapter."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.datasets.port import DatasetStore, RawRow
from kitchen_resources.datasets.sources import NoopDatasets, SourceDatasets
from kitchen_resources.digests import digest_file
from kitchen_resources.errors import DataError


@dataclass
class Case:
    """An adapter, and data sets that it knows.

    Attributes:
        make: Makes the adapter, as another process would.
        reference: A data set.
        other: Another one, with other rows.
        kind: What the first one is.
        split: Another split of the first one, or "" where it has none.
        missing: A reference to nothing, or "" where every reference exists.
    """

    make: Callable[[], DatasetStore]
    reference: str
    other: str
    kind: str
    split: str = ""
    missing: str = ""


def write(path: Path, *texts: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def file_case(folder: Path) -> Case:
    one, two = write(folder / "one.jsonl", "a", "b", "c"), write(folder / "two.jsonl", "a", "b", "d")
    return Case(SourceDatasets, one, two, "file", missing=str(folder / "none.jsonl"))


def folder_case(folder: Path) -> Case:
    for name, last in (("one", "c"), ("two", "d")):
        write(folder / name / "train-1.jsonl", "a")
        write(folder / name / "train-2.jsonl", "b", last)
        write(folder / name / "test.jsonl", "t")
    return Case(SourceDatasets, str(folder / "one"), str(folder / "two"), "folder", "test", str(folder / "none"))


CASES: dict[str, Callable[[Path], Case]] = {
    "sources, file": file_case,
    "sources, folder": folder_case,
    "sources, embedded": lambda folder: Case(
        SourceDatasets, "embedded:reverse", "embedded:dates", "embedded", missing="embedded:none"
    ),
    "noop": lambda folder: Case(lambda: NoopDatasets(5), "one", "two", "simulated", "test"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return CASES[request.param](tmp_path)


def values(rows: list[RawRow]) -> list[dict[str, Any]]:
    return [dict(row.value) for row in rows]


def test_it_is_a_dataset_store(case: Case) -> None:
    assert isinstance(case.make(), DatasetStore)


def test_what_is_known_before_a_row_is_read(case: Case) -> None:
    raw = case.make().open(case.reference)
    assert (raw.reference, raw.kind, raw.revision) == (case.reference, case.kind, "")
    assert len(raw.digest) == 64
    assert set(raw.digest) <= set("0123456789abcdef")
    if case.kind in ("file", "folder"):
        base = Path(case.reference).parent if case.kind == "file" else Path(case.reference)
        assert raw.files
        assert raw.files == {name: digest_file(base / name) for name in raw.files}


def test_rows_are_numbered_and_placed(case: Case) -> None:
    rows = list(case.make().open(case.reference).rows())
    assert len(rows) >= 3
    assert [row.row_id for row in rows] == list(range(len(rows)))
    assert len({row.where for row in rows}) == len(rows)
    assert all(row.where and row.value for row in rows)
    assert all(json.loads(json.dumps(value)) == value for value in values(rows[:5]))


def test_rows_are_read_from_the_start_each_time(case: Case) -> None:
    raw = case.make().open(case.reference)
    whole = list(islice(raw.rows(), 5))
    first, second = raw.rows(), raw.rows()
    assert next(first) == whole[0]
    assert next(first) == whole[1]
    # A reader that stopped early, and one beside another, disturb nobody.
    assert next(second) == whole[0]
    assert list(islice(raw.rows(), 5)) == whole
    assert next(first) == whole[2]


def test_a_digest_is_that_of_the_rows(case: Case) -> None:
    store = case.make()
    raw, other = store.open(case.reference), store.open(case.other)
    assert raw.digest == store.open(case.reference).digest == case.make().open(case.reference).digest
    assert raw.digest != other.digest
    assert values(list(raw.rows())) == values(list(case.make().open(case.reference).rows()))
    assert values(list(raw.rows())) != values(list(other.rows()))


def test_a_split_has_rows_and_a_digest_of_its_own(case: Case) -> None:
    store = case.make()
    train = store.open(case.reference)
    assert train.digest == store.open(case.reference, split="train").digest
    if case.split:
        other = store.open(case.reference, split=case.split)
        assert other.digest != train.digest
        of_train, of_other = ({json.dumps(value) for value in values(list(raw.rows()))} for raw in (train, other))
        assert of_other
        assert of_train.isdisjoint(of_other)
    else:
        with pytest.raises(DataError, match="'test'") as refused:
            store.open(case.reference, split="test")
        assert refused.value.fix


def test_what_does_not_exist_is_refused(case: Case) -> None:
    if case.missing:
        with pytest.raises(DataError) as refused:
            case.make().open(case.missing)
        assert case.missing in refused.value.where
        assert refused.value.fix
    else:
        assert case.make().open("anything at all").kind == "simulated"


@pytest.mark.parametrize("make", [file_case, folder_case])
def test_files_that_move_keep_their_digest_and_files_that_change_dont(
    make: Callable[[Path], Case], tmp_path: Path
) -> None:
    case = make(tmp_path / "here")
    store = case.make()
    before = store.open(case.reference).digest
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    moved = case.reference.replace(str(tmp_path / "here"), str(tmp_path / "there"))
    assert store.open(moved).digest == before
    path = Path(moved) if Path(moved).is_file() else Path(moved) / "train-2.jsonl"
    path.write_text(path.read_text().replace('"b"', '"x"'))
    assert store.open(moved).digest != before
    assert store.open(case.reference).digest == before


def test_simulated_rows_say_so() -> None:
    raw = NoopDatasets(3).open("mine")
    assert raw.note == "simulated rows"
    assert values(list(raw.rows())) == [
        {
            "prompt": f"Example {n} from dataset mine",
            "completion": f"label {n % 2}",
            "chosen": f"label {n % 2}",
            "rejected": f"label {(n + 1) % 2}",
            "answer": f"label {n % 2}",
        }
        for n in range(3)
    ]
    assert raw.digest != NoopDatasets(4).open("mine").digest
