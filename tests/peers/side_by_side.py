"""One supervised recipe on every backend, its losses side by side: `make backends`.

Exits 1 where two backends that start from the same adapter differ by more than they may, or one doesn't learn. A
service makes its adapter's first weights itself, so that of its losses only the first is the same.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.embedded import write_model
from kitchen_resources.numerics import preserved_numerics
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.local.backend import LocalTrainer
from kitchen_resources.training.port import StepMetrics, Trainer
from kitchen_resources.training.run import TrainingRun
from kitchen_resources.training.tinker.backend import TinkerTrainer
from kitchen_resources.training.trl.backend import TrlTrainer
from tests.engine import Told
from tests.peers.skyrl import KEY, skyrl
from tests.rail import Rail
from tests.training_bench import Shelf

RECIPE: Mapping[str, Any] = {
    "epochs": 2,
    "max_rows": 64,
    "max_length": 128,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1.0e-2,
    "lora": {"rank": 8},
}
SAME = 1.0e-4
"""How far losses from the same first adapter may lie apart, relative. Measured: under 1e-5 after 16 updates."""

SAME_BASE = 1.0e-3
"""How far a service's first loss may lie from this machine's, relative."""


def losses(make: Callable[[], Trainer], folder: Path, base: Path) -> list[StepMetrics]:
    """The steps of the recipe on a backend."""
    rail = Rail(blobs=LocalBlobs(folder / "store"), trainer=make)
    rail.add("mine", SupervisedRecipe, {**RECIPE, "model": str(base)})
    with preserved_numerics():
        job = TrainingRun(rail.launch("mine"), Told()).job()
        job.scratch.mkdir(parents=True)
        shelf, parent = Shelf(folder / "shelf"), None
        session = make().open(job)
        try:
            for epoch in range(1, job.plan.epochs + 1):
                shelf.parent = parent.global_step if parent else 0
                parent = session.train_epoch(epoch, parent, shelf).checkpoint
        finally:
            session.close()
    return shelf.steps


def wrong(steps: Mapping[str, list[StepMetrics]]) -> list[str]:
    """What isn't as it should be, one sentence each."""
    found = []
    for name, ours in steps.items():
        theirs = steps["trl"]
        if [step.tokens for step in ours] != [step.tokens for step in theirs]:
            found.append(f"{name} trained other tokens than trl")
        if not ours[-1].loss < ours[0].loss - 0.1:
            found.append(f"{name} didn't learn: {ours[0].loss:.4f} -> {ours[-1].loss:.4f}")
        first, limit = (1, SAME_BASE) if name == "tinker" else (len(theirs), SAME)
        differences = [abs(a.loss - b.loss) / b.loss for a, b in zip(ours[:first], theirs[:first], strict=True)]
        if not max(differences) <= limit:
            found.append(f"{name} differs from trl by {max(differences):.1e} of the loss, and may by {limit:.0e}")
    return found


def main() -> int:
    """Train on all backends; the exit status."""
    os.environ["TINKER_API_KEY"] = KEY
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        base = folder / "tiny"
        write_model(base)
        server = stack.enter_context(skyrl(folder / "skyrl", base))
        backends: dict[str, Callable[[], Trainer]] = {
            "trl": lambda: TrlTrainer(device="cpu", threads=1),
            "trl, 2 processes": lambda: TrlTrainer(device="cpu", threads=1, processes=2),
            "local": lambda: LocalTrainer(device="cpu", threads=1),
            "tinker": lambda: TinkerTrainer(str(base), base_url=server.url, deadline_s=120.0),
        }
        steps = {name: losses(make, folder / name.replace(", ", "-"), base) for name, make in backends.items()}
    print("step " + "".join(f"{name:>24}" for name in steps))
    for row in zip(*steps.values(), strict=True):
        cells = (f"{step.loss:>13.6f} ({step.loss - row[0].loss:+.1e})" for step in row)
        print(f"{row[0].global_step:>4} " + "".join(f"{cell:>24}" for cell in cells))
    problems = wrong(steps)
    print("\n".join(problems) or "all backends are alike, and learn")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
