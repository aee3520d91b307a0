"""The contracts of telemetry and its handlers, and the events of real runs against the table of events."""

import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import kitchen_assets as kitchen
from kitchen_assets.kitchen import built_in
from kitchen_resources.errors import ConfigError, DataError
from kitchen_resources.telemetry.console import ConsoleHandler
from kitchen_resources.telemetry.dispatch import Dispatcher, NoopTelemetry
from kitchen_resources.telemetry.jsonl import JsonlHandler, read_jsonl
from kitchen_resources.telemetry.port import EVENTS, Event, Handler, Telemetry, declared
from kitchen_resources.telemetry.resource import TelemetryResource
from kitchen_resources.training.noop import NoopSession
from tests.pretending import Pretence, Recorded, ScriptedEvaluator, train, write_sums

ADAPTERS: dict[str, Callable[[Path], Telemetry]] = {
    "dispatcher, no handler": lambda folder: Dispatcher(),
    "dispatcher, console and jsonl": lambda folder: Dispatcher(
        [ConsoleHandler(io.StringIO()), JsonlHandler(folder / "events.jsonl")]
    ),
    "noop": lambda folder: NoopTelemetry(),
}
HANDLERS: dict[str, Callable[[Path], Handler]] = {
    "console": lambda folder: ConsoleHandler(io.StringIO(), every_s=0.0),
    "jsonl": lambda folder: JsonlHandler(folder / "events.jsonl"),
}


def example(name: str) -> Event:
    """An event with all that is declared of it."""
    metadata = EVENTS[name][2]
    about: dict[str, Any] = dict.fromkeys(metadata, "text")
    about.update({key: 3 for key in ("epoch", "step", "total_steps", "version") if key in about})
    return Event(name, 1.0, dict.fromkeys(set().union(*declared(name)), 1.0), about)


# Adapters.


@pytest.fixture(params=ADAPTERS)
def telemetry(request: pytest.FixtureRequest, tmp_path: Path) -> Telemetry:
    return ADAPTERS[request.param](tmp_path)


def test_it_is_telemetry(telemetry: Telemetry) -> None:
    assert isinstance(telemetry, Telemetry)


def test_every_event_is_taken(telemetry: Telemetry) -> None:
    for name in EVENTS:
        event = example(name)
        telemetry.emit(name, event.measurements, event.metadata)
    telemetry.close()
    telemetry.close()


def test_an_event_that_is_not_in_the_table_is_a_mistake(telemetry: Telemetry) -> None:
    with pytest.raises(KeyError, match=r"training\.steps"):
        telemetry.emit("training.steps", {}, {})


@pytest.fixture(params=HANDLERS)
def handler(request: pytest.FixtureRequest, tmp_path: Path) -> Handler:
    return HANDLERS[request.param](tmp_path)


def test_it_is_a_handler(handler: Handler) -> None:
    assert isinstance(handler, Handler)


@pytest.mark.parametrize("name", EVENTS)
def test_a_handler_takes_every_event_as_declared(handler: Handler, name: str) -> None:
    handler.handle(example(name))
    handler.close()
    handler.close()


def test_every_event_is_on_record(tmp_path: Path) -> None:
    handler = JsonlHandler(tmp_path / "events.jsonl")
    events = [example(name) for name in EVENTS]
    for event in events:
        handler.handle(event)
    handler.close()
    assert read_jsonl(tmp_path / "events.jsonl") == [
        {
            "timestamp": event.time,
            "event": event.name,
            "measurements": event.measurements,
            "metadata": event.metadata,
        }
        for event in events
    ]


# The table.


def test_the_table_names_each_thing_once() -> None:
    for name, (said, measurements, metadata) in EVENTS.items():
        assert re.fullmatch(r"[a-z]+(\.[a-z_]+)+", name)
        assert said.endswith(".")
        assert len({*measurements, *metadata}) == len(measurements) + len(metadata), name


# Real runs.


