"""One `dagster dev` and one browser for all tests of this folder, gone after them; a window and pictures for each."""

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from kitchen_resources.embedded import rows, write_model
from tests.ui.dagster_dev import DagsterDev, dagster_dev, wait_until
from tests.ui.screen import RUN_S, Screen

# How long a page may take to show something: a webserver shares two cores with whole training runs.
WAIT_MS = 120_000
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

TINY: dict[str, Any] = {
    "workflow": "supervised",
    "model": "embedded:tiny",
    "dataset": "embedded:dates",
    "max_rows": 150,
    "max_length": 64,
    "held_out": "0.1",
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 3.0e-3,
    "evaluations": [{"name": "held_out", "dataset": "held_out", "scorer": "exact_match", "max_tokens": 16}],
    "promotion": {"metric": "held_out/loss"},
}
"""135 rows to train on in 9 steps an epoch, the last of 7 rows; 15 held out."""

RECIPES: dict[str, dict[str, Any]] = {
    "tiny": {
        **TINY,
        "description": "Dates on few rows.",
        "schedule": {"cron": "0 3 * * *", "timezone": "Europe/Berlin"},
    },
    "often": {
        **TINY,
        "description": "Dates, every minute.",
        "seed": 2,
        "epochs": 1,
        "schedule": {"cron": "* * * * *"},
    },
    # Another seed is another run, so that what the tests of `tiny` train and register doesn't meet these.
    "shown": {**TINY, "seed": 1},
    # Never trained: a test puts down its checkpoints.
    "many": {**TINY, "seed": 3},
    "own": {**TINY, "model": "own_model", "dataset": "own_rows.jsonl", "lora": {"rank": 4}},
    "liking": {
        "workflow": "preference",
        "base_from": "shown",
        "dataset": "embedded:date_pairs",
        "max_rows": 100,
        "max_length": 64,
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 1.0e-3,
        "evaluations": [{"name": "held_out", "dataset": "held_out", "scorer": "exact_match", "max_tokens": 16}],
    },
    "sums": {
        "workflow": "reinforcement",
        "model": "embedded:tiny",
        "environment": {"name": "arithmetic", "args": {"count": 60}},
        "max_length": 64,
        "epochs": 2,
        "steps_per_epoch": 3,
        "batch_size": 16,
        "group_size": 4,
        "groups_per_batch": 4,
        "max_tokens": 4,
        "learning_rate": 1.0e-3,
        "pass_at": 2,
    },
    "slow": {**TINY, "max_rows": 1200, "epochs": 3, "evaluations": [], "eval_every": 0, "checkpoint_steps": 10},
}


@pytest.fixture(scope="package")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterDev]:
    """The running instance; afterwards none of its processes is left."""
    folder = tmp_path_factory.mktemp("dev")
    write_model(folder / "own_model", seed=5)
    chosen = itertools.islice(rows("dates", seed=5), 150)
    (folder / "own_rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    with dagster_dev(folder, RECIPES) as running:
        yield running


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium without a display."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert executable, "the tests of the UI need Chromium: apt-get install chromium"
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=CHROMIUM, headless=True)
        yield chromium
        chromium.close()


@pytest.fixture
def screen(dev: DagsterDev, browser: Browser, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Screen]:
    """A new window. Pictures go to KITCHEN_SCREENSHOTS; the last one is of how the test ended."""
    folder = Path(os.environ.get("KITCHEN_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(WAIT_MS)
    asked: set[str] = set()
    page.on("request", lambda sent: asked.add(urlsplit(sent.url).hostname or sent.url.split(":")[0]))
    opened = Screen(dev, page, folder)
    yield opened
    opened.shoot(f"end-{request.node.name}")
    page.close()
    assert asked <= {"127.0.0.1", "data", "blob"}, f"the UI asked {asked} over the network"


@pytest.fixture(scope="package")
def shown_run(dev: DagsterDev) -> str:
    """A finished run of the recipe `shown`."""
    run_id = dev.graphql.launch("shown")
    wait_until(lambda: dev.graphql.is_over(run_id), RUN_S, f"run {run_id}")
    assert dev.graphql.run(run_id)["status"] == "SUCCESS"
    return run_id
