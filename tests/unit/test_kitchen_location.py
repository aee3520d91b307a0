"""A location in one call: a folder of recipes, adapters as objects, ports of one's own, and what is said of a mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import kitchen_assets as kitchen
from kitchen_assets.composition import StageResult, Workflow, stage
from kitchen_assets.context import StageContext
from kitchen_assets.kitchen import Kitchen
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.datasets.sources import NoopDatasets
from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.telemetry.dispatch import NoopTelemetry
from kitchen_resources.training.noop import NoopTrainer

RECIPE = "extends: supervised\nmodel: org/model\ndataset: rows\n"
NOOP = {"trainer": {"backend": {"noop": {}}}, "evaluator": {"evaluator": {"noop": {}}}}


class Directory:
    """A port of one's own."""

    def lookup(self, name: str) -> str:
        return f"{name} is in room 4"


class DirectoryResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The same as a resource."""

    suffix: str = "."

    def adapter(self) -> Directory:
        return Directory()


@stage(group="datasets")
def greeting(kitchen: StageContext) -> StageResult:
    """Look somebody up."""
    said = kitchen.port("directory").lookup("Ada") if kitchen.has_port("directory") else "nobody knows"
    kitchen.tag({"said": said})
    return StageResult(data_version="1")


def greeter(**ports: Any) -> Workflow:
    return Workflow(name="greeter", recipe=SupervisedRecipe, description="Greets.", stages=[greeting], **ports)


Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder of recipe files."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return tmp_path

    return write


def greet(location: Kitchen) -> str:
    """What the run of `hello` is tagged with."""
    with dg.DagsterInstance.ephemeral() as instance:
        job = location.definitions().resolve_job_def("hello")
        ports = {
            "trainer": {"backend": {"noop": {}}},
            "datasets": {"source": {"noop": {}}},
            "blobs": {"store": {"memory": {"name": "greetings"}}},
        }
        given = {"resources": {key: {"config": value} for key, value in ports.items()}}
        result = job.execute_in_process(run_config=given, instance=instance, raise_on_error=True)
        return str(instance.get_run_by_id(result.run_id).tags["said"])  # type: ignore[union-attr]


def test_a_folder_of_recipes_may_extend_the_built_in_ones(folder: Folder) -> None:
    location = Kitchen(folder(mine=RECIPE))
    assert kitchen.recipes(location) == ["mine"]
    assert kitchen.describe("mine", location)["fields"]["dataset"]["default"] == "rows"
    assert location.definitions().resolve_job_def("mine").name == "mine"


def test_adapters_are_given_as_objects(folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KITCHEN_STORE", str(tmp_path / "unused"))
    closed: list[str] = []

    class Trainer(NoopTrainer):
        def open(self, job: Any) -> Any:
            session = super().open(job)
            end = session.close
            session.close = lambda: (closed.append("session"), end())[1]  # type: ignore[method-assign]
            return session

    class Telemetry(NoopTelemetry):
        def close(self) -> None:
            closed.append("telemetry")

    location = Kitchen(
        folder(mine=RECIPE),
        {
            "trainer": Trainer(),
            "datasets": NoopDatasets(16),
            "blobs": MemoryBlobs(),
            "telemetry": Telemetry(),
        },
    )
    result = kitchen.run("mine", {"epochs": 2}, {"evaluator": NOOP["evaluator"]}, location=location)
    assert result.epochs == 2
    assert "session" in closed
    assert "telemetry" in closed
    assert not (tmp_path / "unused").exists()


def test_an_object_that_lacks_something_is_refused_by_what_it_lacks() -> None:
    class Half:
        def open(self, reference: str, *, split: str = "train") -> Any: ...

    with pytest.raises(ConfigError) as refused:
        Kitchen(resources={"datasets": Half()})
    assert str(refused.value).startswith("resources['datasets']: lacks look")
    assert "kitchen_resources.datasets.port.DatasetStore" in str(refused.value)
    with pytest.raises(ConfigError, match="is a class, NoopDatasets"):
        Kitchen(resources={"datasets": NoopDatasets})


def test_a_workflows_port_is_asked_for_by_its_stages(folder: Folder) -> None:
    recipes = folder(hello="workflow: greeter\nmodel: org/model\ndataset: rows\n")
    for port in (Directory(), DirectoryResource()):
        location = Kitchen(recipes, {"directory": port}, [greeter(required_ports=("directory",))])
        assert greet(location) == "Ada is in room 4"
    described = kitchen.describe("hello", location)
    assert described["required_ports"][-1] == "directory"
    optional = greeter(optional_ports=("directory",))
    assert greet(Kitchen(recipes, {"directory": Directory()}, [optional])) == "Ada is in room 4"
    assert greet(Kitchen(recipes, {}, [optional])) == "nobody knows"


def test_a_port_that_nobody_named_is_not_to_be_had(folder: Folder) -> None:
    @stage(group="datasets")
    def curious(kitchen: StageContext) -> StageResult:
        """Ask for what isn't there."""
        kitchen.port("directory")
        return StageResult(data_version="1")

    workflow = Workflow(name="curious", recipe=SupervisedRecipe, description="Asks.", stages=[curious])
    location = Kitchen(folder(hello="workflow: curious\nmodel: org/model\ndataset: rows\n"), {}, [workflow])
    with pytest.raises(dg.Failure, match="there is no port 'directory' here"):
        greet(location)


