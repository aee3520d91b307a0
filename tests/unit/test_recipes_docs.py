"""docs/recipes.md: up to date, right in its examples, and complete."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from method_cases import BLOCKS as METHOD_BLOCKS
from method_cases import METHODS, own_paths
from recipe_cases import BLOCKS, NAMED, launch, paths, recipe
from test_recipes_trainer_args import PASSED_ON

from kitchen_assets.kitchen import Kitchen
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.fields import fields_with_facts
from kitchen_resources.recipes.files import DEFINITION_KEYS, load_recipes
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.rules import check_values, field_names
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.trl.arguments import OWNED, OWNED_FIELDS
from kitchen_resources.training.trl.session import METHODS as METHOD_MODULES
from tests.pages import generate

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```(?P<language>\w+) ?(?P<mark>\w*)\n(?P<text>.*?)^```$", re.M | re.S)

ORIGINAL = [
    "dataset",
    "split",
    "sample_size",
    "model",
    "lora_rank",
    "learning_rate",
    "epochs",
    "batch_size",
    "max_length",
    "train_on",
    "loss_fn",
    "loss_fn_config",
    "lr_schedule",
    "log_every",
    "save_every",
    "eval_every",
    "checkpoint_prefix",
    "final_weights_name",
    "skip_eval",
    "eval_samples",
    "eval_metrics",
    "generate_eval_report",
    "eval_report_format",
    "max_seq_len",
    "warmup_steps",
    "max_steps",
    "gradient_accumulation_steps",
    "lora_alpha",
    "lora_dropout",
    "eval_split",
    "eval_every_n_steps",
    "checkpoint_every_n_steps",
    "save_best_only",
    "name",
    "description",
    "workflow",
    "default_config",
    "required_adapters",
    "optional_adapters",
    "validate_config",
    "merge_config",
    "training_client",
    "dataset_store",
    "blob_store",
    "evaluator",
    "model_registry",
    "metrics_store",
    "hub_client",
]
"""Every field of the original's supervised workflow and recipe, and its adapters."""

NOT_OFFERED = {
    "loss_fn",
    "loss_fn_config",
    "log_every",
    "checkpoint_prefix",
    "final_weights_name",
    "eval_every_n_steps",
    "generate_eval_report",
    "eval_report_format",
    "required_adapters",
    "optional_adapters",
    "hub_client",
}


@pytest.fixture(scope="module")
def page() -> str:
    return (DOCS / "recipes.md").read_text(encoding="utf-8")


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading, by the word in their first cell."""
    _, _, below = page.partition(f"\n{heading}\n")
    assert below, heading
    table = re.search(r"^\|.*?(?=\n\n|\Z)", below, re.M | re.S)
    assert table is not None
    cells = [[cell.strip() for cell in line.strip("| ").split(" |")] for line in table[0].splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in cells}


def examples(page: str, language: str, mark: str) -> list[str]:
    return [m["text"] for m in _BLOCK.finditer(page) if (m["language"], m["mark"]) == (language, mark)]


# The generator.


def test_the_pages_are_up_to_date(page: str) -> None:
    assert set(generate.NAMES) == {"backends", "recipes", "telemetry"}
    assert page == generate.render("recipes")
    assert generate.main(["--check"]) == 0


def test_a_page_that_is_not_is_told_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(DOCS / "pages", tmp_path / "pages")
    monkeypatch.setattr(generate, "HERE", tmp_path)
    assert generate.main(["--check"]) == 1
    assert (
        "not up to date: backends.md, recipes.md, telemetry.md; run: python docs/generate.py"
        in capsys.readouterr().err
    )
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "recipes.md").write_text(generate.render("recipes") + "x")
    assert generate.main(["--check"]) == 1
    assert generate.main(["--other"]) == 2


# Completeness.

TABLES: dict[str, list[tuple[str, Any, Any]]] = {
    "### Fields of every recipe": list(fields_with_facts(Recipe)),
    **{
        f"### The {method.method} recipe": [entry for entry in own_paths(method) if "." not in entry[0]]
        for method in (SupervisedRecipe, *METHODS)
    },
    **{
        f"### The block `{prefix.replace('.0', '[]')}`": list(fields_with_facts(block))
        for prefix, block in {
            **{prefix: BLOCKS[prefix] for prefix in ("lora", "evaluations.0", "row_limits")},
            **METHOD_BLOCKS,
        }.items()
    },
}
"""Headings of the page's tables, and the fields that each must hold."""


