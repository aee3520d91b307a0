"""Lineage as a person browses it: from the registered version back to the rows, page by page."""

from pathlib import Path

import dagster as dg
import pyarrow.parquet
import pytest
from playwright.sync_api import expect

from tests.ui.graphql_door import Materialization
from tests.ui.screen import Screen

pytestmark = [pytest.mark.heavy, pytest.mark.full]

LINEAGE = {
    "raw": [],
    "dataset": ["raw"],
    "checkpoints": ["dataset"],
    "model": ["checkpoints", "dataset"],
    "evaluation": ["model"],
    "registered_model": ["evaluation", "model"],
    "production": ["registered_model"],
}
CHECKS = tuple(
    f"rows_{kind}"
    for kind in (
        *("contaminated", "duplicates", "invalid", "near_duplicates", "overlap"),
        *("template_drift", "truncated", "untrained"),
    )
)


def _made(screen: Screen, stage: str, run_id: str) -> Materialization:
    (made,) = [found for found in screen.dev.graphql.materializations("shown", stage) if found.run_id == run_id]
    return made


def test_the_lineage_page_draws_the_way_from_rows_to_production(screen: Screen, shown_run: str) -> None:
    screen.open_lineage("shown")
    screen.expect_green(*(stage for stage in LINEAGE if stage != "production"))
    boxes = {stage: screen.asset_node(stage).bounding_box() for stage in LINEAGE}
    screen.shoot("lineage")
    left = {stage: box["x"] for stage, box in boxes.items() if box is not None}
    assert sorted(left, key=lambda stage: left[stage]) == list(LINEAGE)
    for stage, parents in LINEAGE.items():
        assert screen.dev.graphql.parents("shown", stage) == [f"shown/{parent}" for parent in parents]


def test_the_page_of_the_checkpoints_has_their_partitions_and_a_loss_curve(screen: Screen, shown_run: str) -> None:
    dev = screen.dev
    fingerprint = dev.graphql.run(shown_run)["tags"]["kitchen/fingerprint"]
    screen.open_asset("shown", "checkpoints", "partitions")
    for step in (9, 18):
        expect(screen.page.get_by_text(f"{fingerprint[:12]}/{step:09d}").first).to_be_visible()
    screen.page.get_by_text(f"{fingerprint[:12]}/000000009").first.click()
    expect(screen.row("state_digest")).to_contain_text(dev.checkpoints.head(fingerprint).entries()[0].state_digest)
    screen.shoot("checkpoints-1-partitions")

    screen.open_asset("shown", "checkpoints")
    screen.button("Plots").click()
    expect(screen.page.get_by_text("loss", exact=True)).to_be_visible()
    expect(screen.page.locator("canvas").first).to_be_visible()
    screen.shoot("checkpoints-2-plots")

    made = [found for found in dev.graphql.materializations("shown", "checkpoints") if found.run_id == shown_run]
    assert [found.metadata["step"] for found in made] == [18, 9]
    assert made[0].metadata["loss"] < made[1].metadata["loss"]
    assert (made[0].metadata["parent"], made[1].metadata["parent"]) == (made[1].metadata["state_digest"], "")


def test_ten_thousand_checkpoints_are_browsed(screen: Screen) -> None:
    """A recipe's checkpoints over years, put down by hand: most of their payload is long gone."""
    keys = [f"{run:012x}/{step:09d}" for run in range(100) for step in range(10, 1010, 10)]
    checkpoints = dg.AssetKey(["many", "checkpoints"])
    with dg.DagsterInstance.from_config(str(screen.dev.folder / "home")) as instance:
        instance.add_dynamic_partitions("kitchen__many__checkpoints", keys)
        for key in keys[-50:]:
            made = dg.AssetMaterialization(checkpoints, partition=key, metadata={"loss": 0.25})
            instance.report_runless_asset_event(made)
    screen.open_asset("many", "checkpoints", "partitions")
    expect(screen.page.get_by_text("10,000", exact=False).first).to_be_visible()
    expect(screen.page.get_by_text(keys[0], exact=True).first).to_be_visible()
    screen.shoot("many-1-partitions")
    screen.page.get_by_placeholder("Filter by name").first.fill("000000000063/000001000")
    screen.page.get_by_text(keys[-1], exact=True).first.click()
    expect(screen.row("loss")).to_contain_text("0.25")
    screen.shoot("many-2-found")
    screen.open_lineage("many")
    screen.shoot("many-3-lineage")


def test_the_page_of_the_model_has_its_fingerprint_and_draws_its_loss(screen: Screen, shown_run: str) -> None:
    fingerprint = screen.dev.graphql.run(shown_run)["tags"]["kitchen/fingerprint"]
    screen.open_asset("shown", "model", "events")
    expect(screen.row("fingerprint")).to_contain_text(fingerprint)
    expect(screen.row("optimizer_steps")).to_contain_text("18")
    screen.shoot("model-1-events")
    screen.row("loss").get_by_text("[Show Markdown]").click()
    plot = screen.page.locator("img[alt=loss]")
    expect(plot).to_be_visible()
    assert plot.evaluate("image => [image.complete, image.naturalWidth, image.naturalHeight]") == [True, 400, 208]
    screen.shoot("model-2-loss")


