"""docs/backends.md: its tables are what the backends say, its run config is run config, its recipe is one."""

import sys
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
import yaml

from kitchen_assets.workflows import WORKFLOWS
from kitchen_resources.recipes.files import load_recipe
from kitchen_resources.training.own_code import find
from kitchen_resources.training.resource import TrainerResource
from tests.docs.test_readme import blocks
from tests.pages import generate

pytestmark = pytest.mark.full

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


page_of = generate.page_module("backends")
BLOCKS = blocks(PAGE)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == generate.render("backends")


def test_every_mark_of_works_names_a_test_that_is_there() -> None:
    for feature, backends in page_of.PROVEN.items():
        assert feature in page_of.FEATURES
        for backend, proof in backends.items():
            path, _, name = proof.partition("::")
            text = (PAGE.parents[1] / path).read_text(encoding="utf-8")
            assert f"def {name}(" in text, proof
            asked = page_of.FEATURES[feature]
            assert page_of.offered(page_of.BACKENDS[backend], asked), (feature, backend)


@pytest.mark.parametrize(
    "line", [block.line for block in BLOCKS if (block.language, block.marks) == ("yaml", "config")]
)
def test_a_run_config_of_the_page_is_one(line: int) -> None:
    (text,) = [block.text for block in BLOCKS if block.line == line]

    @dg.op(required_resource_keys={"trainer"})
    def nothing() -> None:
        pass

    @dg.job
    def anything() -> None:
        nothing()

    definitions = dg.Definitions(jobs=[anything], resources={"trainer": TrainerResource()})
    assert dg.validate_run_config(definitions.resolve_job_def("anything"), yaml.safe_load(text))


def test_its_recipe_is_one_and_its_loss_is_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, other = [block.text for block in BLOCKS if (block.language, block.marks) == ("yaml", "recipe")]
    (tmp_path / "mine.yaml").write_text(recipe)
    made = load_recipe(tmp_path / "mine.yaml", {name: workflow.recipe for name, workflow in WORKFLOWS.items()})
    assert made.definition.loss == "my_package.losses:focal"
    code, stages = [block.text for block in BLOCKS if block.language == "python"]
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "losses.py").write_text(code)
    (tmp_path / "my_package" / "stages.py").write_text(stages)
    monkeypatch.syspath_prepend(tmp_path)
    import torch

    from kitchen_resources.training.loops.frame import Batch
    from kitchen_resources.training.loops.offered import check_loops
    from kitchen_resources.training.port import AdamParams, Datum, ModelInput

    loss = find(made.definition.loss, "loss")
    row = torch.tensor([-0.1, -2.0], requires_grad=True)
    value, metrics = loss([Datum(ModelInput([1, 2]), {"target_tokens": [2, 3], "weights": [0.5, 0.5]})], [row])
    value.backward()
    assert row.grad is not None
    assert metrics == {}
    assert float(value.detach()) == pytest.approx(
        0.5 * (1 - 0.904837) ** 2 * 0.1 + 0.5 * (1 - 0.135335) ** 2 * 2.0, rel=1e-4
    )
    (tmp_path / "other.yaml").write_text(other)
    made = load_recipe(tmp_path / "other.yaml", {name: workflow.recipe for name, workflow in WORKFLOWS.items()})
    assert check_loops(made) == []
    step = find(made.definition.batch_stages["optim_step"], "batch_stages.optim_step")
    rates = []
    for number in (1, 10, 11, 12, 13):
        client = SimpleNamespace(optim_step=lambda adam: rates.append(adam.learning_rate))
        plan = SimpleNamespace(steps_per_epoch=11)
        step(
            SimpleNamespace(client=client, plan=plan, adam=lambda batch: AdamParams(learning_rate=1.0)),
            Batch(number, ()),
        )
    assert rates == [0.1, 0.1, 1.0, 0.1, 0.1]
    for name in ("my_package.losses", "my_package.stages", "my_package"):
        sys.modules.pop(name, None)
