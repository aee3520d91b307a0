"""Workflows of one's own: what stages hand on, ordered and independent turns, conditions, branches, limits, retries."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import kitchen_assets as kitchen
from kitchen_assets.composition import CheckOutcome, StageResult, Workflow, stage
from kitchen_assets.context import StageContext
from kitchen_assets.control import Node, conditional, loop, parallel, sub_workflow
from kitchen_assets.performing import ordered_as_stage
from kitchen_assets.tags import RESUME_OF
from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.supervised import SupervisedRecipe
from tests.faults.forked import forked
from tests.workflows.own import OwnBench, made


@pytest.fixture
def bench(tmp_path: Path) -> OwnBench:
    return OwnBench(tmp_path)


def skipped(result: dg.ExecuteInProcessResult) -> set[str]:
    return {str(event.step_key).rpartition("__")[2] for event in result.all_events if event.is_step_skipped}


# Handing on.


def test_state_is_handed_on_in_the_workflows_order(bench: OwnBench) -> None:
    def first(context: StageContext) -> None:
        context.state["rows"] = [1, 2]
        context.state["gone"] = "x"

    def second(context: StageContext) -> None:
        context.state["rows"].append(3)
        del context.state["gone"]

    def third(context: StageContext) -> None:
        bench.say(dict(context.state))

    bench.run([made("first", first), made("second", second), made("third", third)])
    assert bench.said == ["{'rows': [1, 2, 3]}"]


def test_what_nobody_left_and_what_is_no_json(bench: OwnBench) -> None:
    def asks(context: StageContext) -> None:
        context.state["there"] = 1
        with pytest.raises(KeyError, match="no stage before asks left 'rows'; there is there"):
            context.state["rows"]

    bench.run([made("asks", asks)])

    def leaves(context: StageContext) -> None:
        context.state["client"] = object()

    result = bench.run([made("leaves", leaves)], raises=False)
    failure = result.failure_data_for_node("mine__leaves")
    assert failure is not None
    assert "state 'client' is no JSON value" in str(failure.user_failure_data)


def test_a_stage_that_is_executed_again_sees_what_was_before_it_and_not_what_came_after(bench: OwnBench) -> None:
    def first(context: StageContext) -> None:
        bench.say(f"first sees {dict(context.state)}")
        context.state["count"] = context.state.get("count", 0) + 1

    def second(context: StageContext) -> None:
        context.state["count"] += 10
        bench.say(f"second leaves {context.state['count']}")

    stages = [made("first", first), made("second", second)]
    earlier = "33333333-3333-4333-8333-333333333333"
    bench.run(stages, run_id=earlier)
    # As a sensor asks for a run again: it shares the notes of the first.
    bench.run(stages, tags={RESUME_OF: earlier})
    assert bench.said == ["first sees {}", "second leaves 11"] * 2


def test_branches_do_not_see_what_the_other_leaves(bench: OwnBench) -> None:
    def leaves(name: str) -> Callable[[StageContext], None]:
        def run(context: StageContext) -> None:
            bench.say(sorted(context.state))
            context.state[name] = 1

        return run

    def gathers(context: StageContext) -> None:
        bench.say(sorted(context.state))

    bench.run(
        [
            made("before", leaves("before")),
            parallel([made("a", leaves("a"))], [made("b", leaves("b"))]),
            made("after", gathers),
        ]
    )
    assert bench.said == ["[]", "['before']", "['before']", "['a', 'b', 'before']"]


def test_a_condition_hands_on_what_its_way_left(bench: OwnBench) -> None:
    def a(context: StageContext) -> None:
        context.state["a"] = 1

    def b(context: StageContext) -> None:
        context.state["b"] = context.state["a"] + 1

    def after(context: StageContext) -> None:
        bench.say(dict(context.state))

    way = conditional("maybe", when=lambda _: True, then=[made("a", a), made("b", b)])
    bench.run([way, made("after", after)])
    assert bench.said == ["{'a': 1, 'b': 2}"]


def test_files_are_handed_on_by_digest(bench: OwnBench) -> None:
    def writes(context: StageContext) -> None:
        (bench.folder / "out" / "deep").mkdir(parents=True)
        (bench.folder / "out" / "deep" / "a.bin").write_bytes(b"weights")
        context.state["files"] = context.keep(bench.folder / "out")

    def reads(context: StageContext) -> None:
        # What was kept doesn't change with the file that it was made of.
        (bench.folder / "out" / "deep" / "a.bin").write_bytes(b"others!")
        folder = context.kept(context.state["files"], bench.folder / "in")
        bench.say((folder / "deep" / "a.bin").read_text())

    bench.run([made("writes", writes), made("reads", reads)])
    assert bench.said == ["weights"]


# The example of the original: epochs, batches, and a checkpoint when it is due.


def training(bench: OwnBench, killed_at: tuple[int, int] | None = None) -> list[Node]:
    """Learns a number: each step adds its batch, and every second epoch is saved."""

    class Client:
        def __init__(self, weight: int) -> None:
            self.weight = weight

    def client(context: StageContext) -> Client:
        made_now: Client = context.once("client", lambda: Client(context.state.get("weight", 0)))
        return made_now

    def load(context: StageContext) -> None:
        context.state["batches"] = [[1, 2], [3], [4, 5]]

    def forward_backward(context: StageContext) -> None:
        epoch, batch = context.turns["epochs"], context.turns["batches"]
        if (epoch, batch[0]) == killed_at:
            os._exit(9)
        client(context).weight += epoch * sum(batch)

    def optim_step(context: StageContext) -> None:
        bench.say(f"epoch {context.turns['epochs']} step {context.turns['batches'][0]} {client(context).weight}")

    def checkpoint(context: StageContext) -> None:
        bench.say(f"saved {client(context).weight}")

    def end_epoch(context: StageContext) -> None:
        context.state["weight"] = client(context).weight

    def save(context: StageContext) -> None:
        bench.say(f"final {context.state['weight']}")

    return [
        made("load", load),
        loop(
            "epochs",
            over=lambda context: range(1, context.recipe.epochs + 1),
            ordered=True,
            body=[
                loop(
                    "batches",
                    over=lambda context: context.state["batches"],
                    ordered=True,
                    body=[made("forward_backward", forward_backward), made("optim_step", optim_step)],
                ),
                made("end_epoch", end_epoch),
                conditional(
                    "due",
                    when=lambda context: context.turns["epochs"] % 2 == 0,
                    then=[made("checkpoint", checkpoint)],
                ),
            ],
        ),
        made("save", save),
    ]


WHOLE = [
    *("epoch 1 step 1 3", "epoch 1 step 3 6", "epoch 1 step 4 15"),
    *("epoch 2 step 1 21", "epoch 2 step 3 27", "epoch 2 step 4 45", "saved 45"),
    *("epoch 3 step 1 54", "epoch 3 step 3 63", "epoch 3 step 4 90", "final 90"),
]


def test_loops_in_loops_and_a_condition_do_what_they_say(bench: OwnBench) -> None:
    bench.run(training(bench))
    assert bench.said == WHOLE
    with bench.instance() as instance:
        for name in ("load", "epochs", "save"):
            assert instance.get_latest_materialization_event(dg.AssetKey(["mine", name])) is not None


def again() -> dg.JobDefinition:
    """The job of a bench that an environment variable names, as Dagster makes it again."""
    bench = OwnBench(Path(os.environ["CONTROL_FLOW_BENCH"]))
    return bench.location(training(bench)).definitions().resolve_job_def("mine")


def test_killed_in_turn_2_and_executed_again_from_failure_it_ends_the_same(
    bench: OwnBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTROL_FLOW_BENCH", str(bench.folder))
    with forked(lambda _: bench.run(training(bench, killed_at=(2, 3)))) as child:
        assert child.wait() == 9
    assert bench.said == WHOLE[:4]
    with bench.instance() as instance:
        (run,) = instance.get_runs()
        instance.report_run_failed(run, message="its process is gone")
        options = dg.ReexecutionOptions.from_failure(run.run_id, instance)
        result = dg.execute_job(dg.reconstructable(again), instance=instance, reexecution_options=options)
        assert result.success
        done = {event.step_key for event in result.filter_events(lambda event: event.is_step_success)}
    assert done == {"mine__epochs", "mine__save"}, "what was done before isn't done again"
    # Nor is turn 1; turn 2 is done from its beginning, from what turn 1 left.
    assert bench.said == [*WHOLE[:4], *WHOLE[3:]]


# Independent turns.


def test_independent_turns_are_steps_of_their_own_and_leave_their_results(bench: OwnBench) -> None:
    def square(context: StageContext) -> None:
        context.state["square"] = context.turns["numbers"] ** 2
        bench.say(context.turns["numbers"])

    def gather(context: StageContext) -> None:
        bench.say([found["square"] for found in context.state["numbers"]])

    result = bench.run(
        [
            loop("numbers", over=lambda _: [3, 5, 7], ordered=False, body=[made("square", square)]),
            made("gather", gather),
        ]
    )
    assert sorted(bench.said[:3]) == ["3", "5", "7"]
    assert bench.said[3:] == ["[9, 25, 49]"]
    steps = {event.step_key for event in result.all_events if event.is_step_success}
    assert {f"mine__numbers.mine__turn_of_numbers[turn_{n:04d}]" for n in (1, 2, 3)} <= steps


# Conditions.


@pytest.mark.parametrize("holds", [True, False])
def test_of_a_condition_one_way_is_taken_and_the_other_skipped(bench: OwnBench, holds: bool) -> None:
    result = bench.run(
        [
            bench.saying("before"),
            conditional(
                "large",
                when=lambda _: holds,
                then=[bench.saying("a"), bench.saying("b")],
                otherwise=[bench.saying("c")],
            ),
            bench.saying("after"),
        ]
    )
    assert bench.said == ["before", *(["a", "b"] if holds else ["c"]), "after"]
    assert skipped(result) == ({"c"} if holds else {"a", "b"})
    with bench.instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["mine", "large"]))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["way"].value == ("then" if holds else "otherwise")


def test_branches_inside_a_condition_hand_on_what_they_left(bench: OwnBench) -> None:
    def leaves(name: str) -> Callable[[StageContext], None]:
        def run(context: StageContext) -> None:
            context.state[name] = 1

        return run

    def after(context: StageContext) -> None:
        bench.say(sorted(context.state))

    branches = parallel([made("a", leaves("a"))], [made("b", leaves("b"))])
    bench.run([conditional("maybe", when=lambda _: True, then=[branches]), made("after", after)])
    assert bench.said == ["['a', 'b']"]


def test_a_condition_without_another_way(bench: OwnBench) -> None:
    bench.run([conditional("never", when=lambda _: False, then=[bench.saying("a")]), bench.saying("after")])
    assert bench.said == ["after"]


# Branches and sub-workflows.


def test_branches_need_what_was_before_and_what_follows_needs_all_of_them(bench: OwnBench) -> None:
    stages = [
        bench.saying("before"),
        parallel([bench.saying("a"), bench.saying("b")], [bench.saying("c")]),
        bench.saying("after"),
    ]
    graph = bench.location(stages).definitions().resolve_asset_graph()

    def needs(name: str) -> set[str]:
        return {key.path[-1] for key in graph.get(dg.AssetKey(["mine", name])).parent_keys}

    assert (needs("a"), needs("b"), needs("c"), needs("after")) == ({"before"}, {"a"}, {"before"}, {"b", "c"})
    bench.run(stages)
    assert (bench.said[0], bench.said[-1]) == ("before", "after")
    assert sorted(bench.said) == ["a", "after", "b", "before", "c"]


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_run_that_ends_in_branches_is_over_when_all_are(
    bench: OwnBench, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    config, events = bench.config(), bench.folder / "events.jsonl"
    config["resources"]["telemetry"]["config"]["jsonl"] = str(events)
    monkeypatch.setattr(bench, "config", lambda: config)
    bench.run([bench.saying("before"), parallel(*([bench.saying(name)] for name in names))])
    told = [json.loads(line) for line in events.read_text().splitlines()]
    ended = [event["metadata"].get("stage", "") for event in told if event["event"].endswith(".stop")]
    assert sorted(ended[:-1]) == ["a", "b", "before"]
    assert told[-1]["event"] == "workflow.run.stop"
    assert [event["event"] for event in told].count("workflow.run.stop") == 1


def test_branches_inside_a_turn_run_at_once(bench: OwnBench) -> None:
    meeting = threading.Barrier(2, timeout=30)

    def meet(context: StageContext) -> None:
        meeting.wait()

    body = [parallel([made("left", meet)], [made("right", meet)])]
    bench.run([loop("turns", over=lambda _: [1, 2], ordered=True, body=body)])
    assert not meeting.broken


def test_steps_of_another_workflow_take_their_place(bench: OwnBench) -> None:
    other = [bench.saying("a"), bench.saying("b")]
    bench.run([bench.saying("before"), sub_workflow("prepare", other), bench.saying("after")])
    assert bench.said == ["before", "a", "b", "after"]


# What can't be.


def test_what_dagster_cannot_express_is_refused_by_name() -> None:
    def nothing(_: StageContext) -> None: ...

    a, b = made("a", nothing), made("b", nothing)
    inner = loop("inner", over=lambda _: [1], ordered=False, body=[a])
    checked = stage(group="training", checks=("sound",))(_named("checked"))
    for stages, said in (
        ([loop("outer", over=lambda _: [1], ordered=True, body=[inner])], "the loop 'inner' has turns of their own"),
        ([loop("outer", over=lambda _: [1], ordered=False, body=[inner])], "the loop 'inner' has turns of their own"),
        ([conditional("maybe", when=lambda _: True, then=[inner])], "the loop 'inner' has turns of their own"),
        ([a, made("a", nothing)], "two steps are called 'a'"),
        ([a, loop("outer", over=lambda _: [1], ordered=True, body=[made("a", nothing)])], "two steps are called 'a'"),
        ([loop("outer", over=lambda _: [1], ordered=True, body=[])], "the loop 'outer' has no body"),
        ([parallel([a])], "parallel wants two branches or more"),
        ([parallel([a], [])], "parallel wants two branches or more"),
        ([loop("Outer", over=lambda _: [1], ordered=True, body=[b])], "'Outer' can't be a step's name"),
        (
            [loop("outer", over=lambda _: [1], ordered=True, body=[checked])],
            "'checked' has checks, and is no asset here",
        ),
    ):
        with pytest.raises(ConfigError) as refused:
            Workflow(name="own", recipe=SupervisedRecipe, description="", stages=stages)
        assert said in str(refused.value)
        assert "workflow own" in str(refused.value)


def _named(name: str) -> Any:
    def run(_: StageContext) -> StageResult:
        return StageResult("1", checks=(CheckOutcome("sound", True, ""),))

    run.__name__ = name
    return run


def test_turns_that_are_others_than_before_are_refused(bench: OwnBench) -> None:
    """What is on record of turns is of those turns."""
    turns = [1, 2]

    def fails(context: StageContext) -> None:
        bench.say(context.turns["turns"])
        if context.turns["turns"] == 2:
            turns.append(3)
            raise OSError("not now")

    again = loop("turns", over=lambda _: turns, ordered=True, body=[made("fails", fails)])
    retried = replace(ordered_as_stage(again), retries=1)
    result = bench.run([retried], raises=False)
    failure = result.failure_data_for_node("mine__turns")
    assert failure is not None
    assert "its turns are others than when it was begun: 3 now" in str(failure.user_failure_data)
    assert bench.said == ["1", "2"]


def test_the_location_describes_its_steps(bench: OwnBench) -> None:
    described = kitchen.describe("mine", bench.location(training(bench)))
    assert described["stages"] == ["load", "epochs", "save"]
