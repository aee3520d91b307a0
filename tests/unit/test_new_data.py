"""Sensors on new data: what counts as new, when it is launched on, and what is said where it can't be looked at."""

import os
from pathlib import Path

import dagster as dg
import pytest

from kitchen_assets.kitchen import Kitchen
from kitchen_assets.new_data import Looks, judge
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.errors import DataError

RECIPE = """\
workflow: supervised
model: embedded:tiny
dataset: {dataset}
new_data: {{every_minutes: 0.5}}
"""


def test_the_first_look_is_not_launched_on() -> None:
    assert judge(None, "a") == (Looks("a", "a"), False)


def test_what_is_unchanged_is_not_launched_on() -> None:
    assert judge(Looks("a", "a"), "a") == (Looks("a", "a"), False)


def test_a_change_is_launched_on_when_it_stands_still() -> None:
    changed, launches = judge(Looks("a", "a"), "b")
    assert (changed, launches) == (Looks("a", "b"), False)
    growing, launches = judge(changed, "c")
    assert (growing, launches) == (Looks("a", "c"), False)
    assert judge(growing, "c") == (Looks("c", "c"), True)


def test_a_change_that_is_taken_back_is_not_launched_on() -> None:
    changed, _ = judge(Looks("a", "a"), "b")
    assert judge(changed, "a") == (Looks("a", "a"), False)


def test_a_file_is_told_by_size_and_time(tmp_path: Path) -> None:
    store, path = SourceDatasets(), tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    first = store.look(str(path))
    assert store.look(str(path)) == first
    os.utime(path, ns=(1, 1))
    touched = store.look(str(path))
    path.write_text("{}\n{}\n")
    os.utime(path, ns=(1, 1))
    assert len({first, touched, store.look(str(path))}) == 3


def test_a_folder_is_told_by_the_files_of_its_split(tmp_path: Path) -> None:
    store = SourceDatasets()
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "test.jsonl").write_text("{}\n")
    first = store.look(str(tmp_path))
    (tmp_path / "test.jsonl").write_text("{}\n{}\n")
    (tmp_path / "README.md").write_text("words")
    assert store.look(str(tmp_path)) == first
    (tmp_path / "train-2.jsonl").write_text("{}\n")
    assert store.look(str(tmp_path)) != first


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        SourceDatasets().look(str(tmp_path / "rows.jsonl"))


class Eye:
    """A location's sensor, looking again and again."""

    def __init__(self, folder: Path, dataset: str) -> None:
        (folder / "recipes").mkdir()
        (folder / "recipes" / "mine.yaml").write_text(RECIPE.format(dataset=dataset))
        defs = Kitchen(folder / "recipes").definitions()
        self.sensor = defs.resolve_sensor_def("mine_new_data")
        self.resources = defs.resources or {}
        self.cursor: str | None = None

    def look(self) -> tuple[list[str], str]:
        """Job and run key of what is launched, and what is said instead."""
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(
                instance=instance, cursor=self.cursor, resources={"datasets": self.resources["datasets"]}
            )
            found = self.sensor.evaluate_tick(context)
        self.cursor = found.cursor
        return [str(request.run_key) for request in found.run_requests or []], found.skip_message or ""


def test_a_locations_sensor_launches_once_a_change(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    eye = Eye(tmp_path, str(rows))
    assert (eye.sensor.job_name, eye.sensor.minimum_interval_seconds) == ("mine", 30)
    assert eye.sensor.default_status == dg.DefaultSensorStatus.STOPPED
    assert eye.look() == ([], f"{rows}: as it is now it isn't launched on")
    assert eye.look() == ([], f"{rows}: unchanged")
    rows.write_text("{}\n{}\n")
    assert eye.look() == ([], f"{rows}: changed; launched on when it stands still")
    keys, _ = eye.look()
    assert keys == [f"mine-{SourceDatasets().look(str(rows))}"]
    assert eye.look() == ([], f"{rows}: unchanged")


def test_what_cannot_be_looked_at_is_said_and_looked_at_again(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    eye = Eye(tmp_path, str(rows))
    eye.look()
    before = eye.cursor
    rows.rename(tmp_path / "away.jsonl")
    keys, said = eye.look()
    assert (keys, eye.cursor) == ([], before)
    assert "there is no such file or folder" in said
