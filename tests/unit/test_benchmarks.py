"""The benchmarks' arithmetic: medians, paired ratios, bounds, and what `make bench` fails on. Nothing is timed."""

import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import comparison, definitions_load, preparation, run
from benchmarks.comparison import (
    Bound,
    Measure,
    Spread,
    exceeded,
    load_bounds,
    main,
    measure,
    number,
    paired_ratios,
    read_measures,
    spread,
    steps_until_within,
    table,
    unmeasured,
    write_measures,
)
from benchmarks.definitions_load import Load
from kitchen_resources.errors import ConfigError

MIB = 2**20


@pytest.fixture
def write_bounds(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "bounds.toml"
        path.write_text(text)
        return path

    return write


# Medians and ratios


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert spread([4.0, 1.0, 3.0, 2.0]) == Spread(2.5, 1.75, 3.25, 4)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 1)


def test_one_slow_round_of_five_moves_no_median() -> None:
    assert spread([1.0, 1.01, 1.02, 1.03, 90.0]).median == 1.02


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_was_not_measured_has_no_spread(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"nothing was measured|not finite"):
        spread(values)


def test_ratios_are_of_pairs() -> None:
    assert paired_ratios([2.0, 30.0, 4.0], [1.0, 20.0, 8.0]) == [2.0, 1.5, 0.5]


@pytest.mark.parametrize("theirs", [[1.0], [1.0, 0.0], [1.0, -1.0]])
def test_sides_that_cannot_be_paired_are_refused(theirs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"2 rounds against 1|took no time"):
        paired_ratios([1.0, 1.0], theirs)
    with pytest.raises(ValueError, match=r"1 rounds against 2|took no time"):
        paired_ratios(theirs, [1.0, 1.0])


def within(share: float, steps: int, ratio: float, fixed: float, plain_fixed: float) -> bool:
    """Whether an epoch of so many steps of half a second costs at most that much more: by the definition."""
    return steps * 0.5 * ratio + fixed <= (1 + share) * (steps * 0.5 + plain_fixed) + 1e-9


@pytest.mark.parametrize(
    ("ratio", "fixed", "plain_fixed", "steps"),
    [(1.0, 2.0, 0.0, 80), (1.01, 2.0, 0.0, 100), (1.0, 2.1, 1.0, 42), (1.045, 1.0, 0.0, 400), (1.0, 0.01, 0.0, 1)],
)
def test_the_epoch_from_which_on_all_is_within_the_share(
    ratio: float, fixed: float, plain_fixed: float, steps: int
) -> None:
    found = steps_until_within(0.05, step=0.5, ratio=ratio, fixed=fixed, plain_fixed=plain_fixed)
    assert found == steps
    assert within(0.05, steps, ratio, fixed, plain_fixed)
    assert steps == 1 or not within(0.05, steps - 1, ratio, fixed, plain_fixed)


@pytest.mark.parametrize("ratio", [1.05, 1.2])
def test_steps_that_cost_too_much_are_never_made_up_for(ratio: float) -> None:
    assert steps_until_within(0.05, step=0.5, ratio=ratio, fixed=2.0, plain_fixed=0.1) == math.inf


def test_a_fixed_cost_below_the_plain_one_needs_no_steps() -> None:
    assert steps_until_within(0.05, step=0.5, ratio=1.0, fixed=1.0, plain_fixed=2.0) == 1


def test_steps_faster_than_plain_ones_are_noise_and_no_gain() -> None:
    slow, fast = (steps_until_within(0.05, step=0.5, ratio=ratio, fixed=2.0, plain_fixed=0.0) for ratio in (1.0, 0.9))
    assert fast == slow == 80


# Bounds


