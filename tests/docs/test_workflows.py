"""docs/workflows.md: its workflow is one, and trains."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import dagster as dg
import pytest

import kitchen_assets as kitchen
from tests.docs.test_readme import blocks
from tests.pages import DOCS

pytestmark = pytest.mark.full

PAGE = DOCS / "workflows.md"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The page's module."""
    (text,) = [block.text for block in blocks(PAGE) if block.marks == "file=my_workflow.py"]
    (tmp_path / "my_workflow.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("my_workflow")
    sys.modules.pop("my_workflow")


def test_the_workflow_of_the_page_runs(written: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("workflow: by_hand\nmodel: m\ndataset: d\nepochs: 3\n")
    location = kitchen.Kitchen(tmp_path / "recipes", workflows=[written.WORKFLOW])
    assert kitchen.describe("mine", location)["stages"] == ["load", "epochs", "save"]
    ports = {key: {"config": value} for key, value in kitchen.noop().items()}
    with dg.DagsterInstance.ephemeral() as instance:
        job = location.definitions().resolve_job_def("mine")
        assert job.execute_in_process(run_config={"resources": ports}, instance=instance).success
        event = instance.get_latest_materialization_event(dg.AssetKey(["mine", "save"]))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["steps"].value == 6


def test_every_argument_of_a_stage_is_told() -> None:
    text = PAGE.read_text()
    told = set(re.findall(r"`(\w+)`", text.partition("## Stages")[2].partition("## Loops")[0]))
    arguments = set(kitchen.stage.__kwdefaults__ or {}) | {"group"}
    # Of the built-in workflows alone.
    assert arguments - {"optional", "reads_models"} <= told