@pytest.mark.parametrize("heading", TABLES)
def test_every_field_has_a_row_with_its_facts(page: str, heading: str) -> None:
    found = rows(page, heading)
    for name, field, facts in TABLES[heading]:
        kind, default, bounds, moves, said = found.pop(name)
        assert said == field.description
        assert moves == ("" if facts.moves == "nothing" else facts.moves)
        assert kind
        assert (bounds != "") == any(
            bound is not None for bound in (facts.minimum, facts.above, facts.maximum, facts.below)
        )
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert yaml.safe_load(default) == field.default
            assert type(yaml.safe_load(default)) is type(field.default)
    assert found == {}


def test_no_table_is_missing(page: str) -> None:
    fields = page.partition("## Every field")[2].partition("## Further arguments")[0]
    assert re.findall(r"^### .*$", fields, re.M) == list(TABLES)


def test_some_rows_literally(page: str) -> None:
    common, of_lora = rows(page, "### Fields of every recipe"), rows(page, "### The block `lora`")
    assert common["adam_beta1"][:4] == ["number", "0.9", "at least 0, below 1", "weights"]
    assert common["learning_rate"][:4] == ["number", "2.0e-5", "at least 0", "weights"]
    assert common["lr_decay_rate"][2] == "above 0, at most 1"
    assert common["max_steps"][:2] == ["whole number, or null", "null"]
    assert common["held_out"][:4] == ["text", '`"0.1"`', "", "data"]
    assert common["lora"][:2] == ["block `lora`, or null", "null"]
    assert common["evaluations"][:2] == ["list of blocks, `evaluations[]`", "`[]`"]
    assert common["export"][0] == "`merged` `adapter` `both`"
    assert of_lora["target_modules"][:2] == ["list of texts", "`[all-linear]`"]
    assert rows(page, "### The supervised recipe")["packing"][:4] == ["true or false", "false", "", "data"]
    preference = rows(page, "### The preference recipe")
    assert preference["learning_rate"][:2] == ["number", "1.0e-6"]
    assert preference["loss_type"][:4] == ["list of texts", "`[sigmoid]`", "", "weights"]
    assert preference["loss_weights"][:2] == ["list of numbers, or null", "null"]
    reinforcement = rows(page, "### The reinforcement recipe")
    assert reinforcement["group_size"][:4] == ["whole number", "8", "at least 2", "weights"]
    assert reinforcement["environment"][:2] == ["block `environment`", "see below"]
    assert reinforcement["rewards"][:2] == ["list of blocks, `rewards[]`", "`[]`"]
    assert reinforcement["pass_at"][3] == ""
    assert rows(page, "### The distillation recipe")["mode"][0] == "`sequence` `logit` `on_policy`"


def test_every_key_of_a_file_has_a_row(page: str) -> None:
    assert set(
        rows(page, "These keys are fixed where the recipe is defined, and a launch can't override them:")
    ) == set(DEFINITION_KEYS)


def test_the_arguments_that_can_be_set_and_those_that_can_not(page: str) -> None:
    _, _, below = page.partition("## Further arguments of the trainer")
    listed, _, refused = below.partition("All others are refused by name")
    words = re.findall(r"`([a-z_]+)`", listed.partition("these can be set:")[2].partition("\n\nOf these")[0])
    assert set(words) - {"nll", "dft"} == set(PASSED_ON)
    table, *of_methods = refused.partition("\n## ")[0].split("And in a recipe of ")
    assert_refused(table, OWNED_FIELDS, OWNED)
    assert [text.split(":")[0] for text in of_methods] == [method.method for method in METHODS]
    for text in of_methods:
        module = METHOD_MODULES[text.split(":")[0]]
        assert_refused(text, module.OWNED_FIELDS, module.OWNED)


