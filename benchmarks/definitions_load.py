"""How long Dagster takes to load the kitchen's definitions, over an empty project's; and a location of fifty recipes.

    python benchmarks/definitions_load.py [--rounds 9]      # exits 1 when the bound is exceeded

Each load is a fresh process, as every run and every sensor tick of a code location may be: it imports the module,
makes its definitions and the repository of them, and ends. The two take turns; the first of each isn't counted, for
it may write bytecode.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.comparison import Measure, main, measure, paired_ratios, spread

ROUNDS = 9
EMPTY = "import dagster as dg\n\ndefs = dg.Definitions()\n"
LOADS: Mapping[str, str] = {
    "empty": "from empty_project import defs; defs.get_repository_def()",
    "kitchen": "from kitchen_assets.definitions import defs; defs().get_repository_def()",
    "fifty": "from kitchen_assets.kitchen import Kitchen; Kitchen('fifty').definitions().get_repository_def()",
}
METHODS = ("supervised", "preference", "reinforcement", "distillation")
NOT_PASSED_ON = ("PYTHONDONTWRITEBYTECODE", "KITCHEN_RECIPES", "KITCHEN_STORE", "DAGSTER_HOME")


@dataclass(frozen=True)
class Load:
    """One process: seconds by the clock, and CPU seconds."""

    seconds: float
    cpu: float


def load(code: str, folder: Path) -> Load:
    """Load definitions in a fresh process, in a folder that holds the empty project and no recipes.

    Raises:
        subprocess.CalledProcessError: They can't be loaded.
    """
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    cpu, started = _cpu_of_children(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    return Load(time.perf_counter() - started, _cpu_of_children() - cpu)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_recipes(folder: Path, count: int = 50) -> None:
    """Write that many recipes of full width, of the four methods in turn, each on a schedule of its own."""
    folder.mkdir()
    for number in range(count):
        lines = [
            f"extends: {METHODS[number % len(METHODS)]}",
            f"seed: {number}",
            "owners: ['team:models']",
            "schedule: {cron: '0 3 * * *'}",
        ]
        (folder / f"recipe_{number:02d}.yaml").write_text("\n".join(lines) + "\n")
    # What the recipes of two methods build on.
    (folder / "supervised.yaml").write_text("workflow: supervised\nmodel: embedded:tiny\ndataset: embedded:dates\n")


def measures_of(loads: Mapping[str, list[Load]]) -> list[Measure]:
    """What the loads come to: the ratio of the medians, with the quartiles of the ratios of neighbours."""
    seconds = {side: [one.seconds for one in done] for side, done in loads.items()}
    ratios = spread(paired_ratios(seconds["kitchen"], seconds["empty"]))
    ratio = statistics.median(seconds["kitchen"]) / statistics.median(seconds["empty"])
    cpu = paired_ratios([one.cpu for one in loads["kitchen"]], [one.cpu for one in loads["empty"]])
    return [
        measure("empty project", seconds["empty"], "s"),
        measure("kitchen", seconds["kitchen"], "s"),
        Measure("definitions_load_ratio", ratio, "", ratios.low, ratios.high, "of the medians"),
        measure("definitions load, CPU ratio", cpu),
        measure("fifty_recipes", seconds["fifty"], "s"),
    ]


def measures(rounds: int = ROUNDS) -> list[Measure]:
    """Load both in turns."""
    loads: dict[str, list[Load]] = {side: [] for side in LOADS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "empty_project.py").write_text(EMPTY)
        write_recipes(folder / "fifty")
        for _ in range(1 + rounds):
            for side, code in LOADS.items():
                loads[side].append(load(code, folder))
    return measures_of({side: done[1:] for side, done in loads.items()})


if __name__ == "__main__":
    sys.exit(main(measures))