def require_declared(events: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> None:
    """Every event carries what the table says of it, and nothing else."""
    for name, measurements, metadata in events:
        _, measured, about = EVENTS[name]
        always, sometimes = declared(name)
        extra = measurements.keys() - always - sometimes
        assert measurements.keys() >= always or "<evaluation>/<metric>" in measured, name
        if "<evaluation>/<metric>" in measured:
            assert all(re.fullmatch(r"\w+/\w+", metric) for metric in extra), (name, extra)
        elif "<of the method>" in measured:
            assert extra <= {"simulated"}, extra
        else:
            assert extra == set(), (name, extra)
        assert metadata.keys() == set(about), name
        assert all(isinstance(value, (int, float)) for value in measurements.values())
        assert all(value >= 0 for key, value in measurements.items() if key == "duration_s")


recorded = Recorded()


class RecordingResource(TelemetryResource):
    """Telemetry of every process step in `recorded`."""

    def adapter(self) -> Telemetry:
        return recorded


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[tuple[str, dict[str, Any], dict[str, Any]]]]:
    """Runs the supervised recipe with the noop backend on 20 rows, and returns the events of the run."""
    rows = write_sums(tmp_path / "rows.jsonl")

    def run(error: type[Exception] | None = None, **config: Any) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
        recorded.events.clear()
        small = {"dataset": str(rows), "held_out": "0.2", "epochs": 3, "batch_size": 8, "evaluations": []}
        resources = {
            "trainer": {"backend": {"noop": {}}},
            "blobs": {"store": {"memory": {"name": str(tmp_path)}}},
            "telemetry": RecordingResource(),
        }
        with dg.DagsterInstance.ephemeral() as instance:
            if error is None:
                kitchen.run("supervised", {**small, **config}, resources, instance=instance)
            else:
                with pytest.raises(error):
                    kitchen.run("supervised", {**small, **config}, resources, instance=instance)
        return list(recorded.events)

    return run


