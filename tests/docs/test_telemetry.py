"""docs/telemetry.md: its table is the table of events, its run config is run config, its programs run."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from kitchen_resources.telemetry.resource import TelemetryResource
from tests.docs.test_readme import blocks
from tests.pages import DOCS, generate

pytestmark = pytest.mark.full

PAGE = DOCS / "telemetry.md"
BLOCKS = blocks(PAGE)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == generate.render("telemetry")


def test_the_run_config_of_the_page_names_every_setting() -> None:
    (text,) = [block.text for block in BLOCKS if (block.language, block.marks) == ("yaml", "config")]
    config = yaml.safe_load(text)

    @dg.op(required_resource_keys={"telemetry"})
    def nothing() -> None:
        """Do nothing."""

    @dg.job(resource_defs={"telemetry": TelemetryResource()})
    def job() -> None:
        nothing()

    assert dg.validate_run_config(job, config)
    assert set(config["resources"]["telemetry"]["config"]) == set(TelemetryResource.model_fields)


def test_the_programs_of_the_page_run(tmp_path: Path) -> None:
    programs = [block.text for block in BLOCKS if block.language == "python"]
    assert len(programs) == 2
    for program in programs:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "training.jsonl").is_file()