def assert_refused(table: str, fields: Mapping[str, str], owned: Mapping[str, str]) -> None:
    """Every name is in the table, with the field to write or the reason."""
    for name, field in fields.items():
        assert re.search(rf"^\|.*`{name}`.*\| write `{re.escape(field)}` \|$", table, re.M), name
    for name, reason in owned.items():
        assert re.search(rf"^\|.*`{name}`.*\| {re.escape(reason)} \|$", table, re.M), name


def test_every_field_of_the_original_has_a_row(page: str) -> None:
    found = rows(page, "## From the original")
    assert set(found) == set(ORIGINAL)
    assert {name for name, (here, *_) in found.items() if here == "not offered"} == NOT_OFFERED
    for name in NOT_OFFERED:
        assert len(found[name][1].split()) >= 3, f"{name} needs a reason"


def test_what_stands_for_a_field_of_the_original_exists(page: str) -> None:
    known = {*field_names(SupervisedRecipe), *DEFINITION_KEYS}
    known |= {path.replace(".0.", "[].") for path, _, _ in paths()}
    known |= {"trainer", "datasets", "blobs", "evaluator", "registry", "telemetry"}
    for name, (here, *_) in rows(page, "## From the original").items():
        for word in re.findall(r"`([^`]+)`", here):
            assert word in known, (name, word)


def test_every_link_within_the_page_leads_somewhere(page: str) -> None:
    headings = {
        re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", page, re.M)
    }
    links = re.findall(r"\]\(#([^)]+)\)", page)
    assert len(links) >= 8
    assert set(links) <= headings


# Examples.


def test_the_recipe_file_is_one(page: str, tmp_path: Path) -> None:
    text, extending = examples(page, "yaml", "recipe")
    (tmp_path / "support.yaml").write_text(text)
    (tmp_path / "support_small.yaml").write_text(extending)
    made, small = load_recipes(tmp_path, {"supervised": SupervisedRecipe})
    assert (small.epochs, small.learning_rate, small.definition.schedule) == (1, 2.0e-4, None)
    assert small.lora is not None
    assert (small.lora.rank, small.lora.alpha) == (4, 32)
    assert small.definition.promotion is not None
    assert (small.definition.promotion.metric, small.definition.promotion.minimum) == ("policy/contains", 0.8)
    assert check_values(made) == []
    assert (made.definition.name, made.held_out, made.learning_rate) == ("support", "0.05", 2.0e-4)
    assert Kitchen(recipes={"support": made}).definitions().resolve_job_def("support").name == "support"


def test_the_launches_are_valid_as_dagster_reads_them(page: str) -> None:
    texts = examples(page, "yaml", "launch")
    assert len(texts) == 2
    bound = recipe({"lora": {"alpha": 5}}, name="supervised")
    job = Kitchen(recipes={"supervised": bound}).definitions().resolve_job_def("supervised")
    for text in texts:
        run_config: dict[str, Any] = yaml.safe_load(text)
        assert dg.validate_run_config(job, run_config)
        seen = launch(bound, run_config["resources"]["supervised"]["config"])
        assert seen.epochs == 5
        assert check_values(seen) == []
    first = yaml.safe_load(texts[0])["resources"]["supervised"]["config"]
    assert launch(bound, first).lora.model_dump()["alpha"] == 5


def test_the_python_example_gives_the_same_overrides(page: str) -> None:
    (text,) = examples(page, "python", "")
    taken: dict[str, Any] = {}

    class Door:
        @staticmethod
        def run(target: str, config: dict[str, Any]) -> None:
            taken.update(config)
            assert target == "supervised"

    exec(text.replace("import kitchen_assets as kitchen", ""), {"kitchen": Door})
    launch_text = examples(page, "yaml", "launch")[0]
    assert taken == yaml.safe_load(launch_text)["resources"]["supervised"]["config"]
    assert bind(SupervisedRecipe, {**NAMED, **taken}, RecipeDefinition(name="a")).learning_rate == 2.0e-4


@pytest.mark.parametrize(
    ("written", "read"), [("2e-4", "2e-4"), ("2.0e-4", 2.0e-4)], ids=["as everyone writes it", "as YAML wants it"]
)
def test_what_is_said_of_numbers_is_so(written: str, read: Any) -> None:
    assert yaml.safe_load(written) == read
