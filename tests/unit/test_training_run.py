"""A training run on the noop backend: what is trained, what is not trained again, and what people are told."""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.head import RunEnd, head_key
from kitchen_resources.checkpoints.lease import acquire
from kitchen_resources.datasets.sources import NoopDatasets
from kitchen_resources.errors import CheckpointError
from kitchen_resources.training.noop import NoopTrainer
from tests.engine import (
    ROWS,
    Engine,
    epoch_ends,
    needed_files,
    payload_keys,
    register,
    states,
    undisturbed,
)
from tests.faulty_blobs import FaultyBlobs


@pytest.fixture
def engine() -> Engine:
    return Engine()


def ledger(engine: Engine, step: int) -> list[list[int]]:
    entry = engine.head().at(step)
    assert entry is not None
    return engine.store.ledger(engine.store.manifest(entry))


# One go


def test_a_run_makes_a_checkpoint_at_the_end_of_each_epoch(engine: Engine) -> None:
    finished = engine.finish()
    assert finished.steps_done == 9
    assert [(e.step, e.epoch, e.epoch_complete) for e in finished.head.entries()] == [
        (3, 1, True),
        (6, 2, True),
        (9, 3, True),
    ]
    assert finished.selected == finished.head.entries()[-1]
    assert finished.head.end == RunEnd("completed", epoch=3, step=9)
    assert finished.head.holder is None
    assert engine.told.steps == [3, 6, 9]
    assert len(set(states(finished.head).values())) == 3


def test_each_checkpoint_names_its_parent_and_every_row_once(engine: Engine) -> None:
    head = engine.finish(keep_last=3).head
    manifests = [engine.store.manifest(entry) for entry in head.entries()]
    assert [manifest.parent for manifest in manifests] == ["", *list(states(head).values())[:2]]
    assert [manifest.steps_into_epoch for manifest in manifests] == [3, 3, 3]
    for manifest in manifests:
        rows = engine.store.ledger(manifest)
        assert [len(step) for step in rows] == [4, 4, 2]
        assert sorted(row for step in rows for row in step) == list(range(ROWS))
        assert [step.global_step for step in engine.store.steps(manifest)] == list(
            range(manifest.global_step - 2, manifest.global_step + 1)
        )
    assert manifests[0].simulated
    assert manifests[0].recipe == "supervised"
    assert manifests[0].identity["plan"] == {
        "epochs": 3,
        "steps_per_epoch": 3,
        "total_steps": 9,
        "warmup_steps": 0,
    }


def test_epoch_by_epoch_in_any_order_and_process_gives_the_same_states(engine: Engine) -> None:
    whole = undisturbed()
    engine.run().planned()
    assert engine.run().ensure(2) == 6
    assert engine.run().ensure(1) == 0
    assert engine.run().ensure(3) == 3
    assert engine.run().ensure(2) == 0
    assert engine.run().finish().steps_done == 0
    assert epoch_ends(engine.head()) == whole


def test_one_process_goes_on_from_its_own_folder_without_reading_back() -> None:
    engine = Engine()
    read: list[str] = []
    engine.blobs = FaultyBlobs(
        engine.blobs, before=lambda verb, key: read.append(key) if verb == "get_file" else None
    )
    engine.finish()
    assert [key for key in read if "/payload/" in key] == []
    assert epoch_ends(engine.head()) == undisturbed()


def test_the_scratch_of_a_run_is_gone_when_its_session_is_closed(engine: Engine) -> None:
    engine.finish()
    assert [path for path in (engine.blobs.scratch() / "runs").rglob("*") if path.is_file()] == []


def test_max_steps_ends_the_last_epoch_early(engine: Engine) -> None:
    finished = engine.finish(max_steps=5)
    assert finished.steps_done == 5
    assert [(e.step, e.epoch, e.epoch_complete) for e in finished.head.entries()] == [(3, 1, True), (5, 2, True)]
    assert finished.head.end == RunEnd("completed", epoch=2, step=5)
    assert [len(step) for step in ledger(engine, 5)] == [4, 4]
    assert engine.finish(max_steps=5).steps_done == 0


def test_max_steps_beyond_all_epochs_changes_nothing(engine: Engine) -> None:
    engine.finish(max_steps=100)
    assert epoch_ends(engine.head()) == undisturbed()


