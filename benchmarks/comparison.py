"""The arithmetic of the benchmarks: what a measure is, how two sides are compared, and when a bound is exceeded."""

import argparse
import json
import math
import statistics
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kitchen_resources.errors import ConfigError

BOUNDS = Path(__file__).with_name("bounds.toml")


@dataclass(frozen=True)
class Spread:
    """Repeated values of one quantity: their median, and the quartiles that hold the middle half."""

    median: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """The median and quartiles of values; quartiles by linear interpolation.

    Raises:
        ValueError: There are none, or one isn't finite.
    """
    if not values:
        raise ValueError("nothing was measured")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"not finite: {list(values)}")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round: what slows a whole round down slows both sides of it.

    Raises:
        ValueError: The sides have different numbers of rounds, or one took no time.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds against {len(theirs)}")
    if any(value <= 0 for value in (*ours, *theirs)):
        raise ValueError("a round took no time")
    return [our / their for our, their in zip(ours, theirs, strict=True)]


def steps_until_within(share: float, *, step: float, ratio: float, fixed: float, plain_fixed: float) -> float:
    """Steps of an epoch from which on all of it costs at most so much more than the bare library.

    An epoch of n steps takes `n * step * ratio + fixed` seconds here and `n * step + plain_fixed` there. A ratio
    below 1 counts as 1: that is noise, and no gain to set against the fixed cost.

    Args:
        share: How much more is accepted, such as 0.05.
        step: Seconds of a step of the bare library.
        ratio: Seconds of our step over that.
        fixed: Our seconds per epoch beside the steps.
        plain_fixed: The bare library's.

    Returns:
        The smallest whole number of steps, at least 1; infinity when no epoch is long enough.
    """
    excess = fixed - (1 + share) * plain_fixed
    gain = step * (1 + share - max(ratio, 1.0))
    if excess <= 0 and gain >= 0:
        return 1
    return max(1, math.ceil(excess / gain)) if gain > 0 else math.inf


@dataclass(frozen=True)
class Measure:
    """One measured number.

    Attributes:
        name: Of its bound, if it has one.
        value: The number that the bound is for.
        unit: Such as s or MiB; "" for a ratio.
        low: Lower quartile over the rounds, where there are rounds.
        high: Upper quartile.
        note: What else a reader should know.
    """

    name: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    note: str = ""


def measure(name: str, values: Sequence[float], unit: str = "", note: str = "") -> Measure:
    """The measure of a quantity that several rounds gave values of: their median and quartiles."""
    found = spread(values)
    return Measure(name, found.median, unit, found.low, found.high, note)


def write_measures(path: Path, measures: Sequence[Measure]) -> None:
    """Hand measures over to another process."""
    path.write_text(json.dumps([asdict(item) for item in measures]), encoding="utf-8")


def read_measures(path: Path) -> list[Measure]:
    """Measures that another process wrote."""
    return [Measure(**item) for item in json.loads(path.read_text(encoding="utf-8"))]


@dataclass(frozen=True)
class Bound:
    """What a measure must keep within, and why it is that number."""

    at_most: float | None
    at_least: float | None
    why: str

    def holds(self, value: float) -> bool:
        """Whether a value keeps within; what isn't a number never does."""
        if self.at_most is not None:
            return value <= self.at_most
        return self.at_least is not None and value >= self.at_least

    def text(self) -> str:
        """For a table."""
        return f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"


def load_bounds(path: Path = BOUNDS) -> dict[str, Bound]:
    """The bounds, by the name of what they bound.

    Raises:
        ConfigError: The file isn't TOML, or a bound of it isn't one.
    """
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not TOML: {error}", where=str(path), fix="correct it") from error
    return {name: _bound(f"{path.name} [{name}]", section) for name, section in value.items()}


def _bound(where: str, section: object) -> Bound:
    fix = 'at_most = 1.05 (or at_least = …), and why = "where the number comes from"'
    if not isinstance(section, Mapping) or set(section) not in ({"at_most", "why"}, {"at_least", "why"}):
        raise ConfigError("must hold at_most or at_least, and why", where=where, fix=fix)
    limit, why = section.get("at_most", section.get("at_least")), section["why"]
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not math.isfinite(limit):
        raise ConfigError(f"the bound {limit!r} is no finite number", where=where, fix=fix)
    if not isinstance(why, str) or not why.strip():
        raise ConfigError("says nowhere why it is that number", where=where, fix=fix)
    at_most = float(limit) if "at_most" in section else None
    return Bound(at_most, None if at_most is not None else float(limit), why)


def exceeded(measures: Sequence[Measure], bounds: Mapping[str, Bound]) -> list[str]:
    """Which measures don't keep within their bounds, one sentence each."""
    return [
        f"{item.name} is {number(item.value)}{f' {item.unit}' if item.unit else ''}, and must be {bound.text()}"
        for item in measures
        if (bound := bounds.get(item.name)) is not None and not bound.holds(item.value)
    ]


def unmeasured(measures: Sequence[Measure], bounds: Mapping[str, Bound]) -> list[str]:
    """Which bounds nothing was measured for, one sentence each: such a bound would hold for ever."""
    measured = {item.name for item in measures}
    return [f"{name} was not measured" for name in bounds if name not in measured]


def table(measures: Sequence[Measure], bounds: Mapping[str, Bound]) -> str:
    """Measures with their quartiles, bounds and verdicts, for people."""
    lines = [f"{'':36} {'median':>10} {'quartiles':>21}  {'bound':<10} {'':8}"]
    for item in measures:
        bound = bounds.get(item.name)
        middle = "" if item.low is None or item.high is None else f"{number(item.low)} to {number(item.high)}"
        verdict = "" if bound is None else "kept" if bound.holds(item.value) else "EXCEEDED"
        said = f"{item.name} ({item.unit})" if item.unit else item.name
        limit = bound.text() if bound else ""
        lines.append(
            f"{said:36} {number(item.value):>10} {middle:>21}  {limit:<10} {verdict:<8} {item.note}".rstrip()
        )
    return "\n".join(lines)


def number(value: float) -> str:
    """Four significant digits, thousands apart; whole numbers whole."""
    if not math.isfinite(value):
        return str(value)
    if value == round(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def main(benchmark: Callable[..., list[Measure]], arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark by command line: print its table; 1 when one of its bounds is exceeded.

    Args:
        benchmark: What measures; takes the number of rounds as `rounds`.
        arguments: Of the command line.
    """
    parser = argparse.ArgumentParser(description=(sys.modules[benchmark.__module__].__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, help="how often it is repeated")
    parser.add_argument("--json", type=Path, help="also write the measures to this file")
    given = parser.parse_args(arguments)
    measures = benchmark() if given.rounds is None else benchmark(rounds=given.rounds)
    if given.json is not None:
        write_measures(given.json, measures)
    bounds = load_bounds()
    print(table(measures, bounds))
    wrong = exceeded(measures, bounds)
    print("".join(f"{line}\n" for line in wrong), end="")
    return int(bool(wrong))