def test_the_page_of_the_data_set_has_row_report_columns_and_checks(screen: Screen, shown_run: str) -> None:
    screen.open_asset("shown", "dataset")
    expect(screen.page.get_by_text("Row count", exact=True)).to_be_visible()
    expect(screen.page.get_by_text("135", exact=True).first).to_be_visible()
    expect(screen.page.get_by_text("Columns", exact=True)).to_be_visible()
    for column in ("role", "content"):
        expect(screen.page.get_by_role("table").first.get_by_text(column, exact=True)).to_be_visible()
    expect(screen.page.get_by_text("repeats an earlier row exactly")).to_be_visible()
    screen.shoot("dataset-1-overview")
    screen.open_asset("shown", "dataset", "checks")
    for check in CHECKS:
        expect(screen.page.get_by_text(check, exact=True).first).to_be_visible()
    expect(screen.page.get_by_text("Succeeded", exact=True)).to_have_count(len(CHECKS))
    expect(screen.page.get_by_text("This is a blocking asset check")).to_be_visible()
    screen.shoot("dataset-2-checks")


def test_the_page_of_the_evaluation_compares_the_model_with_its_base(screen: Screen, shown_run: str) -> None:
    version = screen.dev.registry.get("shown", 1)
    screen.open_asset("shown", "evaluation", "events")
    table = screen.row("results").get_by_role("table")
    expect(table.locator("th")).to_have_text(["metric", "base", "base 95 %", "n", "trained", "trained 95 %"])
    for metric in ("held_out/exact_match", "held_out/loss", "held_out/perplexity"):
        base, trained = version.base_metrics[metric], version.metrics[metric]
        cells = table.locator("tr").filter(has_text=metric).locator("td")
        expect(cells.nth(0)).to_have_text(metric)
        expect(cells.nth(1)).to_have_text(f"{base['value']:.4g}")
        expect(cells.nth(3)).to_have_text("15")
        expect(cells.nth(4)).to_have_text(f"{trained['value']:.4g}")
    assert version.metrics["held_out/loss"]["value"] < version.base_metrics["held_out/loss"]["value"]
    screen.shoot("evaluation-1-events")
    screen.row("samples").get_by_text("[Show Markdown]").click()
    expect(screen.page.get_by_role("columnheader", name="expected")).to_be_visible()
    screen.shoot("evaluation-2-samples")


def test_from_the_registered_version_one_walks_back_to_the_rows(
    screen: Screen, shown_run: str, tmp_path: Path
) -> None:
    dev = screen.dev
    registered, evaluation, model, dataset, raw = (
        _made(screen, stage, shown_run) for stage in ("registered_model", "evaluation", "model", "dataset", "raw")
    )
    fingerprint = dev.graphql.run(shown_run)["tags"]["kitchen/fingerprint"]
    assert {made.metadata["fingerprint"] for made in (registered, evaluation, model)} == {fingerprint}
    assert registered.metadata["model_digest"] == model.metadata["model_digest"] == model.tags["dagster/data_version"]
    (checkpoint,) = [
        found
        for found in dev.graphql.materializations("shown", "checkpoints")
        if found.partition == f"{fingerprint[:12]}/{registered.metadata['step']:09d}"
    ]
    assert checkpoint.metadata["state_digest"] == model.metadata["state_digest"]
    assert checkpoint.metadata["fingerprint"] == fingerprint
    digest = dataset.metadata["digest"]
    assert registered.metadata["dataset_digest"] == model.metadata["identity"]["data"] == digest
    # Dagster's own record of what each was made from says the same.
    for made, stage, upstream in (
        (dataset, "raw", raw),
        (model, "dataset", dataset),
        (evaluation, "model", model),
        (registered, "evaluation", evaluation),
    ):
        version = made.tags[f"dagster/input_data_version/shown/{stage}"]
        assert version == upstream.tags["dagster/data_version"], stage
    version = dev.registry.get("shown", registered.metadata["version"])
    assert version.dataset["raw"]["train"]["digest"] == raw.metadata["sources"]["train"]["digest"]

    path = tmp_path / "rows.parquet"
    dev.checkpoints.content.get_file(dataset.metadata["files"]["train"].rpartition("/")[2], path)
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert len(rows) == 135
    assert len({row["row_id"] for row in rows} & set(range(150))) == 135

    screen.open_asset("shown", "registered_model")
    expect(screen.row("dataset_digest")).to_contain_text(digest)
    screen.shoot("registered_model")
    for stage, path_back in (("evaluation", "model"), ("model", "dataset"), ("dataset", "raw")):
        screen.open_asset("shown", stage)
        screen.page.get_by_role("link", name=f"shown / {path_back}").first.click()
        screen.page.wait_for_url(f"**/assets/shown/{path_back}*")
    expect(screen.row("sources")).to_contain_text(raw.metadata["sources"]["train"]["digest"])
    screen.shoot("walked-back-to-raw")
