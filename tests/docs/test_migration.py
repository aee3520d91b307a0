"""docs/migration.md: its blocks run, and every row names a file and a test that are there."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest

from kitchen_assets.kitchen import built_in, default_resources
from tests.docs.test_readme import blocks
from tests.pages import DOCS

ROOT = DOCS.parent
PAGE = DOCS / "migration.md"
TOP_LEVEL = [
    *("pyproject.toml", "README.md", "workspace.yaml", "kitchen_assets"),
    *("kitchen_resources", "tests", "dagster_home", "setup.cfg"),
]
PACKAGES = ["dagster", "dagster-webserver", "dagster-aws", "torch", "trl", "datasets", "pandera"]


@pytest.mark.full
def test_the_blocks_of_the_page_run_in_order(tmp_path: Path) -> None:
    ran = 0
    for block in blocks(PAGE):
        if block.marks.startswith("file="):
            path = tmp_path / block.marks.removeprefix("file=")
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text)
        elif block.language == "python":
            program = f"import sys; sys.path.insert(0, '.')\n{block.text}"
            done = subprocess.run(
                [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (block.line, done.stderr[-3000:])
            ran += 1
    assert ran == 6


def rows() -> list[list[str]]:
    """The cells of all table rows."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_row_names_what_is_there() -> None:
    named = 0
    for cells in rows():
        *_, file, test = ["", *cells]
        for place in (file, test):
            path, _, name = place.partition("::")
            if not re.fullmatch(r"[\w./-]+\.(py|toml|md)|[\w./-]+/", path):
                continue
            assert (ROOT / path).exists(), place
            if name:
                assert f"def {name}(" in (ROOT / path).read_text(), place
                named += 1
    assert named >= 29


def test_the_card_is_kept() -> None:
    for name in TOP_LEVEL:
        assert (ROOT / name).exists(), name
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=\[ ]", item)[0] for item in asked}
    assert set(PACKAGES) <= names
    for key, resource in default_resources().items():
        assert isinstance(resource, dg.ConfigurableResource), key
    defs = built_in().definitions()
    for workflow in ("supervised", "reinforcement", "preference", "distillation"):
        job = defs.resolve_job_def(workflow)
        plan = job.get_node_named(f"{workflow}__model").definition
        (planned,) = [node for node in plan.nodes if node.name.endswith("plan_epochs")]
        assert planned.definition.output_defs[0].is_dynamic
    assert {"evaluate_checkpoints", "retain_checkpoints"} <= {sensor.name for sensor in defs.sensors or []}
