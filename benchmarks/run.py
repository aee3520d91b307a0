"""All benchmarks that have bounds, one after the other: `make bench`. Exits 1 when a bound isn't kept.

    make bench      # or python benchmarks/run.py

Nothing is written but to standard output. What it printed once, and on what machine: benchmarks/README.md.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.comparison import BOUNDS, Measure, exceeded, load_bounds, read_measures, table, unmeasured

SCRIPTS = tuple(
    Path(__file__).with_name(f"{name}.py")
    for name in ("overhead", "definitions_load", "preparation", "store", "primitives")
)


def run_script(script: Path) -> list[Measure] | None:
    """The measures of one benchmark, run in a process of its own; None when it failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measures.json"
        done = subprocess.run(
            [sys.executable, str(script), "--json", str(path)], stdout=subprocess.DEVNULL, check=False
        )
        # It ends with 1 when a bound is exceeded too; then it has measured.
        if done.returncode not in (0, 1) or not path.exists():
            return None
        return read_measures(path)


def run(scripts: Sequence[Path] = SCRIPTS, bounds_file: Path = BOUNDS) -> int:
    """Run benchmarks and compare them with the bounds; 1 when one isn't kept, wasn't measured, or a benchmark failed."""
    bounds = load_bounds(bounds_file)
    print(machine(), flush=True)
    measures: list[Measure] = []
    wrong: list[str] = []
    for script in scripts:
        started = time.monotonic()
        found = run_script(script)
        print(f"\n{script.stem}: {time.monotonic() - started:.0f} s; {load()}")
        if found is None:
            wrong.append(f"{script.name} failed")
            continue
        print(table(found, bounds), flush=True)
        measures += found
    wrong += [*exceeded(measures, bounds), *unmeasured(measures, bounds)]
    print("\n" + ("\n".join(wrong) if wrong else f"all {len(bounds)} bounds are kept"))
    return int(bool(wrong))


def machine() -> str:
    """What the numbers were measured on."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("dagster", "torch", "trl"))
    cores = f"{os.cpu_count()}-core {platform.machine()}, on the CPU"
    return f"{date.today()}: {cores}; Python {platform.python_version()}, {versions}; {load()}"


def load() -> str:
    """How busy the machine has been for a minute; what runs beside a benchmark makes its seconds longer."""
    return f"load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    sys.exit(run())
