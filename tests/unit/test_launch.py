"""A launch: what its stages note for each other, kept apart from every other launch."""

from pathlib import Path
from typing import Any

import pytest

from kitchen_resources import launch as launch_module
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.datasets.port import RawDataset
from kitchen_resources.datasets.sources import NoopDatasets
from kitchen_resources.errors import DataError
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.port import BaseModel, Capabilities
from tests.engine import ROWS, Engine, UnmarkedTrainer
from tests.faulty_blobs import FaultyBlobs


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_what_one_stage_noted_the_next_reads(engine: Engine) -> None:
    engine.launch(run_id="one").write("run", {"fingerprint": "abc"})
    assert engine.launch(run_id="one").read("run") == {"fingerprint": "abc"}
    assert engine.launch(run_id="one").read("base") is None


@pytest.mark.parametrize(
    "how",
    [
        {"run_id": "two"},
        {"run_id": "one", "epochs": 4},
        {"run_id": "one", "lora": {"rank": 4}},
        {"run_id": "one", "evaluations": [{"name": "other"}]},
        {"run_id": "one", "row_limits": {"truncated": 0.5}},
        {"run_id": "one", "columns": {"prompt": "question"}},
    ],
)
def test_another_run_or_another_config_reads_nothing_of_it(engine: Engine, how: dict[str, Any]) -> None:
    engine.launch(run_id="one").write("run", {"fingerprint": "abc"})
    assert engine.launch(**how).read("run") is None


def test_another_backend_reads_nothing_of_it(engine: Engine) -> None:
    class Other(NoopTrainer):
        def capabilities(self) -> Capabilities:
            from dataclasses import replace

            return replace(super().capabilities(), backend="other")

    engine.launch(run_id="one").write("run", {"fingerprint": "abc"})
    assert engine.with_(adapter=Other()).launch(run_id="one").read("run") is None


def test_a_re_execution_reads_what_the_run_it_repeats_has_noted(engine: Engine) -> None:
    engine.launch(run_id="one").write("run", {"fingerprint": "abc"})
    assert engine.launch(run_id="two", root_id="one").read("run") == {"fingerprint": "abc"}
    # A note of the re-execution is one of the whole launch.
    engine.launch(run_id="two", root_id="one").write("run", {"fingerprint": "def"})
    assert engine.launch(run_id="one").read("run") == {"fingerprint": "def"}


def test_noting_the_same_again_writes_nothing(engine: Engine) -> None:
    writes: list[str] = []
    engine.launch(run_id="one").write("run", {"a": 1, "b": 2})
    engine.blobs = FaultyBlobs(
        engine.blobs, before=lambda verb, key: writes.append(key) if verb == "compare_and_swap" else None
    )
    engine.launch(run_id="one").write("run", {"b": 2, "a": 1})
    assert writes == []
    engine.launch(run_id="one").write("run", {"a": 1, "b": 3})
    assert len(writes) == 1


def test_two_stages_that_note_at_once_both_come_through() -> None:
    class Racing(MemoryBlobs):
        raced = False

        def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> str | None:
            if not self.raced:
                self.raced = True
                assert super().compare_and_swap(key, expected, b'{"by":"other"}') is not None
            return super().compare_and_swap(key, expected, data)

    engine = Engine(blobs=Racing())
    engine.launch(run_id="one").write("run", {"by": "me"})
    assert engine.launch(run_id="one").read("run") == {"by": "me"}


def test_data_are_prepared_once_and_found_by_all_stages_and_launches(engine: Engine) -> None:
    first = engine.launch(run_id="one")
    prepared, report = first.prepare()
    assert (prepared.train.rows, prepared.held_out, prepared.simulated) == (ROWS, None, True)
    assert report.rows_read == ROWS

    class Gone(NoopDatasets):
        def open(self, reference: str, *, split: str = "train") -> RawDataset:
            raise DataError("is gone", where=reference)

    # A later stage of the launch asks for nothing but what was noted.
    later = engine.with_(datasets=Gone()).launch(run_id="one")
    assert later.prepared == prepared
    assert later.training_rows().rows == ROWS
    # Another launch has to look at the raw data again, and finds the same.
    assert engine.launch(run_id="two").prepared == prepared
    with pytest.raises(DataError, match="is gone"):
        engine.with_(datasets=Gone()).launch(run_id="three").prepared  # noqa: B018


def test_the_rows_of_one_launch_are_not_those_of_another(engine: Engine) -> None:
    one, two = engine.launch(run_id="one", dataset="a"), engine.launch(run_id="two", dataset="b")
    assert one.prepared.trained.digest != two.prepared.trained.digest
    assert one.training_rows().path != two.training_rows().path
    assert one.training_rows().path.read_bytes() != two.training_rows().path.read_bytes()


def test_the_runs_of_a_recipe_are_known_oldest_first(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from kitchen_resources.training import run as module

    assert engine.launch().known_runs() == []
    times = iter([30.0, 10.0, 20.0, 5.0])
    monkeypatch.setattr(module.time, "time", lambda: next(times))
    made = {}
    for seed in (0, 1, 2, 0):
        run = engine.run(seed=seed)
        run.planned()
        made.setdefault(seed, run.fingerprint)
    known = engine.launch().known_runs()
    # The time is that of a run's first launch; a later one leaves it as it is.
    assert [(run["fingerprint"], run["created"]) for run in known] == [
        (made[1], 10.0),
        (made[2], 20.0),
        (made[0], 30.0),
    ]
    assert known[0]["identity"]["recipe"]["seed"] == 1


def test_a_hub_model_stays_at_the_commit_that_the_launch_started_with(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = iter(["c0ffee", "later"])

    def resolved(reference: str, cache: Path, field: str) -> BaseModel:
        revision = "c0ffee" if reference.endswith("@c0ffee") else next(commits)
        return BaseModel(reference, None, revision * 8, {}, revision=revision)

    monkeypatch.setattr(launch_module, "resolve_base", resolved)
    real = engine.with_(adapter=UnmarkedTrainer())
    launch = real.launch(run_id="one", model="org/name@main")
    launch.pin_models()
    assert launch.read("base") == {
        "asked": "org/name@main",
        "resolved": "org/name@c0ffee",
        "digest": "c0ffee" * 8,
    }
    again = real.launch(run_id="one", model="org/name@main").base
    assert (again.reference, again.digest) == ("org/name@c0ffee", "c0ffee" * 8)
    other = real.launch(run_id="two", model="org/name@main").base
    assert (other.reference, other.revision) == ("org/name@main", "later")