# Again


def test_a_finished_run_again_does_nothing(engine: Engine) -> None:
    first = engine.finish()
    before = list(engine.blobs.list("runs/"))
    run = engine.run()
    planned = run.planned()
    assert (planned.missing, planned.epochs) == ((), 3)
    again = run.finish()
    assert again.steps_done == 0
    assert again.selected == first.selected
    assert list(engine.blobs.list("runs/")) == before
    assert engine.told.steps == [3, 6, 9]


@pytest.mark.parametrize(
    "fields",
    [
        {"keep_last": 1, "keep_best": 0},
        {"checkpoint_steps": 2},
        {"eval_every": 0},
        {"lease_wait_s": 5.0},
        {"export": "adapter"},
        {"on_drift": "refuse"},
        {"select": "last", "select_metric": "held_out/perplexity"},
    ],
)
def test_what_moves_no_weights_trains_nothing_again(engine: Engine, fields: dict[str, Any]) -> None:
    engine.finish()
    assert engine.finish(**fields).steps_done == 0
    assert len(engine.store.find("")) == 1


def test_a_finished_run_launched_with_less_retention_gives_the_room_back(engine: Engine) -> None:
    engine.finish(keep_last=3)
    assert [entry.payload for entry in engine.head().entries()] == ["present"] * 3
    again = engine.finish(keep_last=1)
    assert again.steps_done == 0
    assert [entry.payload for entry in engine.head().entries()] == ["pruned", "pruned", "present"]
    assert len(payload_keys(engine)) == needed_files(engine) == 1


def test_what_a_model_version_was_made_of_keeps_its_payload(engine: Engine) -> None:
    engine.run(keep_last=1).ensure(1)
    register(engine, engine.head(), 3)
    engine.finish(keep_last=1)
    assert [entry.payload for entry in engine.head().entries()] == ["present", "pruned", "present"]


def test_a_finished_run_stays_finished_when_its_payload_is_gone(engine: Engine) -> None:
    head = engine.finish().head
    lease = acquire(engine.blobs, head.fingerprint, run="prune", wait_s=0.0)
    assert engine.store.prune(lease, set(), "by hand") == [6, 9]
    lease.release()
    assert payload_keys(engine) == set()
    assert engine.finish().steps_done == 0
    assert [entry.payload for entry in engine.head().entries()] == ["pruned"] * 3


@pytest.mark.parametrize(
    ("fields", "moved"),
    [
        ({"seed": 5}, "seed: 0 -> 5"),
        ({"learning_rate": 0.5}, "learning_rate: 2e-05 -> 0.5"),
        ({"batch_size": 5}, "batch_size: 4 -> 5; plan.steps_per_epoch: 3 -> 2; plan.total_steps: 9 -> 6"),
        ({"epochs": 4}, "plan.epochs: 3 -> 4; plan.total_steps: 9 -> 12"),
        ({"warmup_steps": 2}, "plan.warmup_steps: 0 -> 2"),
    ],
)
def test_what_moves_weights_is_a_new_run_and_says_what_moved(
    engine: Engine, fields: dict[str, Any], moved: str
) -> None:
    old = engine.finish().head.fingerprint
    run = engine.run(**fields)
    planned = run.planned()
    assert run.fingerprint != old
    order = sorted(moved.split("; "))
    assert sorted(planned.notes[0].partition("moved: ")[2].split("; ")) == order
    assert planned.notes[0].startswith(f"run {run.fingerprint[:12]} is new; since run {old[:12]} moved: ")
    assert planned.notes[1:] == (
        f"it trains {run.plan.total_steps} steps from the start; to go on from what is there instead, "
        f"write continue_from: {old[:12]}",
    )
    assert planned.missing == tuple(range(1, run.plan.epochs + 1))
    assert run.finish().steps_done == run.plan.total_steps


def test_a_changed_row_is_a_new_run(engine: Engine) -> None:
    first = engine.finish().head
    other = engine.with_(datasets=NoopDatasets(ROWS + 1))
    second = other.finish().head
    assert second.fingerprint != first.fingerprint
    (note,) = other.run().planned().notes
    assert note == f"run {second.fingerprint[:12]}: 0 of 3 epochs are missing"