def stages_of(events: list[tuple[str, dict[str, Any], Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """Start and end of stages and of the run, in order."""
    return [
        (name, metadata.get("stage", metadata.get("workflow")))
        for name, _, metadata in events
        if name.startswith(("stage", "workflow"))
    ]


def span(stage: str) -> list[tuple[str, str]]:
    return [("stage.run.start", stage), ("stage.run.stop", stage)]


def test_events_of_a_whole_run(run: Callable[..., Any]) -> None:
    events = run()
    require_declared(events)
    names = ["raw", "dataset", "plan_epochs", *["train_epoch"] * 3, "model", "evaluation", "registered_model"]
    assert stages_of(events) == [
        ("workflow.run.start", "supervised"),
        *[event for stage in names for event in span(stage)],
        ("workflow.run.stop", "supervised"),
    ]
    assert Counter(name for name, _, _ in events if not name.startswith(("stage", "workflow"))) == {
        "dataset.load": 1,
        "dataset.prepared": 1,
        "training.step": 6,
        "training.checkpoint": 3,
        "training.epoch": 3,
        "eval.complete": 1,
        "model.registered": 1,
    }
    assert {metadata["recipe"] for _, _, metadata in events} == {"supervised"}
    assert len({metadata["run"] for _, _, metadata in events if "run" in metadata}) == 1
    assert all(metadata["success"] for name, _, metadata in events if name.endswith(".stop"))
    ((loaded, of), (prepared, _), (registered, version)) = (
        recorded.named(name)[0] for name in ("dataset.load", "dataset.prepared", "model.registered")
    )
    assert loaded == {"rows": 20}
    assert of["dataset"].endswith("rows.jsonl")
    assert (prepared["rows"], prepared["held_out_rows"]) == (16, 4)
    assert (registered, version["name"], version["version"]) == ({"count": 1}, "supervised", 1)
    steps = recorded.named("training.step")
    assert [(about["epoch"], about["step"], about["total_steps"]) for _, about in steps] == [
        (1, 1, 6),
        (1, 2, 6),
        (2, 3, 6),
        (2, 4, 6),
        (3, 5, 6),
        (3, 6, 6),
    ]
    trained = sum(measured["tokens"] for measured, _ in steps)
    assert trained == 3 * prepared["trained_tokens"]
    epochs = recorded.named("training.epoch")
    assert [measured["tokens"] for measured, _ in epochs] == [prepared["trained_tokens"]] * 3
    assert [about["step"] for _, about in epochs] == [2, 4, 6]
    # Nothing was measured of a simulated run, and that is not zero.
    assert recorded.named("eval.complete")[0][0] == {}
    # The run was longer than any of its stages.
    (whole,) = [measured["duration_s"] for measured, _ in recorded.named("workflow.run.stop")]
    assert whole >= max(measured["duration_s"] for measured, _ in recorded.named("stage.run.stop"))
    # Again: a run of its own that trains nothing.
    again = run()
    require_declared(again)
    assert [name for name, _, _ in again if name.startswith("training")] == []
    assert stages_of(again)[-1] == ("workflow.run.stop", "supervised")


def test_events_of_a_refused_run(run: Callable[..., Any]) -> None:
    events = run(ConfigError, epochs=0)
    require_declared(events)
    assert stages_of(events) == [
        ("workflow.run.start", "supervised"),
        ("stage.run.start", "raw"),
        ("stage.run.exception", "raw"),
        ("stage.run.stop", "raw"),
        ("workflow.run.exception", "supervised"),
        ("workflow.run.stop", "supervised"),
    ]
    errors = [metadata["error"] for _, _, metadata in events if "error" in metadata]
    assert len(errors) == 2
    assert all(error.startswith("ConfigError: recipe supervised: ") for error in errors)
    assert [metadata["success"] for _, _, metadata in events if "success" in metadata] == [False, False]


def test_events_of_a_run_that_a_check_blocks(run: Callable[..., Any], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": ""}\n')
    events = run(DataError, dataset=str(bad), held_out="0")
    require_declared(events)
    assert stages_of(events) == [
        ("workflow.run.start", "supervised"),
        *span("raw"),
        *span("dataset"),
        ("workflow.run.exception", "supervised"),
        ("workflow.run.stop", "supervised"),
    ]
    ((_, failed),) = recorded.named("workflow.run.exception")
    assert failed["error"].startswith("rows_invalid: 1 of 2 rows")
    assert [about["success"] for _, about in recorded.named("stage.run.stop")] == [True, True]
    assert [about["success"] for _, about in recorded.named("workflow.run.stop")] == [False]


def test_a_run_whose_epochs_fail_is_over_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: NoopSession, *args: Any) -> Any:
        raise DataError("planted", where="epoch 1")

    monkeypatch.setattr(NoopSession, "train_epoch", fail)
    recorded.events.clear()
    small = {"dataset": str(write_sums(tmp_path / "rows.jsonl")), "held_out": "0.2", "epochs": 3, "evaluations": []}
    config = {
        "resources": {
            "supervised": {"config": small},
            "trainer": {"config": {"backend": {"noop": {}}}},
            "blobs": {"config": {"store": {"memory": {"name": str(tmp_path)}}}},
        },
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }
    location = replace(built_in(), resources={"telemetry": RecordingResource()})
    job = location.definitions().resolve_job_def("supervised")
    # As Dagster runs a job, which goes on with what a failed step doesn't concern.
    assert not job.execute_in_process(run_config=config, raise_on_error=False).success
    require_declared(recorded.events)
    failed = [about["error"] for _, about in recorded.named("stage.run.exception")]
    assert failed[0] == "DataError: epoch 1: planted"
    # Its siblings fail at once, and say why.
    assert len(failed) == 3
    assert all("an earlier epoch of this run failed" in error for error in failed[1:])
    assert [about["error"] for _, about in recorded.named("workflow.run.exception")] == failed[:1]
    assert len(recorded.named("workflow.run.stop")) == 1


def test_events_of_evaluations(tmp_path: Path) -> None:
    telemetry = Recorded()
    pretence = Pretence(
        write_sums(tmp_path / "rows.jsonl"), telemetry=telemetry, evaluator=ScriptedEvaluator([2.0, 1.5])
    )
    finished = train(pretence.launch())
    require_declared(telemetry.events)
    assert [(measured, about["epoch"], about["step"]) for measured, about in telemetry.named("training.eval")] == [
        ({"held_out/loss": 2.0}, 1, 2),
        ({"held_out/loss": 1.5}, 2, 4),
    ]
    entries = {entry.step: entry for entry in finished.head.entries()}
    assert [
        (measured["bytes"], about["state_digest"]) for measured, about in telemetry.named("training.checkpoint")
    ] == [(entries[step].bytes, entries[step].state_digest) for step in (2, 4)]


def events_of(method: str, **config: Any) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The events of a built-in recipe on simulated rows with the noop backend."""
    recorded.events.clear()
    resources = {**kitchen.noop(), "telemetry": RecordingResource()}
    own = {"model": "org/model", "epochs": 2, "evaluations": [], **config}
    with dg.DagsterInstance.ephemeral() as instance:
        kitchen.run(method, own, resources, instance=instance)
    return list(recorded.events)


def test_steps_of_preference_in_its_own_terms() -> None:
    events = events_of("preference", dataset="pairs", batch_size=16, gradient_accumulation_steps=1, beta=0.3)
    require_declared(events)
    ((built, _),) = recorded.named("dpo.dataset_built")
    (prepared, _) = recorded.named("dataset.prepared")[0]
    assert (built["num_pairs"], built["num_batches"]) == (prepared["rows"], -(-prepared["rows"] // 16))
    steps, told = recorded.named("training.step"), recorded.named("dpo.step")
    assert [about["step"] for _, about in told] == [about["step"] for _, about in steps]
    assert [measured["loss"] for measured, _ in told] == [measured["loss"] for measured, _ in steps]
    assert {about["beta"] for _, about in told} == {0.3}
    assert sum(about["num_pairs"] for _, about in told) == 2 * prepared["rows"]


def test_steps_and_rollouts_of_reinforcement_in_its_own_terms() -> None:
    events = events_of(
        "reinforcement", steps_per_epoch=4, ppo_epochs=2, group_size=4, groups_per_batch=8, batch_size=32
    )
    require_declared(events)
    ((built, about),) = recorded.named("rl.env_group_built")
    assert built == {"group_size": 4.0, "groups_per_batch": 8.0}
    assert about["env_type"]
    steps = recorded.named("rl.step")
    assert [about["rollout_index"] for _, about in steps] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {measured["num_trajectories"] for measured, _ in steps} == {32}
    assert [about["rollout_index"] for _, about in recorded.named("rl.rollout_complete")] == [0, 1, 2, 3]


def test_steps_of_distillation_in_its_own_terms() -> None:
    events = events_of("distillation", dataset="answers", teacher="org/teacher")
    require_declared(events)
    told = recorded.named("distillation.step")
    assert len(told) == len(recorded.named("training.step")) > 0
    assert all(measured["num_sequences"] > 0 for measured, _ in told)


def test_every_event_of_the_table_is_emitted_somewhere(run: Callable[..., Any], tmp_path: Path) -> None:
    emitted = {name for name, _, _ in run()} | {name for name, _, _ in run(ConfigError, epochs=0)}
    telemetry = Recorded()
    pretence = Pretence(tmp_path / "rows.jsonl", telemetry=telemetry)
    train(replace(pretence, evaluator=ScriptedEvaluator()).launch())
    emitted |= {name for name, _, _ in telemetry.events}
    for method, dataset in (("preference", "pairs"), ("reinforcement", None), ("distillation", "answers")):
        own = {"dataset": dataset} if dataset else {}
        own |= {"teacher": "org/teacher"} if method == "distillation" else {}
        emitted |= {name for name, _, _ in events_of(method, **own)}
    assert emitted == set(EVENTS)
