"""The Dagster UI through a browser window, in the words of the person at it."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Locator, Page, expect

from tests.ui.dagster_dev import DagsterDev, wait_until

RUN_S = 600
GROUPS = ("datasets", "checkpoints", "training", "evaluation", "registry")


@dataclass(frozen=True)
class Screen:
    """A window on a running instance.

    Attributes:
        dev: The instance.
        page: The window.
        folder: Where screenshots go.
    """

    dev: DagsterDev
    page: Page
    folder: Path

    def shoot(self, name: str) -> None:
        """Keep a picture of what is seen now."""
        self.page.screenshot(path=self.folder / f"{name}.png", animations="disabled")

    def open(self, path: str) -> None:
        """Go to a page."""
        self.page.goto(f"{self.dev.url}/{path}")

    def button(self, name: str) -> Locator:
        """A button by its words."""
        return self.page.get_by_role("button", name=name)

    # Launching.

    def open_launchpad(self, job: str) -> None:
        """Open a job's Launchpad, with the config that it offers."""
        self.open(f"locations/kitchen/jobs/{job}/playground")
        expect(self.page.get_by_text("No errors")).to_be_visible()
        expect(self.button("Launch Run")).to_be_enabled()

    def type_config(self, text: str) -> None:
        """Replace what the Launchpad's editor holds."""
        self.page.locator(".CodeMirror").last.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.press("Delete")
        self.page.keyboard.insert_text(text)

    def launch(self) -> str:
        """Press Launch Run, once it may be pressed; returns the run that it leads to."""
        expect(self.button("Launch Run")).to_be_enabled()
        self.button("Launch Run").click()
        self.page.wait_for_url("**/runs/*")
        return self.run_id()

    def run_id(self) -> str:
        """The run whose page is open."""
        found = re.search(r"/runs/([0-9a-f-]{36})", self.page.url)
        assert found, self.page.url
        return found[1]

    def wait_for_run(self, run_id: str) -> str:
        """Wait until a run has ended; returns its status."""
        wait_until(lambda: self.dev.graphql.is_over(run_id), RUN_S, f"run {run_id}")
        return str(self.dev.graphql.run(run_id)["status"])

    # Browsing.

    def open_lineage(self, recipe: str) -> None:
        """Open the lineage of one recipe, with its groups unfolded."""
        unfolded = ",".join(f"global@global:{group}" for group in GROUPS)
        selection = quote(f'key:"{recipe}/*"', safe="")
        self.open(f"asset-groups~{selection}?expanded={quote(unfolded, safe='')}")
        expect(self.button("Materialize all (6)")).to_be_enabled()
        expect(self.asset_node("production")).to_be_visible()

    def asset_node(self, stage: str) -> Locator:
        """An asset as the lineage page draws it."""
        name = self.page.get_by_text(stage, exact=True)
        return self.page.locator("[class*=AssetNode_assetNodeContainer]").filter(has=name)

    def expect_green(self, *stages: str) -> None:
        """Wait until the lineage page draws these assets as made."""
        for stage in stages:
            box = self.asset_node(stage).locator("[class*=AssetNode_minimalAssetNodeBox]")
            expect(box).to_have_attribute("style", re.compile("background-green"))

    def open_asset(self, recipe: str, stage: str, view: str = "overview") -> None:
        """Open a tab of an asset's page."""
        self.open(f"assets/{recipe}/{stage}?view={view}")

    def row(self, label: str) -> Locator:
        """The row of an asset's metadata table that has this label."""
        return self.page.locator("tr").filter(has=self.page.get_by_text(label, exact=True)).first
