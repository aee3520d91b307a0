"""Canonical JSON and digests, against values computed by hand or by sha256sum."""

import hashlib
import json
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy
import pytest

from kitchen_resources import digests
from kitchen_resources.digests import FileDigests, canonical_json, digest_bytes, digest_file, digest_json

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}"),
        (None, "null"),
        ([True, False, 1, -1, 0], "[true,false,1,-1,0]"),
        # By code point, whatever the order they were set in: upper case before lower case, digits before letters.
        ({"b": 1, "a": 2, "B": 3, "10": 4, "9": 5, "é": 6, "": 7}, '{"":7,"10":4,"9":5,"B":3,"a":2,"b":1,"é":6}'),
        ({"a": {"d": 1, "c": [{"f": 1, "e": 2}]}}, '{"a":{"c":[{"e":2,"f":1}],"d":1}}'),
        ('süß 🍲 \u2028 "\\/\n\x7f', '"süß 🍲 \u2028 \\"\\\\/\\n\x7f"'),
        ([1.0, 0.1, 1e-8, 2e-05, 1e16, 1e22, -0.0], "[1.0,0.1,1e-08,2e-05,1e+16,1e+22,-0.0]"),
        (0.1 + 0.2, "0.30000000000000004"),
        ((1, (2, ())), "[1,[2,[]]]"),
        (2**70, "1180591620717411303424"),
        (numpy.float64(0.5), "0.5"),
    ],
)
def test_canonical_json(value: Any, text: str) -> None:
    assert canonical_json(value) == text.encode()


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    value = {f"key {number}": {"x": number, "y": [number]} for number in range(20)}
    for seed in range(5):
        items = list(value.items())
        random.Random(seed).shuffle(items)
        assert canonical_json(dict(items)) == canonical_json(value)
    assert canonical_json([1, 2]) != canonical_json([2, 1])


def test_canonical_json_is_read_back() -> None:
    value = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    assert json.loads(canonical_json(value)) == value


def test_values_that_look_alike_are_told_apart() -> None:
    looks = [1, 1.0, "1", True, [1], {"1": 1}, None, "null", "", [], {}]
    assert len({canonical_json(value) for value in looks}) == len(looks)
    # Composed and decomposed: other bytes, so another value.
    assert canonical_json("\u00e9") != canonical_json("e\u0301")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "nan has no JSON form"),
        ({"a": [1, {"b": math.inf}]}, "inf has no JSON form"),
        ((0.0, -math.inf), "-inf has no JSON form"),
        ({1: "a"}, "JSON object key 1 is not a string"),
        ([{None: "a"}], "JSON object key None is not a string"),
        ({"a": {True: 1}}, "JSON object key True is not a string"),
        ({"a": {("b",): 1}}, r"JSON object key \('b',\) is not a string"),
        ({"a": {1, 2}}, "not a JSON value: .*set"),
        (b"bytes", "not a JSON value: .*bytes"),
        (numpy.float32(1.0), "not a JSON value: .*float32"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_what_has_no_canonical_json_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        canonical_json(value)


def test_digests_of_bytes_and_values() -> None:
    assert digest_bytes(b"") == EMPTY
    assert digest_bytes(b"abc") == ABC
    # printf '{"a":1,"b":[2.5,null]}' | sha256sum
    value = {"b": (2.5, None), "a": 1}
    assert digest_json(value) == "fbb68c4db7e0dd9e9fbcbf26036734a369258770a834b80de564070cb402a13a"


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_digest_of_a_file(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(data)
    assert digest_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


# Remembered digests.


class Reads:
    """Counts the files that are really read."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, path: Path) -> str:
        self.paths.append(path.name)
        return digest_file(path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    counted = Reads()
    monkeypatch.setattr(digests, "digest_file", counted)
    # As if years had passed since the files were made.
    monkeypatch.setattr(digests.time, "time_ns", lambda: 4 * 10**18)
    return counted


def test_a_file_is_read_once(tmp_path: Path, reads: Reads) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    remembered = FileDigests()
    assert [remembered(tmp_path / "a") for _ in range(3)] == [ABC] * 3
    assert reads.paths == ["a"]


def test_every_name_of_a_file_is_one_file(tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    remembered = FileDigests()
    assert {remembered(path) for path in (tmp_path / "a", Path("a"), tmp_path / "link")} == {ABC}
    assert reads.paths == ["a"]


def test_two_files_of_one_size_are_two_files(tmp_path: Path, reads: Reads) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"abd")
    remembered = FileDigests()
    assert remembered(tmp_path / "a") == ABC
    assert remembered(tmp_path / "b") == hashlib.sha256(b"abd").hexdigest()


def test_a_changed_file_is_read_again(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    os.utime(path, ns=(10**18, 10**18))
    remembered = FileDigests(tmp_path / "memory")
    assert remembered(path) == ABC
    # Other size; same size, written in place; replaced by another file with the same times.
    for change in (b"abcd", b"abce", b"abcf"):
        if change.endswith(b"f"):
            (tmp_path / "new").write_bytes(change)
            (tmp_path / "new").replace(path)
        else:
            path.write_bytes(change)
        os.utime(path, ns=(10**18, 10**18))
        _let_the_clock_tick(path)
        assert remembered(path) == hashlib.sha256(change).hexdigest()
    assert reads.paths == ["a"] * 4


def _let_the_clock_tick(path: Path) -> None:
    """Set the time of change again until it differs: it has the resolution of the kernel's tick."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    changed = max(path.stat().st_mtime_ns, path.stat().st_ctime_ns)
    remembered = FileDigests(tmp_path / "memory")
    for now, times_read in ((changed, 1), (changed + 2 * 10**9, 2), (changed + 2 * 10**9 + 1, 3), (changed, 3)):
        monkeypatch.setattr(digests.time, "time_ns", lambda now=now: now)
        assert remembered(path) == ABC
        assert len(reads.paths) == times_read


def test_a_digest_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileDigests()(tmp_path / "a")


def test_digests_are_remembered_between_processes(tmp_path: Path, reads: Reads) -> None:
    memory = tmp_path / "deep" / "memory.json"
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    first = FileDigests(memory)
    assert [first(tmp_path / name) for name in "ab"] == [digest_bytes(b"a"), digest_bytes(b"b")]
    again = FileDigests(memory)
    assert [again(tmp_path / name) for name in "ab"] == [digest_bytes(b"a"), digest_bytes(b"b")]
    assert reads.paths == ["a", "b"]
    assert [path.name for path in memory.parent.iterdir()] == ["memory.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe"])
def test_a_memory_that_cannot_be_read_is_made_again(tmp_path: Path, reads: Reads, content: bytes) -> None:
    memory = tmp_path / "memory.json"
    memory.write_bytes(content)
    (tmp_path / "a").write_bytes(b"abc")
    assert FileDigests(memory)(tmp_path / "a") == ABC
    assert list(json.loads(memory.read_bytes()).values()) == [ABC]
