"""Where data sets come from: a file, a folder with splits, a hub, what is made here; and what isn't there."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from kitchen_resources import embedded
from kitchen_resources.datasets.port import DatasetStore, RawDataset
from kitchen_resources.datasets.resource import DatasetsResource, NoopSource
from kitchen_resources.datasets.sources import NoopDatasets, SourceDatasets
from kitchen_resources.digests import digest_bytes, digest_file, digest_json
from kitchen_resources.errors import DataError, HubError
from tests.loopback_hub import LoopbackHub, hub_in_use, leave_network
from tests.unit.dataset_rows import write_jsonl

A, B, C = {"text": "a"}, {"text": "b"}, {"text": "c"}


@pytest.fixture
def store() -> SourceDatasets:
    return SourceDatasets()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with hub_in_use(monkeypatch, tmp_path) as running:
        yield running


def texts(raw: RawDataset) -> list[str]:
    return [row.value["text"] for row in raw.rows()]


def refusal(store: DatasetStore, reference: Path | str, split: str = "train") -> str:
    with pytest.raises(DataError) as refused:
        store.open(str(reference), split=split)
    return str(refused.value)


def parquet(path: Path, *rows: dict[str, str]) -> bytes:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path.read_bytes()


# A file


def test_a_file(store: SourceDatasets, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [A, B])
    raw = store.open(str(path))
    assert (raw.reference, raw.kind, raw.revision, raw.note) == (str(path), "file", "", "")
    assert raw.files == {"rows.jsonl": digest_file(path)}
    assert raw.digest == digest_json({"rows.jsonl": digest_file(path)})
    assert [(row.row_id, row.where, row.value) for row in raw.rows()] == [
        (0, "rows.jsonl:1", A),
        (1, "rows.jsonl:2", B),
    ]
    assert texts(raw) == ["a", "b"]


def test_a_home_folder_is_expanded(store: SourceDatasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "rows.jsonl", [A])
    assert texts(store.open("~/rows.jsonl")) == ["a"]


def test_the_digest_follows_the_content_and_not_the_folder(store: SourceDatasets, tmp_path: Path) -> None:
    here = store.open(str(write_jsonl(tmp_path / "here/rows.jsonl", [A])))
    there = store.open(str(write_jsonl(tmp_path / "there/rows.jsonl", [A])))
    other = store.open(str(write_jsonl(tmp_path / "other/rows.jsonl", [B])))
    assert here.digest == there.digest != other.digest


def test_a_file_that_was_changed_has_another_digest(store: SourceDatasets, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [A])
    before = store.open(str(path))
    write_jsonl(path, [A, B])
    after = store.open(str(path))
    assert after.files == {"rows.jsonl": digest_file(path)}
    assert after.digest != before.digest


def test_an_empty_file_is_refused(store: SourceDatasets, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [])
    assert refusal(store, path) == "rows.jsonl: is empty\n  fix: write at least one row to it"


def test_a_file_has_no_splits(store: SourceDatasets, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", [A])
    assert texts(store.open(str(path))) == ["a"]
    assert (
        refusal(store, path, "test")
        == f"{path}: is one file and has no split 'test'\n  fix: split: train, or name a folder"
    )


def test_a_file_of_an_unknown_format_is_refused_when_it_is_opened(store: SourceDatasets, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a\n")
    assert refusal(store, tmp_path / "rows.txt").startswith("rows.txt: files of type .txt can't be read\n")


@pytest.mark.parametrize(
    "reference", ["missing.jsonl", "data/missing.csv", "./missing", "a/b/c", "missing.parquet@main", "~/no"]
)
def test_what_is_not_there_is_refused(
    store: SourceDatasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(store, reference) == (
        f"dataset {reference!r}: there is no such file or folder\n"
        "  fix: name a file, a folder, a hub id such as org/name, or embedded:NAME"
    )


def test_no_name_is_refused_and_not_taken_for_this_folder(
    store: SourceDatasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [A])
    monkeypatch.chdir(tmp_path)
    assert texts(store.open(".")) == ["a"]
    assert refusal(store, "").startswith("dataset: no data set is named\n")


# A folder


def test_a_folder_without_names_of_splits_is_the_training_split(store: SourceDatasets, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d/b.jsonl", [B])
    write_jsonl(tmp_path / "d/a/z.jsonl", [A])
    parquet(tmp_path / "d/c.parquet", C)
    raw = store.open(str(tmp_path / "d"))
    assert (raw.kind, list(raw.files)) == ("folder", ["a/z.jsonl", "b.jsonl", "c.parquet"])
    assert [(row.row_id, row.where) for row in raw.rows()] == [
        (0, "a/z.jsonl:1"),
        (1, "b.jsonl:1"),
        (2, "c.parquet[0]"),
    ]
    assert (
        refusal(store, tmp_path / "d", "test") == f"{tmp_path / 'd'}: has no split 'test'\n  fix: split: one of train"
    )


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("Training-data.jsonl", "train"),
        ("my_train.jsonl", "train"),
        ("train/rows.jsonl", "train"),
        ("val.jsonl", "validation"),
        ("validation.jsonl", "validation"),
        ("valid_1.jsonl", "validation"),
        ("dev/rows.jsonl", "validation"),
        ("test.jsonl", "test"),
        ("a/testing/rows.jsonl", "test"),
        ("eval-1.jsonl", "test"),
        ("data/train-00000-of-00002.jsonl", "train"),
        ("data/val-00000-of-00001-0123456789abcdef.jsonl", "validation"),
        ("data/train_sft-00000-of-00003.jsonl", "train_sft"),
        ("data/test.v2-00000-of-00001.jsonl", "test.v2"),
        ("data/other-00000-of-00001.jsonl", "other"),
        ("more/train_sft-00000-of-00003.jsonl", "train"),
    ],
)
def test_splits_are_told_by_names(store: SourceDatasets, tmp_path: Path, name: str, split: str) -> None:
    write_jsonl(tmp_path / "d" / name, [A])
    for index, other in enumerate(("train", "validation", "test")):
        if other != split:
            write_jsonl(tmp_path / f"d/z{index}_{other}.jsonl", [B])
    assert texts(store.open(str(tmp_path / "d"), split=split)) == ["a"]


@pytest.mark.parametrize(
    "words", [("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing", "eval")]
)
def test_a_split_may_be_asked_for_by_any_of_its_names(
    store: SourceDatasets, tmp_path: Path, words: tuple[str, ...]
) -> None:
    for name in ("train", "dev", "eval"):
        write_jsonl(tmp_path / f"d/{name}.jsonl", [{"text": name}])
    found = [texts(store.open(str(tmp_path / "d"), split=word)) for word in words]
    assert found == [[{"train": "train", "validation": "dev", "test": "eval"}[words[0]]]] * len(words)


def test_words_inside_other_words_name_no_split(store: SourceDatasets, tmp_path: Path) -> None:
    for name in ("constraint", "latest", "device", "value", "contrain"):
        write_jsonl(tmp_path / f"d/{name}.jsonl", [{"text": name}])
    assert texts(store.open(str(tmp_path / "d"))) == ["constraint", "contrain", "device", "latest", "value"]


def test_a_missing_split_lists_those_that_are_there(store: SourceDatasets, tmp_path: Path) -> None:
    for name in ("train", "dev", "notes", "data/sft-00000-of-00001"):
        write_jsonl(tmp_path / f"d/{name}.jsonl", [A])
    assert refusal(store, tmp_path / "d", "eval") == (
        f"{tmp_path / 'd'}: has no split 'eval'\n  fix: split: one of sft, train, validation"
    )


def test_only_data_files_of_a_folder_are_read(store: SourceDatasets, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d/rows.jsonl", [A])
    for name in (
        "README.md",
        "dataset_info.json",
        "dataset_dict.json",
        "state.json",
        ".hidden.jsonl",
        ".cache/x.jsonl",
    ):
        (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_text("{")
    assert list(store.open(str(tmp_path / "d")).files) == ["rows.jsonl"]


def test_a_folder_below_a_hidden_one_is_read(store: SourceDatasets, tmp_path: Path) -> None:
    write_jsonl(tmp_path / ".cache/d/rows.jsonl", [A])
    assert texts(store.open(str(tmp_path / ".cache/d"))) == ["a"]


def test_a_folder_that_save_to_disk_wrote(store: SourceDatasets, tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([A, B])
    for split in ("train", "test"):
        (tmp_path / "d" / split).mkdir(parents=True)
        (tmp_path / "d" / split / "state.json").write_text("{}")
        with (
            pyarrow.OSFile(str(tmp_path / "d" / split / "data-00000-of-00001.arrow"), "wb") as sink,
            pyarrow.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table if split == "train" else table[:1])
    assert texts(store.open(str(tmp_path / "d"))) == ["a", "b"]
    assert texts(store.open(str(tmp_path / "d"), split="test")) == ["a"]


def test_a_folder_without_data_is_refused(store: SourceDatasets, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/rows.txt").write_text("a")
    assert refusal(store, tmp_path / "d") == (
        f"{tmp_path / 'd'}: the folder holds no data file\n"
        "  fix: put a .jsonl, .json, .csv, .parquet or .arrow file there"
    )


def test_an_empty_file_of_a_split_is_refused(store: SourceDatasets, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d/train.jsonl", [A])
    write_jsonl(tmp_path / "d/test.jsonl", [])
    assert texts(store.open(str(tmp_path / "d"))) == ["a"]
    assert refusal(store, tmp_path / "d", "test").startswith("test.jsonl: is empty\n")


# A hub


@pytest.mark.parametrize("repo_id", ["org/rows", "org/Rows-2.5", "rows"])
def test_a_hub_id(store: SourceDatasets, hub: LoopbackHub, tmp_path: Path, repo_id: str) -> None:
    test = parquet(tmp_path / "test.parquet", B)
    old = hub.dataset(repo_id).commit({"data/train.jsonl": b'{"text": "old"}\n'}, "v1")
    files = {"README.md": b"", "data/train.jsonl": b'{"text": "a"}\n', "data/test.parquet": test}
    new = hub.dataset(repo_id).commit(files)
    raw = store.open(repo_id)
    assert (raw.reference, raw.kind, raw.revision, raw.note) == (repo_id, "hub", new, "")
    assert raw.files == {"data/train.jsonl": digest_bytes(files["data/train.jsonl"])}
    assert raw.digest == digest_json(raw.files)
    assert [(row.row_id, row.where, row.value) for row in raw.rows()] == [(0, "data/train.jsonl:1", A)]
    assert texts(store.open(repo_id, split="test")) == ["b"]
    for revision in ("v1", old):
        pinned = store.open(f"{repo_id}@{revision}")
        assert (pinned.reference, pinned.revision, texts(pinned)) == (f"{repo_id}@{revision}", old, ["old"])
    assert (
        refusal(store, repo_id, "validation")
        == f"{repo_id}: has no split 'validation'\n  fix: split: one of test, train"
    )


def test_the_parts_of_a_hub_set_are_never_mixed(store: SourceDatasets, hub: LoopbackHub) -> None:
    hub.dataset("org/sums").commit(
        {
            "main/train-00000-of-00001.jsonl": b'{"text": "a"}\n',
            "socratic/train-00000-of-00001.jsonl": b'{"text": "b"}\n',
        }
    )
    assert refusal(store, "org/sums", "train") == (
        "dataset 'org/sums': has several parts with this split: main, socratic\n  fix: dataset: org/sums#main"
    )
    assert texts(store.open("org/sums#socratic")) == ["b"]
    assert texts(store.open("org/sums@main#main")) == ["a"]
    assert refusal(store, "org/sums#none", "train") == (
        "dataset 'org/sums#none': has no folder 'none'\n  fix: it has main, socratic"
    )
    assert "has no folder '../..'" in refusal(store, "org/sums#../..", "train")


def test_a_cached_copy_says_so(store: SourceDatasets, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.dataset("org/rows").commit({"train.jsonl": b'{"text": "a"}\n'})
    store.open("org/rows")
    leave_network(monkeypatch)
    raw = store.open("org/rows")
    assert (raw.revision, texts(raw)) == (commit, ["a"])
    assert f"using the cached copy of {commit}" in raw.note


def test_what_the_hub_lacks_is_the_hub_s_error(store: SourceDatasets, hub: LoopbackHub) -> None:
    with pytest.raises(HubError, match=r"^dataset org/none at main: "):
        store.open("org/none")


def test_a_folder_goes_before_a_hub_id(
    store: SourceDatasets, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "org/rows/a.jsonl", [A])
    monkeypatch.chdir(tmp_path)
    assert store.open("org/rows").kind == "folder"
    assert hub.asked == []


# What is made here


@pytest.mark.parametrize("name", embedded.PROCEDURAL)
def test_an_embedded_set(store: SourceDatasets, name: str) -> None:
    raw = store.open(f"embedded:{name}")
    expected = list(embedded.rows(name))
    assert (raw.reference, raw.kind, raw.files, raw.revision) == (f"embedded:{name}", "embedded", {}, "")
    assert raw.digest == digest_json({"embedded": name, "rows": expected})
    assert [row.value for row in raw.rows()] == expected
    last = {"dates": 6249, "reverse": 6249, "date_pairs": 1199}[name]
    assert [(row.row_id, row.where) for row in raw.rows()][-1] == (last, f"embedded:{name}[{last}]")


def test_an_unknown_embedded_set_is_refused(store: SourceDatasets) -> None:
    fix = "\n  fix: one of embedded:dates, embedded:reverse, embedded:date_pairs"
    assert refusal(store, "embedded:datez") == f"dataset 'embedded:datez': there is no embedded data set 'datez'{fix}"
    assert refusal(store, "embedded:dates", "test") == f"dataset 'embedded:dates': it has no split 'test'{fix}"


def test_noop_rows() -> None:
    raw = NoopDatasets(size=3).open("s3://anything")
    assert (raw.kind, raw.files, raw.note) == ("simulated", {}, "simulated rows")
    assert [(row.row_id, row.where, dict(row.value)) for row in raw.rows()] == [
        (
            index,
            f"s3://anything[{index}]",
            {
                "prompt": f"Example {index} from dataset s3://anything",
                "completion": label,
                "chosen": label,
                "rejected": other,
                "answer": label,
            },
        )
        for index, (label, other) in enumerate(
            (("label 0", "label 1"), ("label 1", "label 0"), ("label 0", "label 1"))
        )
    ]
    others = [NoopDatasets(3).open("b"), NoopDatasets(4).open("a"), NoopDatasets(3).open("a", split="test")]
    assert len({raw.digest for raw in [NoopDatasets(3).open("a"), *others]}) == 4
    assert NoopDatasets(3).open("a").digest == NoopDatasets(3).open("a").digest
    assert len(list(NoopDatasets().open("a").rows())) == 64


def test_the_resource_gives_the_adapter_that_it_names() -> None:
    assert isinstance(DatasetsResource().adapter(), SourceDatasets)
    noop = DatasetsResource(source=NoopSource(size=5)).adapter()
    assert len(list(noop.open("a").rows())) == 5
    assert [isinstance(store, DatasetStore) for store in (SourceDatasets(), noop)] == [True, True]
