"""The example cookbook: loaded beside the kitchen's own location, trained from the command line, and each line needed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.registry.store import StoreRegistry
from tests.workflows import cli

FOLDER = cli.ROOT / "examples" / "cookbook"

pytestmark = pytest.mark.full

NEEDED = {
    "recipes/sums.yaml": {
        "workflow: ": "no `workflow` is named",
        "model: ": "model",
        "dataset: ": "dataset",
        "  - {name: asked": "evaluations",
    },
    "recipes/counting.yaml": {
        "workflow: ": "no `workflow` is named",
        "model: ": "model",
        "environment: ": "environment",
        "batch_size: ": "batch_size",
    },
    "cookbook.py": {
        "register_environment(": "'counting'",
        '    recipes=HERE / "recipes",': "Kitchen(recipes=…)",
        '        "datasets": ': "quiz:sums",
        "from quiz.adapters": "QuizDatasets",
        "from quiz.environments": "Counting",
        '    "local": ': "local",
    },
    "quiz/adapters.py": {"        digest = ": "'digest'"},
}
"""Lines without which it doesn't work, by how they begin, and what the error must name."""

VALIDATE = """
import kitchen_assets as kitchen
from cookbook import COOKBOOK
for name in ("sums", "counting"):
    kitchen.validate(name, location=COOKBOOK)
"""


def environment(folder: Path) -> dict[str, str]:
    return {**cli.environment(folder / "home"), "COOKBOOK_STORE": str(folder / "store")}


def validated(cookbook: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Every recipe of a copy checked, as a launch would be."""
    env = {**environment(folder), "PYTHONPATH": os.pathsep.join([str(cookbook), str(cli.ROOT)])}
    return subprocess.run(
        [sys.executable, "-c", VALIDATE], cwd=cookbook, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    target = tmp_path / "cookbook"
    shutil.copytree(FOLDER, target, ignore=shutil.ignore_patterns("store", "__pycache__"))
    return target


def test_it_is_whole_in_under_150_lines() -> None:
    files = [FOLDER / "cookbook.py", *FOLDER.glob("quiz/*.py"), *FOLDER.glob("recipes/*.yaml")]
    assert sum(len(path.read_text().splitlines()) for path in files) < 150


def test_the_workspace_has_both_locations(tmp_path: Path) -> None:
    words = ("definitions", "validate", "-w", str(cli.ROOT / "workspace.yaml"))
    done = subprocess.run(
        [cli.DAGSTER, *words], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for name in ("kitchen", "cookbook"):
        assert f"Validation successful for code location {name}" in said


@pytest.mark.heavy
def test_it_trains_from_the_command_line(tmp_path: Path) -> None:
    words = ("job", "execute", "-f", str(FOLDER / "cookbook.py"), "-d", str(FOLDER), "-j", "sums")
    done = subprocess.run(
        [cli.DAGSTER, *words], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    registry = StoreRegistry(LocalBlobs(tmp_path / "store"))
    version = registry.get("sums", registry.alias("sums", "candidate") or 0)
    before, after = version.base_metrics["asked/exact_match"], version.metrics["asked/exact_match"]
    assert (before["n"], after["n"]) == (45, 45)
    assert after["value"] > before["value"] + 0.3


def test_a_copy_is_valid(copied: Path, tmp_path: Path) -> None:
    done = validated(copied, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "start"), [(file, start) for file, lines in NEEDED.items() for start in lines], ids=str
)
def test_a_line_that_is_taken_away_is_named(copied: Path, tmp_path: Path, file: str, start: str) -> None:
    path = copied / file
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(start)]
    assert len(kept) == len(lines) - 1, start
    path.write_text("".join(kept))
    done = validated(copied, tmp_path)
    assert done.returncode != 0
    said = done.stderr.strip().splitlines()
    end = "\n".join(said[-8:])
    assert NEEDED[file][start] in end, end
