"""The overhead benchmark: taking turns, which steps count, what lies between epochs, and the same work on both sides."""

import ast
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest

from benchmarks import definitions_load, overhead, preparation, primitives, store
from benchmarks.comparison import load_bounds
from benchmarks.overhead import Round, Side, between_seconds, cpu_ratio, measures_of, steady, step_ratio
from benchmarks.stopwatch import Stopwatch, Watched
from benchmarks.turns import StepTime, Turns, turns_of, write_result

FOLDER = Path(overhead.__file__).parent


def steps_of(*epochs: Sequence[float], cpu: float = 1.0) -> list[StepTime]:
    """Steps of epochs, each of so many seconds and of `cpu` CPU seconds a second."""
    return [StepTime(number, 10.0, 10.0 + s, s * cpu) for number, epoch in enumerate(epochs, 1) for s in epoch]


def side(*epochs: Sequence[float], cpu: float = 1.0, state_bytes: int = 100, between: Any = None) -> Side:
    return Side(steps_of(*epochs, cpu=cpu), state_bytes, Path(), between or {})


# Which steps count


def test_the_first_two_steps_of_each_epoch_are_not_steady() -> None:
    steps = steps_of([9.0, 8.0, 1.0, 2.0], [7.0, 6.0, 3.0], [5.0, 4.0])
    assert [step.seconds for step in steady(steps)] == [1.0, 2.0, 3.0]


def test_the_step_ratio_is_the_median_of_pairs_on_the_same_rows() -> None:
    plain = side([9.0, 9.0, 1.0, 2.0, 4.0], [9.0, 9.0, 10.0, 1.0])
    kitchen = side([1.0, 1.0, 1.5, 2.0, 8.0], [1.0, 1.0, 11.0, 50.0])
    # 1.5, 1.0, 2.0, 1.1, 50.0
    assert step_ratio(Round(plain, kitchen)) == 1.5


def test_the_cpu_ratio_counts_what_comes_rarely() -> None:
    plain = side([9.0, 9.0, 1.0, 1.0, 1.0, 1.0])
    kitchen = side([9.0, 9.0, 1.0, 1.0, 1.0, 3.0])
    assert step_ratio(Round(plain, kitchen)) == 1.0
    assert cpu_ratio(Round(plain, kitchen)) == 1.5


def test_between_two_epochs_is_the_first_step_of_the_second_but_for_a_step() -> None:
    one = side([3.0, 1.0, 1.0, 1.0], [4.0, 1.0, 1.0, 1.0], [6.5, 1.0, 1.0, 1.0])
    assert (between_seconds(one, 1), between_seconds(one, 2)) == (3.0, 5.5)


PARTS = {"seconds": {"session": 0.25, "read": 0.5}, "bytes": {"read": 3 * 2**20}}


def a_round(ratio: float = 1.0) -> Round:
    plain = side([9.0, 0.5, 0.5, 0.5], [0.75, 0.5, 0.5, 0.5], [0.75, 0.5, 0.5, 0.5], state_bytes=200)
    step = 0.5 * ratio
    return Round(
        plain,
        side(
            [9.0, step, step, step],
            [step + 1.0, step, step, step],
            [step + 2.0, step, step, step],
            cpu=1.02,
            state_bytes=198,
            between={"live": PARTS, "new process": PARTS},
        ),
    )


def test_all_that_is_said_of_rounds() -> None:
    found = measures_of([a_round(1.0), a_round(1.02), a_round(1.04)], dagster_seconds=0.25)
    values = {item.name: item.value for item in found}
    assert values == pytest.approx(
        {
            "plain step": 0.5,
            "step_ratio": 1.02,
            "step_cpu_ratio": 1.02 * 1.02,
            "plain step over itself": 1.0,
            "plain, between epochs": 0.25,
            "between_epochs_live": 1.0,
            "between_epochs_new_process": 2.0,
            "  session": 0.25,
            "  read": 0.5,
            "state_bytes_ratio": 0.99,
            "dagster_epoch": 0.25,
            # (1.25 - 1.05 * 0.25) / (0.5 * 0.03) is 65.8
            "epoch_within_share": 66 * 0.5,
        }
    )
    ratio = next(item for item in found if item.name == "step_ratio")
    assert (ratio.low, ratio.high) == (pytest.approx(1.01), pytest.approx(1.03))
    assert [item.note for item in found if item.name == "  read"] == ["3.0 MiB", "3.0 MiB"]


def test_a_step_by_primitives_is_compared_round_by_round() -> None:
    steps = {"sft": [2.0, 4.0, 8.0], "local": [1.0, 3.0, 6.0], "bare": [1.0, 2.0, 3.0]}
    found = {item.name: item.value for item in primitives.measures_of(steps)}
    assert (found["local_over_sft"], found["local_over_bare"]) == (0.75, 1.5)
    swapped = {"sft": [8.0, 2.0, 4.0], "local": [1.0, 3.0, 6.0], "bare": [1.0, 2.0, 3.0]}
    assert {item.name: item.value for item in primitives.measures_of(swapped)}["local_over_sft"] == 1.5