def test_a_bound_is_kept_at_the_number_itself_and_never_by_what_is_no_number() -> None:
    ceiling, floor = Bound(1.05, None, "x"), Bound(None, 200.0, "x")
    assert [ceiling.holds(value) for value in (1.0, 1.05, 1.0501, math.inf, math.nan)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert [floor.holds(value) for value in (201.0, 200.0, 199.9, -math.inf, math.nan)] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_bounds_are_read(write_bounds: Callable[[str], Path]) -> None:
    path = write_bounds('[a]\nat_most = 2\nwhy = "promised"\n[b]\nat_least = 0\nwhy = "a floor"\n')
    assert load_bounds(path) == {"a": Bound(2.0, None, "promised"), "b": Bound(None, 0.0, "a floor")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nat_most = 2", r"\[a\]: must hold at_most or at_least, and why"),
        ('[a]\nwhy = "x"', r"\[a\]: must hold"),
        ('[a]\nat_most = 2\nat_least = 1\nwhy = "x"', r"\[a\]: must hold"),
        ('[a]\nat_mots = 2\nwhy = "x"', r"\[a\]: must hold"),
        ("a = 2", r"\[a\]: must hold"),
        ('[a]\nat_most = "2"\nwhy = "x"', "'2' is no finite number"),
        ('[a]\nat_most = true\nwhy = "x"', "True is no finite number"),
        ('[a]\nat_least = nan\nwhy = "x"', "nan is no finite number"),
        ('[a]\nat_most = inf\nwhy = "x"', "inf is no finite number"),
        ('[a]\nat_most = 2\nwhy = " "', "says nowhere why"),
        ("[a\n", "bounds.toml: is not TOML"),
    ],
)
def test_what_is_no_bound_is_refused(write_bounds: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_bounds(write_bounds(text))


def test_the_promised_bounds_are_those_promised() -> None:
    bounds = load_bounds()
    assert (bounds["step_ratio"].at_most, bounds["step_cpu_ratio"].at_most) == (1.05, 1.05)
    assert bounds["definitions_load_ratio"].at_most == 2.0


def test_only_what_is_beyond_its_bound_is_named() -> None:
    bounds = {"a": Bound(1.05, None, "x"), "b": Bound(None, 200.0, "x"), "c": Bound(3.0, None, "x")}
    measures = [Measure("a", 1.0712), Measure("b", 150.0, "rows/s"), Measure("c", 3.0), Measure("free", 99.0)]
    assert exceeded(measures, bounds) == [
        "a is 1.071, and must be <= 1.05",
        "b is 150 rows/s, and must be >= 200",
    ]
    assert exceeded(measures[2:], bounds) == []
    assert unmeasured(measures[1:], bounds) == ["a was not measured"]
    assert unmeasured(measures, bounds) == []


def test_the_table_has_a_verdict_for_each_bound() -> None:
    bounds = {"a": Bound(1.05, None, "x"), "b": Bound(None, 200.0, "x")}
    measures = [
        measure("a", [1.0, 1.1, 1.2], note="of 3"),
        Measure("b", 1234.5, "rows/s"),
        Measure("free", 0.01234, "s"),
    ]
    rows = [re.split(r"\s{2,}", line) for line in table(measures, bounds).splitlines()[1:]]
    assert rows == [
        ["a", "1.100", "1.050 to 1.150", "<= 1.05", "EXCEEDED of 3"],
        ["b (rows/s)", "1,234", ">= 200", "kept"],
        ["free (s)", "0.01234"],
    ]


def test_numbers_have_four_digits() -> None:
    values = [0.0, 1.0, 16.0, 1.23456, 0.000123456, 123.456, 999.96, 12345.6, -0.5, math.inf, math.nan]
    assert [number(value) for value in values] == [
        "0",
        "1",
        "16",
        "1.235",
        "0.0001235",
        "123.5",
        "1000.0",
        "12,346",
        "-0.5000",
        "inf",
        "nan",
    ]


# One benchmark by command line


def test_a_benchmark_ends_with_1_when_its_bound_is_exceeded_and_with_0_else(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write_bounds: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    path = write_bounds('[a]\nat_most = 2\nwhy = "x"\n[of_another]\nat_most = 2\nwhy = "x"\n')
    monkeypatch.setattr(comparison, "load_bounds", lambda: load_bounds(path))
    asked: list[int] = []

    def benchmark(rounds: int = 7) -> list[Measure]:
        asked.append(rounds)
        return [measure("a", [1.0, float(rounds)], "s", "note")]

    assert main(benchmark, ["--rounds", "3"]) == 0
    assert "EXCEEDED" not in capsys.readouterr().out
    assert main(benchmark, ["--json", str(tmp_path / "out.json")]) == 1
    assert capsys.readouterr().out.endswith("a is 4 s, and must be <= 2\n")
    assert asked == [3, 7]
    assert read_measures(tmp_path / "out.json") == [Measure("a", 4.0, "s", 2.5, 5.5, "note")]


def test_measures_survive_the_way_to_another_process(tmp_path: Path) -> None:
    measures = [Measure("a", 1 / 3, "s", 0.1, 0.2, "ü"), Measure("b", math.inf)]
    write_measures(tmp_path / "m.json", measures)
    assert read_measures(tmp_path / "m.json") == measures


# All of them


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Path]:
    """A benchmark that says what it is told to say, and ends as it is told to end."""

    def write(name: str, *measures: Measure, code: int = 0) -> Path:
        said, path = tmp_path / f"{name}.said", tmp_path / f"{name}.py"
        write_measures(said, measures)
        copy = f"shutil.copy({str(said)!r}, sys.argv[2])" if measures else "pass"
        path.write_text(f"import shutil, sys\nassert sys.argv[1] == '--json'\n{copy}\nsys.exit({code})\n")
        return path

    return write


BOUNDS = '[a]\nat_most = 2\nwhy = "x"\n[b]\nat_least = 10\nwhy = "x"\n'


def test_all_bounds_kept_is_0(
    script: Callable[..., Path], write_bounds: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = [script("one", Measure("a", 2.0)), script("two", Measure("b", 10.0))]
    assert run.run(scripts, write_bounds(BOUNDS)) == 0
    said = capsys.readouterr().out
    assert said.endswith("\nall 2 bounds are kept\n")
    assert said.count(" kept\n") == 3


@pytest.mark.parametrize(
    ("second", "wrong"),
    [
        ({"measures": [Measure("b", 9.0)], "code": 1}, "b is 9, and must be >= 10"),
        ({"measures": [Measure("b", 9.0)], "code": 0}, "b is 9, and must be >= 10"),
        ({"measures": [Measure("c", 10.0)]}, "b was not measured"),
        ({"measures": [], "code": 1}, "two.py failed\nb was not measured"),
        ({"measures": [], "code": 0}, "two.py failed\nb was not measured"),
        ({"measures": [Measure("b", 10.0)], "code": 2}, "two.py failed\nb was not measured"),
        ({"measures": [Measure("b", math.nan)]}, "b is nan, and must be >= 10"),
    ],
)
def test_whatever_is_wrong_is_said_and_1(
    script: Callable[..., Path],
    write_bounds: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    second: dict[str, list[Measure] | int],
    wrong: str,
) -> None:
    measures, code = second["measures"], second.get("code", 0)
    assert isinstance(measures, list)
    scripts = [script("two", *measures, code=code), script("one", Measure("a", 2.0))]
    assert run.run(scripts, write_bounds(BOUNDS)) == 1
    assert capsys.readouterr().out.endswith(f"\n\n{wrong}\n")


def test_every_script_is_there() -> None:
    assert [path.name for path in run.SCRIPTS] == [
        "overhead.py",
        "definitions_load.py",
        "preparation.py",
        "store.py",
        "primitives.py",
    ]
    assert all(path.is_file() for path in run.SCRIPTS)


# Definitions and preparation


def test_a_load_is_compared_by_the_ratio_of_medians() -> None:
    loads = {
        "empty": [Load(1.0, 0.5), Load(2.0, 0.5), Load(4.0, 0.5)],
        "kitchen": [Load(1.8, 0.6), Load(6.0, 0.7), Load(3.0, 0.8)],
        "fifty": [Load(4.0, 3.0), Load(9.0, 3.0), Load(5.0, 3.0)],
    }
    empty, kitchen, ratio, cpu, fifty = definitions_load.measures_of(loads)
    assert (empty.value, kitchen.value, fifty.value) == (2.0, 3.0, 5.0)
    assert ratio == Measure(
        "definitions_load_ratio", 1.5, "", pytest.approx(1.275), pytest.approx(2.4), "of the medians"
    )
    assert cpu.value == pytest.approx(1.4)


def test_a_load_sees_no_recipes_and_no_settings_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in definitions_load.NOT_PASSED_ON:
        monkeypatch.setenv(name, "1")
    names = [*definitions_load.NOT_PASSED_ON, "PATH"]
    code = f"import os; open('seen', 'w').write(' '.join(n for n in {names!r} if n in os.environ))"
    definitions_load.load(code, tmp_path)
    assert (tmp_path / "seen").read_text() == "PATH"
    assert {"PYTHONDONTWRITEBYTECODE", "KITCHEN_RECIPES"} <= set(names)


def test_definitions_that_cannot_be_loaded_are_no_measure(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        definitions_load.load("raise SystemExit(3)", tmp_path)


def test_preparation_is_its_median_rate_and_its_memory_beyond_imports() -> None:
    rates, compared = [900.0, 1000.0, 1300.0], [2000.0, 2100.0, 2200.0]
    rate, other, memory = preparation.measures_of(rates, compared, 300 * MIB, 395 * MIB)
    assert (other.name, other.value) == ("compared_rows_per_second", 2100.0)
    assert (rate.name, rate.value, rate.low, rate.high) == ("preparation_rows_per_second", 1000.0, 950.0, 1150.0)
    assert (memory.name, memory.value, memory.unit) == ("preparation_memory", 95.0, "MiB")


def test_rows_to_prepare_are_all_different(tmp_path: Path) -> None:
    lines = preparation.write_rows(tmp_path / "rows.jsonl", 300).read_text().splitlines()
    assert len(set(lines)) == 300
    assert lines[2].count('"role"') == 3
    assert "what is 2 plus 14, and" in lines[2]
    assert "2 plus 14 is 16" in lines[2]
