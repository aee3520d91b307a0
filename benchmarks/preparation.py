"""How fast data is prepared on one core, and in how much memory: 20,000 conversations of three messages each.

    python benchmarks/preparation.py      # exits 1 when a bound is exceeded
    python benchmarks/preparation.py --count 1000000      # of so many rows once, with the memory at each stage

From JSONL to stored Parquet: reading, validation, duplicates, split, chat template, tokens and loss weights; and what
comparing the rows finds: near duplicates, text of an evaluation of 1,000 rows, drift of the template. The tokenizer is
the embedded one, a token a byte, so that a row has about 300 tokens.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.comparison import Measure, main, measure
from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.datasets.inspection import evaluation_rows, inspect
from kitchen_resources.datasets.prepare import open_raw, prepare
from kitchen_resources.datasets.renderers import make_renderer
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.recipes.blocks import EvaluationConfig
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.base_models import resolve_base

ROUNDS = 2
ROWS, WARM_UP_ROWS = 20_000, 20
HELD_OUT = "0.04"
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


def write_rows(path: Path, count: int, first: int = 0) -> Path:
    """Conversations of a system message, a question and an answer, all different."""
    with path.open("w", encoding="utf-8") as stream:
        for i in range(first, first + count):
            asked = f"Question {i}: what is {i} plus {7 * i}, and how do you know?"
            answer = f"{i} plus {7 * i} is {8 * i}: seven times a number and that number make eight times the number."
            messages = [
                {"role": "system", "content": "You are a patient teacher of arithmetic. Answer in one sentence."},
                {"role": "user", "content": asked},
                {"role": "assistant", "content": answer},
            ]
            stream.write(json.dumps({"messages": messages}) + "\n")
    return path


def seconds_to_prepare(folder: Path, count: int) -> tuple[float, float]:
    """Prepare so many rows in a new store, and compare them: seconds of each.

    Raises:
        SystemExit: Not all of them came out: something else was measured.
    """
    blobs = LocalBlobs(folder / "store")
    recipe = SupervisedRecipe(
        model="embedded:tiny",
        dataset=str(write_rows(folder / "rows.jsonl", count)),
        held_out=HELD_OUT,
        max_length=512,
    )
    content = ContentStore(blobs)
    rendering = make_renderer(recipe, resolve_base(recipe.model, blobs.scratch() / "cache"))
    started = time.perf_counter()
    prepared, _ = prepare(
        recipe,
        open_raw(recipe, SourceDatasets()),
        rendering.renderer,
        content,
        conversational=rendering.conversational,
        rendering=rendering.rendering,
        simulated=rendering.simulated,
    )
    seconds, started = time.perf_counter() - started, time.perf_counter()
    exam = EvaluationConfig(name="exam", dataset=str(write_rows(folder / "exam.jsonl", 1000, first=10**9)))
    rows = evaluation_rows(exam, SourceDatasets(), rendering.conversational)
    found = inspect(prepared, [rows], rendering.renderer, content)
    compared = time.perf_counter() - started
    if [finding.count for finding in found.values()] != [0, 0, 0]:
        raise SystemExit(f"rows that are all different were found alike: {found}")
    came_out = prepared.train.rows + (prepared.held_out.rows if prepared.held_out else 0)
    if came_out != count:
        raise SystemExit(f"{came_out} rows of {count} were prepared")
    return seconds, compared


def peak_memory() -> int:
    """The most bytes that this process ever had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES


def measures_of(rates: Sequence[float], compared: Sequence[float], before: int, peak: int) -> list[Measure]:
    """What rows per second, prepared and compared, and bytes in memory before and at most, come to."""
    imports = f"over {before / 2**20:,.0f} MiB of imports"
    return [
        measure("preparation_rows_per_second", rates, "rows/s", f"{ROWS:,} rows of three messages"),
        measure("compared_rows_per_second", compared, "rows/s", "the same rows"),
        Measure("preparation_memory", (peak - before) / 2**20, "MiB", note=imports),
    ]


def measures(rounds: int = ROUNDS) -> list[Measure]:
    """Prepare a few rows, which imports everything, and then many; memory is that of the first time."""
    # Read when torch and the hub's client are imported, which is later.
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / str(number) for number in range(1 + rounds)]
        for folder in folders:
            folder.mkdir()
        seconds_to_prepare(folders[0], WARM_UP_ROWS)
        before = peak_memory()
        seconds = [seconds_to_prepare(folders[1], ROWS)]
        peak = peak_memory()
        seconds += [seconds_to_prepare(folder, ROWS) for folder in folders[2:]]
    prepared, compared = ([ROWS / each[place] for each in seconds] for place in (0, 1))
    return measures_of(prepared, compared, before, peak)


def once(count: int) -> None:
    """Prepare and compare so many rows, and say how fast and in how much memory."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("warm-up", "rows")]
        for folder in folders:
            folder.mkdir()
        seconds_to_prepare(folders[0], WARM_UP_ROWS)
        before = peak_memory()
        prepared, compared = seconds_to_prepare(folders[1], count)
    used = (peak_memory() - before) / 2**20
    print(
        f"{count:,} rows: {count / prepared:,.0f} prepared and {count / compared:,.0f} compared a second, {used:,.0f} MiB"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--count"]:
        sys.exit(once(int(sys.argv[2])))
    sys.exit(main(measures))