def test_every_bound_is_of_something_that_is_measured() -> None:
    load = definitions_load.Load(1.0, 1.0)
    measured = [
        *measures_of([a_round()], 0.25),
        *definitions_load.measures_of({side: [load] for side in definitions_load.LOADS}),
        *preparation.measures_of([1.0], [1.0], 0, 0),
        *primitives.measures_of({"sft": [1.0], "local": [1.0], "bare": [1.0]}),
        *store.ratios("local", ([1.0], [1.0]), ([1.0], [1.0])),
        *store.ratios("s3", ([1.0], [1.0]), ([1.0], [1.0])),
        *store.second_run_measures("the same machine", Counter(), 0, 0, 1.0),
        *store.second_run_measures("another machine", Counter(), 0, 0, 1.0),
    ]
    assert set(load_bounds()) <= {item.name for item in measured}


# The same work


def test_both_sides_are_given_the_same_arguments() -> None:
    recipe, plain = overhead.RECIPE, overhead.PLAIN
    assert plain["num_train_epochs"] == recipe["epochs"] == len(overhead.WAYS) + 1
    assert plain["per_device_train_batch_size"] == recipe["batch_size"]
    assert plain["learning_rate"] == recipe["learning_rate"]


def test_rows_fill_whole_batches_of_whole_epochs(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in overhead._write_rows(tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == overhead.STEPS_PER_EPOCH * overhead.BATCH_SIZE
    assert len({len(message["content"]) for row in rows for message in row["messages"]}) == 1
    assert len({json.dumps(row) for row in rows}) == len(rows)


@pytest.fixture
def weights(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, **tensors: Any) -> Path:
        from safetensors.numpy import save_file

        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        return tmp_path / name

    return write


def test_weights_are_the_same_only_bit_by_bit(weights: Callable[..., Path]) -> None:
    values = numpy.arange(6, dtype=numpy.float32)
    one = weights("one", a=values, b=values)
    assert overhead.same_weights(one, weights("same", a=values.copy(), b=values))
    others: dict[str, Mapping[str, Any]] = {
        "last bit": {"a": values, "b": numpy.nextafter(values, numpy.float32(9))},
        "minus zero": {"a": values, "b": numpy.where(values == 0, numpy.float32(-0.0), values)},
        "shape": {"a": values, "b": values.reshape(2, 3)},
        "type": {"a": values, "b": values.view(numpy.int32)},
        "missing": {"a": values},
        "more": {"a": values, "b": values, "c": values},
        "name": {"a": values, "c": values},
    }
    for name, tensors in others.items():
        assert not overhead.same_weights(one, weights(name, **tensors)), name


def test_a_folder_without_weights_is_like_no_other(tmp_path: Path, weights: Callable[..., Path]) -> None:
    with pytest.raises(SystemExit, match="holds no weights"):
        overhead.same_weights(tmp_path, tmp_path)


def test_other_weights_end_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Callable[..., Path]
) -> None:
    one, other = (weights(name, a=numpy.full(2, value)) for name, value in (("one", 1.0), ("other", 2.0)))
    work = a_round()
    pairs = {"same": (one, one), "not the same": (one, other)}
    for name in ("_write_model", "_write_rows", "_prepare"):
        monkeypatch.setattr(overhead, name, lambda *given: tmp_path)

    def run_pair(kind: str) -> Round:
        sides = zip((work.plain, work.kitchen), pairs[kind], strict=True)
        return Round(*(Side(s.steps, s.state_bytes, folder, s.between) for s, folder in sides))

    monkeypatch.setattr(overhead, "_run_pair", lambda *given: run_pair("same"))
    assert len(overhead.run_rounds(tmp_path, 3)) == 3
    monkeypatch.setattr(overhead, "_run_pair", lambda *given: run_pair("not the same"))
    with pytest.raises(SystemExit, match="not the same work was compared"):
        overhead.run_rounds(tmp_path, 3)


def test_a_side_that_did_not_do_all_its_steps_is_no_measure(tmp_path: Path) -> None:
    whole = [[1, 0.0, 1.0, 1.0]] * (overhead.EPOCHS * overhead.STEPS_PER_EPOCH)
    path = tmp_path / "side.json"
    path.write_text(json.dumps({"steps": whole, "state_bytes": 5, "weights": "w"}))
    assert len(overhead._read_side(path).steps) == len(whole)
    path.write_text(json.dumps({"steps": whole[1:], "state_bytes": 5, "weights": "w"}))
    with pytest.raises(SystemExit, match=r"side\.json: 47 steps of 48"):
        overhead._read_side(path)


@pytest.mark.parametrize("name", ["plain_training.py", "turns.py"])
def test_the_plain_script_imports_nothing_of_the_kitchen(name: str) -> None:
    tree = ast.parse((FOLDER / name).read_text())
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert modules
    assert [module for module in modules if "kitchen" in module] == []
    assert {module for module in modules if module.startswith("benchmarks")} <= {"benchmarks.turns"}


# Turns


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    """Two pipes: the ends that the first and the second side have, receiving and sending."""
    (first_receives, second_sends), (second_receives, first_sends) = os.pipe(), os.pipe()
    ends = [first_receives, first_sends, second_receives, second_sends]
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def test_sides_take_turns_of_a_step_and_keep_theirs_between_epochs(pipes: list[int]) -> None:
    done: list[str] = []

    def work(name: str, turns: Turns) -> None:
        turns.begin()
        for epoch in (1, 2):
            for step in (1, 2, 3):
                done.append(f"{name}{epoch}.{step}")
                turns.step_ended()
        done.append(f"{name} ends")
        turns.end()

    sides = [
        Turns(receive=pipes[0], send=pipes[1], first=True, steps_per_epoch=3),
        Turns(receive=pipes[2], send=pipes[3], first=False, steps_per_epoch=3),
    ]
    threads = [threading.Thread(target=work, args=(name, one)) for name, one in zip("pk", sides, strict=True)]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert " ".join(done) == ("p1.1 k1.1 p1.2 k1.2 p1.3 p2.1 k1.3 k2.1 p2.2 k2.2 p2.3 p ends k2.3 k ends")
    for one in sides:
        assert [step.epoch for step in one.steps] == [1, 1, 1, 2, 2, 2]


def test_waiting_counts_for_no_step(pipes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "process_time", lambda: now / 2)

    def wait(self: Turns) -> None:
        nonlocal now
        now += 1000.0

    monkeypatch.setattr(Turns, "_wait", wait)
    turns = Turns(receive=pipes[0], send=pipes[1], first=True, steps_per_epoch=2)
    turns.begin()
    for seconds in (1.0, 2.0, 4.0, 8.0):
        now += seconds
        turns.step_ended()
    assert [(step.seconds, step.cpu) for step in turns.steps] == [(1.0, 0.5), (2.0, 1.0), (4.0, 2.0), (8.0, 4.0)]


def test_a_side_whose_partner_is_gone_ends(pipes: list[int]) -> None:
    receive, _, _, other_sends = pipes
    turns = Turns(receive=receive, send=pipes[1], first=True, steps_per_epoch=2)
    os.close(other_sends)
    with pytest.raises(RuntimeError, match="the other side is gone"):
        turns.begin()


def test_turns_and_what_they_noted_go_through_json(tmp_path: Path) -> None:
    turns = turns_of({"receive": 5, "send": 6, "first": True, "steps_per_epoch": 4, "more": 1})
    assert (turns._receive, turns._send, turns._first, turns._steps_per_epoch) == (5, 6, True, 4)
    turns.steps = [StepTime(1, 1.5, 2.0, 0.25)]
    write_result(str(tmp_path / "r.json"), turns, weights="w", state_bytes=3)
    value = json.loads((tmp_path / "r.json").read_text())
    assert value == {"steps": [[1, 1.5, 2.0, 0.25]], "weights": "w", "state_bytes": 3}
    assert [StepTime(*step) for step in value["steps"]] == turns.steps


# The stopwatch


class Oven:
    def __init__(self) -> None:
        self.baked: list[str] = []

    def bake(self, what: str, *, hot: bool = True) -> int:
        self.baked.append(f"{what} {hot}")
        return len(what)


def test_a_watched_function_does_what_it_did_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    watch, oven = Stopwatch(), Oven()
    original = Oven.bake
    with watch.around(Watched(Oven, "bake", "baking", lambda given, result: {"out": result, "in": len(given[1])})):
        assert oven.bake("bread") == 5
        assert oven.bake("pie", hot=False) == 3
    assert Oven.bake is original
    oven.bake("cake")
    assert oven.baked == ["bread True", "pie False", "cake True"]
    assert dict(watch.seconds) == {"baking": 2.5}
    assert dict(watch.bytes) == {"out": 8, "in": 8}


def test_a_function_that_is_not_there_is_not_watched_in_silence() -> None:
    with pytest.raises(AttributeError, match="roast"), Stopwatch().around(Watched(Oven, "roast", "x")):
        pass


@pytest.mark.heavy
def test_what_the_benchmark_watches_is_there() -> None:
    from benchmarks.kitchen_training import watched

    with Stopwatch().around(*watched()):
        pass
    assert {one.part for one in watched()} == {
        "session",
        "read",
        "written",
        "hashed",
        "published, with hashing",
        "checked out, with hashing",
    }