def test_the_first_run_is_new_and_one_under_way_says_what_is_missing(engine: Engine) -> None:
    run = engine.run()
    assert run.planned().notes == (f"run {run.fingerprint[:12]} is new",)
    run.ensure(1)
    planned = engine.run().planned()
    assert planned.notes == (f"run {run.fingerprint[:12]}: 2 of 3 epochs are missing",)
    assert planned.missing == (2, 3)


def test_a_run_without_a_checkpoint_is_not_offered_to_go_on_from(engine: Engine) -> None:
    engine.run().planned()
    planned = engine.run(seed=1).planned()
    assert len(planned.notes) == 1
    assert "seed: 0 -> 1" in planned.notes[0]


# The environment


class Elsewhere(NoopTrainer):
    """The noop backend on another machine."""

    def __init__(self, threads: int = 1, **environment: Any) -> None:
        self._threads = threads
        self._environment = environment

    def resolve(self, recipe: Any, base: Any, models: Any = MappingProxyType({})) -> Any:
        from dataclasses import replace

        resolution = super().resolve(recipe, base, models)
        environment = {**resolution.environment, "threads": self._threads, **self._environment}
        return replace(resolution, threads=self._threads, environment=environment)


def _started_elsewhere(engine: Engine) -> None:
    engine.with_(adapter=Elsewhere(torch="2.13", cpu="avx2")).run().ensure(1)


def test_another_environment_is_said_field_by_field(engine: Engine) -> None:
    _started_elsewhere(engine)
    here = engine.with_(adapter=Elsewhere(torch="2.14", cpu="avx2"))
    assert here.finish().steps_done == 6
    assert here.told.said[0] == (
        "this run was started in another environment (torch: 2.13 -> 2.14); its bits may differ from one go"
    )
    assert engine.store.manifest(engine.head().entries()[-1]).environment["torch"] == "2.14"


def test_another_environment_is_refused_where_that_is_asked_for(engine: Engine) -> None:
    _started_elsewhere(engine)
    here = engine.with_(adapter=Elsewhere(torch="2.14", cpu="avx512"))
    with pytest.raises(CheckpointError) as refused:
        here.finish(on_drift="refuse")
    assert str(refused.value) == (
        f"run {engine.head().fingerprint[:12]}: this run was started in another environment "
        "(cpu: avx2 -> avx512; torch: 2.13 -> 2.14); its bits may differ from one go\n"
        "  fix: restore it, or set on_drift: warn"
    )
    assert here.told.steps == []
    assert engine.head().holder is None


def test_the_same_environment_is_not_remarked_on(engine: Engine) -> None:
    _started_elsewhere(engine)
    same = engine.with_(adapter=Elsewhere(torch="2.13", cpu="avx2"))
    same.finish(on_drift="refuse")
    assert "environment" not in same.told.text


def test_a_run_keeps_the_threads_it_was_started_with(engine: Engine) -> None:
    engine.with_(adapter=Elsewhere(threads=3)).run().ensure(1)
    here = engine.with_(adapter=Elsewhere(threads=8))
    run = here.run(on_drift="refuse")
    assert run.job().resolution.threads == 3
    assert run.finish().steps_done == 6
    environments = [engine.store.manifest(entry).environment["threads"] for entry in engine.head().entries()]
    assert environments == [3, 3, 3]


def test_the_keys_of_a_run_are_those_of_its_fingerprint(engine: Engine) -> None:
    head = engine.finish().head
    keys: Callable[[str], list[str]] = lambda prefix: list(engine.blobs.list(prefix))  # noqa: E731
    assert head_key(head.fingerprint) in keys("runs/")
    assert all(key.startswith(f"runs/{head.fingerprint}/") for key in keys("runs/"))
    assert keys("recipes/") == [f"recipes/supervised/runs/{head.fingerprint}.json"]


def test_what_a_killed_process_had_not_cleared_up_goes_when_there_is_nothing_to_train(tmp_path: Path) -> None:
    engine = Engine(blobs=LocalBlobs(tmp_path))
    engine.finish()
    runs = tmp_path / ".scratch" / "runs" / engine.head().fingerprint
    (runs / "folder-and-lock").mkdir(parents=True)
    (runs / "folder-and-lock.lock").touch()
    (runs / "lock-alone.lock").touch()
    assert engine.finish().steps_done == 0
    assert not runs.exists()
