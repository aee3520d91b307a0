"""Promotion from the UI: refused with its numbers, without a mark on the training run; then through the gate."""

from typing import Any

import pytest
import yaml
from playwright.sync_api import expect

from tests.ui.conftest import RECIPES
from tests.ui.dagster_dev import DagsterDev, wait_until
from tests.ui.screen import Screen
from tests.ui.test_reloading import RELOAD

pytestmark = [pytest.mark.heavy, pytest.mark.full]

IMPOSSIBLE = {"metric": "held_out/loss", "minimum": 0.001}


def test_the_gate_refuses_with_its_numbers_and_then_lets_the_better_model_through(
    screen: Screen, shown_run: str
) -> None:
    dev = screen.dev
    version = dev.registry.get("shown", dev.registry.alias("shown", "candidate") or 0)
    loss = version.metrics["held_out/loss"]["value"]
    base = version.base_metrics["held_out/loss"]["value"]
    assert dev.registry.alias("shown", "production") is None

    _change_rule(dev, IMPOSSIBLE)
    screen.open_launchpad("shown_promote")
    # A launch can't lower the bar: the rule is no field of its config.
    screen.type_config("resources: {shown: {config: {promotion: {metric: held_out/loss}}}}\n")
    expect(screen.page.get_by_text('unexpected config entry "promotion"').first).to_be_visible()
    screen.type_config("resources: {}\n")
    refused = screen.launch()
    assert screen.wait_for_run(refused) == "FAILURE"
    expect(screen.page.get_by_text(f"held_out/loss is {loss:.4g}, the bound is 0.001").first).to_be_visible()
    expect(screen.page.get_by_text("Failure", exact=True).first).to_be_visible()
    screen.shoot("promotion-1-refused-run")
    run = dev.graphql.run(refused)
    assert run["tags"]["kitchen/kind"] == "promotion"
    assert run["steps"] == [("shown__registered_model_promotion_gate", "FAILURE")]
    assert dev.registry.alias("shown", "production") is None
    assert dev.graphql.run(shown_run)["status"] == "SUCCESS"

    screen.open_asset("shown", "registered_model", "checks")
    expect(screen.page.get_by_text(f"held_out/loss is {loss:.4g}, the bound is 0.001")).to_be_visible()
    expect(screen.page.get_by_text("Failed", exact=True).first).to_be_visible()
    screen.shoot("promotion-2-refused-check")
    screen.page.get_by_text("[Show JSON]").click()
    expect(screen.page.get_by_text('"bound": 0.001')).to_be_visible()
    screen.shoot("promotion-3-numbers")

    _change_rule(dev, {"metric": "held_out/loss"})
    screen.open_launchpad("shown_promote")
    screen.type_config("resources: {}\n")
    promoted = screen.launch()
    assert screen.wait_for_run(promoted) == "SUCCESS"
    assert dev.registry.alias("shown", "production") == version.version
    screen.open_asset("shown", "production")
    said = f"held_out/loss is {loss:.4g}, better than {base:.4g} of the base"
    expect(screen.row("reason")).to_contain_text(said)
    screen.shoot("promotion-4-production")
    (made,) = [found for found in dev.graphql.materializations("shown", "production") if found.run_id == promoted]
    assert (made.metadata["version"], made.metadata["reason"]) == (version.version, said)


def _change_rule(dev: DagsterDev, rule: dict[str, Any]) -> None:
    """Change the rule where it can be changed: in the recipe's file, with a reload of the location."""
    (dev.folder / "recipes" / "shown.yaml").write_text(yaml.safe_dump({**RECIPES["shown"], "promotion": rule}))
    dev.graphql.ask(RELOAD)
    wait_until(dev.graphql.is_loaded, 60, "the location")
