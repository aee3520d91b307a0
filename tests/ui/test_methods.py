"""The other methods in the UI: the edge to the recipe that one builds on, a chain in one run, and what was sampled."""

import pytest
import yaml
from playwright.sync_api import expect

from tests.ui.screen import Screen

pytestmark = [pytest.mark.heavy, pytest.mark.full]


def test_a_recipe_on_anothers_model_is_drawn_launched_and_measured(screen: Screen, shown_run: str) -> None:
    dev = screen.dev
    assert dev.graphql.parents("liking", "dataset") == ["liking/raw", "shown/registered_model"]
    assert "shown/registered_model" in dev.graphql.parents("liking", "model")
    screen.open_launchpad("liking")
    run_id = screen.launch()
    assert screen.wait_for_run(run_id) == "SUCCESS"
    screen.shoot("methods-1-preference-run")
    screen.open(
        "asset-groups~%2Bkey%3A%22liking%2Fdataset%22%2B?expanded=global%40global%3Adatasets,global%40global%3Aregistry"
    )
    expect(screen.page.get_by_text("registered_model", exact=True).first).to_be_visible()
    screen.shoot("methods-2-preference-lineage")
    screen.open_asset("liking", "evaluation", "events")
    expect(screen.row("held_out/accuracy")).to_contain_text("1")
    screen.row("samples").get_by_text("[Show Markdown]").click()
    expect(screen.page.get_by_text("trained", exact=True).first).to_be_visible()
    screen.shoot("methods-3-preference-samples")

    version = dev.registry.get("liking", dev.registry.alias("liking", "candidate") or 0)
    assert version.base["reference"] == "registry:shown@1"
    assert version.base_metrics["held_out/accuracy"]["value"] == 0.0
    assert version.metrics["held_out/accuracy"]["value"] > 0.9


def test_episodes_are_read_on_the_page_of_the_checkpoints(screen: Screen) -> None:
    dev = screen.dev
    screen.open_launchpad("sums")
    screen.type_config(yaml.safe_dump({"resources": {"sums": {"config": {"group_size": 5}}}}))
    refused = screen.launch()
    assert screen.wait_for_run(refused) == "FAILURE"
    expect(screen.page.get_by_text("groups_per_batch 4 x group_size 5 is 20").first).to_be_visible()
    screen.shoot("methods-4-refused-batch")

    screen.open_launchpad("sums")
    screen.type_config("{}\n")
    run_id = screen.launch()
    assert screen.wait_for_run(run_id) == "SUCCESS"
    fingerprint = dev.graphql.run(run_id)["tags"]["kitchen/fingerprint"]
    screen.open_asset("sums", "checkpoints", "partitions")
    screen.page.get_by_text(f"{fingerprint[:12]}/000000003").first.click()
    screen.row("transcript").get_by_text("[Show Markdown]").click()
    expect(screen.page.get_by_text("reward", exact=True).first).to_be_visible()
    screen.shoot("methods-5-episodes")
    (last, first) = [made for made in dev.graphql.materializations("sums", "checkpoints") if made.run_id == run_id]
    assert (first.metadata["step"], last.metadata["step"]) == (3, 6)
