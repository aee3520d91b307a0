"""The JSONL file when it is rotated, by one process and by several at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from kitchen_resources.telemetry.jsonl import JsonlHandler, read_jsonl
from kitchen_resources.telemetry.port import Event

WRITER = """
import sys
from pathlib import Path
from kitchen_resources.telemetry.jsonl import JsonlHandler
from kitchen_resources.telemetry.port import Event
handler = JsonlHandler(Path(sys.argv[1]), max_mib=0.01, keep=1000)
for number in range(400):
    handler.handle(Event("model.registered", 0.0, {"count": number}, {"name": sys.argv[2]}))
handler.close()
"""


def event(number: int) -> Event:
    return Event("model.registered", 0.0, {"count": number}, {"name": "x" * 60})


def counts(path: Path) -> list[int]:
    return [record["measurements"]["count"] for record in read_jsonl(path)]


def test_a_full_file_is_renamed_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "events.jsonl"
    # Of about 150 bytes a line, six to a file.
    handler = JsonlHandler(path, max_mib=1000 / 2**20, keep=2)
    for number in range(30):
        handler.handle(event(number))
    handler.close()
    files = [path.with_name(f"{path.name}.2"), path.with_name(f"{path.name}.1"), path]
    assert sorted(each.name for each in path.parent.iterdir() if not each.name.startswith(".")) == [
        "events.jsonl",
        "events.jsonl.1",
        "events.jsonl.2",
    ]
    found = [counts(each) for each in files]
    whole = [number for each in found for number in each]
    assert whole == list(range(30 - len(whole), 30)), "in order, without a gap, to the last"
    assert all(each.stat().st_size <= 1000 for each in files)
    assert len(found[0]) == len(found[1]) > 1


def test_nothing_is_rotated_without_a_bound(tmp_path: Path) -> None:
    handler = JsonlHandler(tmp_path / "events.jsonl")
    for number in range(50):
        handler.handle(event(number))
    handler.close()
    assert counts(tmp_path / "events.jsonl") == list(range(50))
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_a_line_that_is_longer_than_a_file_is_written(tmp_path: Path) -> None:
    handler = JsonlHandler(tmp_path / "events.jsonl", max_mib=10 / 2**20, keep=0)
    handler.handle(event(1))
    handler.handle(event(2))
    handler.close()
    assert counts(tmp_path / "events.jsonl") == [2]


def test_a_file_that_another_renamed_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    handler = JsonlHandler(path)
    handler.handle(event(1))
    path.rename(tmp_path / "events.jsonl.1")
    handler.handle(event(2))
    handler.close()
    assert (counts(tmp_path / "events.jsonl.1"), counts(path)) == ([1], [2])


def test_processes_that_share_and_rotate_a_file_lose_no_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    written: dict[str, list[int]] = {name: [] for name in "abc"}
    full = sorted(
        (each for each in tmp_path.glob("events.jsonl.*")), key=lambda each: -int(each.suffix.removeprefix("."))
    )
    assert len(full) > 5
    for each in [*full, path]:
        for record in read_jsonl(each):
            written[record["metadata"]["name"]].append(record["measurements"]["count"])
    assert {name: sorted(numbers) for name, numbers in written.items()} == {key: list(range(400)) for key in "abc"}


@pytest.mark.parametrize("number", [float("nan"), 3])
def test_a_line_is_one_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: float) -> None:
    """However long: what is written in pieces, another process can write between."""
    written: list[bytes] = []
    monkeypatch.setattr(
        "kitchen_resources.telemetry.jsonl.os.write", lambda _, data: (written.append(bytes(data)), len(data))[1]
    )
    handler = JsonlHandler(tmp_path / "events.jsonl")
    handler.handle(Event("model.registered", 0.0, {"count": number}, {"name": "x" * 100_000}))
    assert len(written) == 1
    assert written[0].endswith(b"\n")
