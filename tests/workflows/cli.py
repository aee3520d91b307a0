"""The kitchen as people run it from a shell: `dagster job execute`, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DAGSTER = str(Path(sys.executable).with_name("dagster"))


def write_config(path: Path, store: Path, recipe: dict[str, Any], **more: Any) -> Path:
    """A run config file."""
    resources: dict[str, Any] = {
        "supervised": {"config": recipe},
        "blobs": {"config": {"store": {"local": {"path": str(store)}}}},
        "telemetry": {"config": {"jsonl": str(path.with_suffix(".jsonl"))}},
        "trainer": {"config": {"backend": {"trl": {"threads": 1}}}},
    }
    resources.update(more.pop("resources", {}))
    path.write_text(yaml.safe_dump({"resources": resources, **more}))
    return path


def command(config: Path, job: str = "supervised") -> list[str]:
    """The command line of a job."""
    return [DAGSTER, "job", "execute", "-m", "kitchen_assets.definitions", "-j", job, "-c", str(config)]


def environment(home: Path) -> dict[str, str]:
    """The environment of a shell with its own Dagster home."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("KITCHEN_", "DAGSTER_", "PYTEST_"))
    }
    return {**kept, "DAGSTER_HOME": str(home)}


def execute(config: Path, home: Path, job: str = "supervised") -> subprocess.CompletedProcess[str]:
    """Run a job to its end."""
    return subprocess.run(command(config, job), capture_output=True, text=True, env=environment(home), check=False)


def events(config: Path, name: str) -> list[dict[str, Any]]:
    """The events of one kind that the runs of a config wrote, in order."""
    path = config.with_suffix(".jsonl")
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for line in lines if line.endswith("}") and (event := json.loads(line))["event"] == name]
