"""A recipe file dropped into the folder while the UI runs: named by file and line when it is broken, else a recipe."""

import pytest
import yaml
from playwright.sync_api import expect

from tests.ui.conftest import TINY
from tests.ui.dagster_dev import wait_until
from tests.ui.screen import Screen

pytestmark = [pytest.mark.heavy, pytest.mark.full]

RELOAD = """
mutation { reloadRepositoryLocation(repositoryLocationName: "kitchen") { ... on WorkspaceLocationEntry { loadStatus } } }
"""


def test_a_dropped_recipe_is_there_after_a_reload_and_a_broken_one_says_where(screen: Screen) -> None:
    dev = screen.dev
    file = dev.folder / "recipes" / "dropped.yaml"
    try:
        file.write_text("workflow: supervised\nmodel: embedded:tiny\nepoch: 3\n")
        screen.open("locations")
        screen.button("Reload all").click()
        said = f"ConfigError: {file}:3, epoch: unknown field 'epoch'; did you mean 'epochs'?"
        expect(screen.page.get_by_text(said)).to_be_visible()
        screen.shoot("reload-1-broken")

        file.write_text(yaml.safe_dump({**TINY, "description": "Dropped a moment ago."}))
        screen.button("Reload again").click()
        expect(screen.page.get_by_text("Loaded", exact=True)).to_be_visible()
        screen.open_lineage("dropped")
        screen.shoot("reload-2-lineage")
        screen.open("locations/kitchen/jobs/dropped")
        expect(screen.page.get_by_text("Dropped a moment ago.")).to_be_visible()
        screen.shoot("reload-3-job")
    finally:
        file.unlink()
        dev.graphql.ask(RELOAD)
        wait_until(dev.graphql.is_loaded, 60, "the location")