def test_a_port_that_a_recipe_needs_must_be_there(folder: Folder) -> None:
    path = folder(mine=f"{RECIPE}required_ports: [crm]\n")
    with pytest.raises(ConfigError) as refused:
        Kitchen(path).definitions()
    assert (
        str(refused.value)
        .replace(f"{path}/", "")
        .startswith("mine.yaml:1: needs the port 'crm', which the location doesn't have")
    )
    assert Kitchen(path, {"crm": Directory()}).definitions().resolve_job_def("mine")


def test_a_resource_that_nobody_names_is_refused(folder: Folder) -> None:
    with pytest.raises(
        ConfigError, match="no workflow and no recipe names the port 'trainr'; did you mean 'trainer'"
    ):
        Kitchen(folder(mine=RECIPE), {"trainr": NoopTrainer()}).definitions()


def test_names_must_not_meet(folder: Folder) -> None:
    path = folder(mine=f"{RECIPE}required_ports: [mine]\n")
    with pytest.raises(ConfigError, match="'mine' is the key of a resource"):
        Kitchen(path, {"mine": Directory()}).definitions()
    with pytest.raises(ConfigError, match="there is another workflow 'supervised'"):
        Kitchen(workflows=[kitchen.kitchen.WORKFLOWS["supervised"]])
    with pytest.raises(ConfigError, match="there is no such folder"):
        Kitchen(path / "recipes")


def test_a_port_of_ones_own_is_given_in_python_too(folder: Folder) -> None:
    location = Kitchen(folder(mine=f"{RECIPE}optional_ports: [crm]\n", other=RECIPE))
    resources = {**NOOP, "datasets": {"source": {"noop": {}}}, "blobs": MemoryBlobs()}
    assert kitchen.run("mine", resources={**resources, "crm": Directory()}, location=location).epochs
    with pytest.raises(ConfigError, match="there is no resource 'crm'"):
        kitchen.validate("other", resources={**resources, "crm": Directory()}, location=location)


class Signed(dg.ConfigurableIOManager):
    """Keeps what steps hand on, with a port of the location's."""

    directory: dg.ResourceDependency[DirectoryResource]

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        raise AssertionError(obj)

    def load_input(self, context: dg.InputContext) -> object:
        raise AssertionError


def test_resources_may_need_resources_in_every_job(folder: Folder) -> None:
    directory = DirectoryResource(suffix="!")
    location = Kitchen(
        folder(mine=f"{RECIPE}optional_ports: [directory]\n", other=RECIPE),
        {"directory": directory, "io_manager": Signed(directory=directory), **old_style()},
    )
    jobs = {job.name: job for job in location.definitions().get_repository_def().get_all_jobs()}
    for name in ("mine", "other", "other_promote", "other_evaluate_checkpoint", "storage_cleanup", "hub_push"):
        assert {"directory", "io_manager", "blobs"} <= jobs[name].resource_defs.keys()
        assert ("other" in jobs[name].resource_defs) == name.startswith("other")
        jobs[name].validate_resource_requirements_satisfied()


def old_style() -> dict[str, Any]:
    """A store whose function asks for another resource, as Dagster's first resources did."""

    @dg.resource(required_resource_keys={"directory"})
    def blobs(context: dg.InitResourceContext) -> MemoryBlobs:
        return MemoryBlobs()

    return {"blobs": blobs}


@pytest.mark.parametrize("name", kitchen.recipes())
def test_every_built_in_recipe_keeps_its_own_limits(name: str) -> None:
    """Of defective rows: on rows that it trains on, without a backend."""
    resources = {**kitchen.noop(), "datasets": {"source": {"sources": {}}}}
    config = {"epochs": 1, **({} if name == "reinforcement" else {"max_rows": 500, "model": "embedded:tiny"})}
    assert kitchen.run(name, config, resources).epochs == 1
