"""docs/*.md: every program and command of the pages is run, and every other block is what it says it is.

Marks of a block, behind its language:

    file=PATH       is written to PATH before the blocks below it are run
    serve           a server: started, asked whether it is there, and stopped
    norun REASON    isn't run, for that reason
    recipe, launch, config, instance    is checked as a recipe, a launch of one, run config, a dagster.yaml
"""

import importlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

import kitchen_assets as kitchen
from kitchen_assets.kitchen import BUILT_IN_RECIPES, built_in
from kitchen_assets.workflows import WORKFLOWS
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.recipes.files import load_recipe, load_recipes
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import check_values
from tests.contract import test_dataset_store
from tests.docs.serving import started
from tests.docs.test_readme import ROOT, VENV, Block, blocks
from tests.pages import DOCS

pytestmark = pytest.mark.full

HERE = "here"
PAGES: Mapping[str, str] = {
    "adapters.md": HERE,
    "api.md": "",
    "architecture.md": "",
    "backends.md": "tests/docs/test_backends.py::test_its_recipe_is_one_and_its_loss_is_a_loss",
    "concepts.md": HERE,
    "durability.md": HERE,
    "index.md": HERE,
    "methods.md": "tests/docs/test_methods.py::test_the_environment_of_the_page_works_in_a_pool",
    "migration.md": "tests/docs/test_migration.py::test_the_blocks_of_the_page_run_in_order",
    "operating.md": HERE,
    "recipes.md": "tests/unit/test_recipes_docs.py::test_the_python_example_gives_the_same_overrides",
    "s3.md": HERE,
    "security.md": HERE,
    "storage.md": HERE,
    "telemetry.md": "tests/docs/test_telemetry.py::test_the_programs_of_the_page_run",
    "workflows.md": "tests/docs/test_workflows.py::test_the_workflow_of_the_page_runs",
}
"""Each page, and the test that runs its programs and commands: `here`, or another one; "" where it has none."""

ELSEWHERE = {
    "backends.md": 2,
    "methods.md": 1,
    "migration.md": 7,
    "recipes.md": 1,
    "telemetry.md": 2,
    "workflows.md": 1,
}
"""How many programs the other tests run."""

SMALL = {"max_rows": 200, "epochs": 1}
"""What the recipe `supervised` was trained with, before any page is run."""

FINGERPRINT = "3f2a91c0"
"""First digits of a run's fingerprint, as pages write it; that run's are put in its place."""

METHODS: Mapping[str, type[Recipe]] = {name: workflow.recipe for name, workflow in WORKFLOWS.items()}
_START_S = 120


def pages() -> list[Path]:
    return sorted(DOCS.glob("*.md"))


def executed(block: Block) -> bool:
    """Whether a block is a program or a command, or a file of one."""
    return block.language in ("python", "bash")


def unexecuted(page: Path, by: str, elsewhere: int) -> list[str]:
    """What is wrong with a page's programs and commands, if one of them is run by no test.

    Args:
        page: The page.
        by: As in `PAGES`.
        elsewhere: How many of them another test runs.
    """
    found = [block for block in blocks(page) if executed(block)]
    left = [block for block in found if block.marks.partition(" ")[0] == "norun"]
    wrong = [f"{page.name}:{block.line} has no reason" for block in left if len(block.marks.split()) < 4]
    run = [block for block in found if block not in left]
    known = ("", "serve", "file")
    wrong += [f"{page.name}:{block.line}: {block.marks}" for block in run if block.marks.split("=")[0] not in known]
    if by != HERE:
        wrong += [f"{page.name}:{block.line} is run by nobody" for block in run[elsewhere:]]
    return wrong


def test_every_program_and_command_is_run_or_says_why_not() -> None:
    assert list(PAGES) == [page.name for page in pages()]
    assert set(ELSEWHERE) == {name for name, by in PAGES.items() if by not in ("", HERE)}
    for page in pages():
        by = PAGES[page.name]
        assert unexecuted(page, by, ELSEWHERE.get(page.name, 0)) == []
        if by not in ("", HERE):
            path, _, name = by.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), by
            ran = [block for block in blocks(page) if executed(block) and not block.marks.startswith("norun")]
            assert len(ran) == ELSEWHERE[page.name], page.name


@pytest.mark.parametrize(
    ("block", "by", "said"),
    [
        ("```python\n1 / 0\n```\n", "", "page.md:3 is run by nobody"),
        ("```bash\nfalse\n```\n", "tests/other.py::test", "page.md:3 is run by nobody"),
        ("```bash norun\nfalse\n```\n", HERE, "page.md:3 has no reason"),
        ("```python console\n1\n```\n", HERE, "page.md:3: console"),
    ],
)
def test_a_block_that_nobody_runs_is_found(tmp_path: Path, block: str, by: str, said: str) -> None:
    (tmp_path / "page.md").write_text(f"# A page\n\n{block}")
    assert unexecuted(tmp_path / "page.md", by, 0) == [said]


def test_a_fence_that_is_not_one_is_no_block() -> None:
    for page in pages():
        fences = [line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("```")]
        assert all(line.startswith("```") and "`" not in line[3:] for line in fences), page.name
        named = [line for line in fences if line != "```"]
        # Each is one that `blocks` finds, or has no language and is text.
        assert len(fences) % 2 == 0
        assert len(named) == len(blocks(page)), page.name


# Running them.


@dataclass(frozen=True)
class Kit:
    """What the pages share.

    Attributes:
        folder: Where it is.
        fingerprint: Of the run that the recipe `supervised` has had.
    """

    folder: Path
    fingerprint: str = ""

    @property
    def store(self) -> Path:
        """The store of all pages."""
        return self.folder / "dagster_home" / "kitchen_store"

    def environment(self) -> dict[str, str]:
        """A newcomer's shell with the environment of `make`."""
        ours = ("KITCHEN_", "DAGSTER_", "PYTEST_", "MAKE", "MFLAGS", "AWS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {
            **kept,
            "DAGSTER_HOME": str(self.folder / "dagster_home"),
            "KITCHEN_STORE": str(self.store),
            "PATH": f"{VENV / 'bin'}:{kept['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, arguments: list[str], folder: Path) -> str:
        """Run a program, which must end well; what it prints."""
        done = subprocess.run(
            arguments, cwd=folder, env=self.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    def folder_for(self, page: str) -> Path:
        """A new folder for a page, with what lies at the top of a checkout."""
        folder = self.folder / page.removesuffix(".md")
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__", "store"))
        shutil.copyfile(ROOT / "workspace.yaml", folder / "workspace.yaml")
        return folder


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    made = Kit(tmp_path_factory.mktemp("pages"))
    (made.folder / "dagster_home").mkdir()
    shutil.copyfile(ROOT / "dagster_home" / "dagster.yaml", made.folder / "dagster_home" / "dagster.yaml")
    program = f"import kitchen_assets as kitchen; kitchen.run('supervised', {SMALL})"
    made.run([sys.executable, "-c", program], made.folder)
    (fingerprint,) = CheckpointStore(LocalBlobs(made.store)).find("")
    return replace(made, fingerprint=fingerprint)


@pytest.mark.heavy
@pytest.mark.parametrize("page", [name for name, by in PAGES.items() if by == HERE])
def test_the_blocks_of_a_page_run_in_order(kit: Kit, page: str) -> None:
    folder = kit.folder_for(page)
    said = []
    for block in blocks(DOCS / page):
        text = block.text.replace(FINGERPRINT, kit.fingerprint[: len(FINGERPRINT)])
        if block.marks.startswith("file="):
            path = folder / block.marks.removeprefix("file=")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif not executed(block) or block.marks.startswith("norun"):
            continue
        elif block.marks == "serve":
            serve(text.split(), kit, folder)
        elif block.language == "bash":
            said.append(kit.run(["bash", "-euc", text + AFTER.get(page, "")], folder))
        else:
            said.append(kit.run([sys.executable, "-c", text], folder))
    if page in CHECKS:
        CHECKS[page](kit, folder, " ".join(" ".join(said).split()))


AFTER = {
    "s3.md": 'python -c "from kitchen_resources.blobs.resource import default_store, open_store\n'
    "assert open_store(default_store()).uri == 's3://bucket/prefix'\"",
}
"""What is run behind each command of a page, in its shell."""


def check_index(kit: Kit, folder: Path, said: str) -> None:
    assert (folder / "my_model" / "model.safetensors").is_file()
    assert "Started schedule first_schedule" in said


def check_adapters(kit: Kit, folder: Path, said: str) -> None:
    """The data set of the page passes the contract of its port."""
    with sqlite3.connect(folder / "tickets.db") as connection:
        rows = [(number, "shipping", f"Where is parcel {number}?", "On its way.") for number in range(100, 104)]
        connection.executemany("INSERT INTO tickets VALUES (?, ?, ?, ?)", rows)
    connection.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        # The reference of a database isn't a path: its files are looked for here.
        patch.chdir(folder)
        store = importlib.import_module("tickets").TicketDatasets
        case = test_dataset_store.Case(
            lambda: store(folder / "tickets.db"),
            "tickets:billing",
            "tickets:shipping",
            "file",
            missing="tickets:none",
        )
        contract = [value for name, value in vars(test_dataset_store).items() if name.startswith("test_")]
        asked = [test for test in contract if "case" in test.__annotations__]
        assert len(asked) == 7
        for test in asked:
            test(case)
        look = case.make().look
        assert look("tickets:billing") != look("tickets:shipping")
    sys.modules.pop("tickets")


def check_operating(kit: Kit, folder: Path, said: str) -> None:
    assert "Schedule: storage_cleanup_schedule [RUNNING]" in said
    assert "Sensor: resume_runs [RUNNING]" in said
    assert (folder / "backup" / "runs" / kit.fingerprint / "head.json").is_file()


def check_storage(kit: Kit, folder: Path, said: str) -> None:
    head = CheckpointStore(LocalBlobs(kit.store)).head(kit.fingerprint)
    assert head.end is not None
    assert [entry.payload for entry in head.entries()] == ["present"]
    assert f"{kit.fingerprint[:12]} supervised" in said


CHECKS: Mapping[str, Callable[[Kit, Path, str], None]] = {
    "adapters.md": check_adapters,
    "index.md": check_index,
    "operating.md": check_operating,
    "storage.md": check_storage,
}
"""What is to be true when a page's blocks have run and said what they said."""


# Servers.


def serve(command: list[str], kit: Kit, folder: Path) -> None:
    """Start a server of the page, see that it is what the page says, and stop it with all its processes."""
    port = free_port()
    if "-p" in command:
        # Other tests serve on the page's port.
        command[command.index("-p") + 1] = str(port)
    with started(command, folder, kit.environment()) as process:
        for _ in range(_START_S * 2):
            assert process.poll() is None
            if is_there(command, port, kit, folder):
                return
            time.sleep(0.5)
        pytest.fail(f"{command[0]} did not come up")


def is_there(command: list[str], port: int, kit: Kit, folder: Path) -> bool:
    if command[0] == "dagster-daemon":
        asked = subprocess.run(
            ["dagster-daemon", "liveness-check"], cwd=folder, env=kit.environment(), capture_output=True, check=False
        )
        return asked.returncode == 0
    try:
        answer = graphql(
            port,
            "{permissions{permission value} repositoriesOrError{... on RepositoryConnection{nodes{jobs{name}}}}}",
        )
    except OSError:
        return False
    assert "supervised_promote" in json.dumps(answer["repositoriesOrError"])
    values = {each["permission"]: each["value"] for each in answer["permissions"]}
    assert values["launch_pipeline_execution"] == ("--read-only" not in command)
    assert "--read-only" not in command or not any(values.values())
    return True


def graphql(port: int, query: str) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        data: dict[str, Any] = json.loads(answer.read())["data"]
    return data


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


# What isn't run.

BLOCKS = [(page.name, block) for page in pages() for block in blocks(page)]


def marked(language: str, mark: str) -> list[Any]:
    return [
        pytest.param(name, block, id=f"{name}:{block.line}")
        for name, block in BLOCKS
        if (block.language, block.marks) == (language, mark)
    ]


PARSERS: Mapping[str, Callable[[str], Any]] = {"yaml": yaml.safe_load, "json": json.loads, "toml": tomllib.loads}


@pytest.mark.parametrize("language", PARSERS)
def test_every_other_block_is_of_its_language(language: str) -> None:
    found = [(name, block) for name, block in BLOCKS if block.language == language]
    assert found
    for name, block in found:
        assert PARSERS[language](block.text), (name, block.line)
    assert {block.language for _, block in BLOCKS} == {*PARSERS, "python", "bash", "nginx", "ini"}
    for name, block in BLOCKS:
        assert block.text.count("{") == block.text.count("}"), (name, block.line)
    marks = {block.marks for _, block in BLOCKS if block.language == "yaml" and not block.marks.startswith("file=")}
    assert marks == {"", "recipe", "launch", "config", "instance"}


def recipes_until(name: str, line: int, folder: Path) -> dict[str, Recipe]:
    """The recipes of a page down to a line, under the file names that it gives them; they may extend each other."""
    text = (DOCS / name).read_text(encoding="utf-8").splitlines()
    made: dict[str, Recipe] = {}
    beside = load_recipes(BUILT_IN_RECIPES, METHODS)
    for page, block in BLOCKS:
        if page != name or (block.language, block.marks) != ("yaml", "recipe") or block.line > line:
            continue
        above = "\n".join(text[max(0, block.line - 3) : block.line])
        named = re.findall(r"`recipes/(\w+)\.yaml`", above)
        path = folder / f"{named[-1] if named else f'mine_{block.line}'}.yaml"
        path.write_text(block.text)
        recipe = load_recipe(path, METHODS, [*beside, *made.values()])
        made[recipe.definition.name] = recipe
    return made


@pytest.mark.parametrize(("name", "block"), marked("yaml", "recipe"))
def test_a_recipe_of_a_page_is_one(name: str, block: Block, tmp_path: Path) -> None:
    *_, made = recipes_until(name, block.line, tmp_path).values()
    assert check_values(made) == []
    known = {**built_in().recipes, made.definition.name: made}
    assert kitchen.Kitchen(known).definitions().resolve_job_def(made.definition.name)


@pytest.mark.parametrize(("name", "block"), [*marked("yaml", "launch"), *marked("yaml", "config")])
def test_run_config_of_a_page_is_valid_as_dagster_reads_it(name: str, block: Block) -> None:
    config: dict[str, Any] = yaml.safe_load(block.text)
    (named, *_) = [key for key in (*config["resources"], "supervised") if key in built_in().recipes]
    assert (named in config["resources"]) == (block.marks == "launch")
    assert dg.validate_run_config(built_in().definitions().resolve_job_def(named), config)


@pytest.mark.parametrize(("name", "block"), marked("yaml", "instance"))
def test_settings_of_an_instance_are_ones(name: str, block: Block, tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "dagster_home" / "dagster.yaml").read_text(encoding="utf-8"))
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({**settings, **yaml.safe_load(block.text)}))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.run_monitoring_max_runtime_seconds == 7 * 24 * 3600


# What pages say of the project.


def test_what_pages_name_is_there() -> None:
    named = 0
    for page in pages():
        for place in re.findall(r"`((?:tests|docs|benchmarks|examples|kitchen_\w+)/[\w./*-]*)`", page.read_text()):
            found = list(ROOT.glob(place)) if "*" in place else [ROOT / place]
            assert found, (page.name, place)
            assert all(path.exists() for path in found), (page.name, place)
            named += 1
    assert named > 60


def test_every_variable_of_the_environment_is_told() -> None:
    told = set(re.findall(r"^\| `(KITCHEN_\w+)` \|", (DOCS / "operating.md").read_text(encoding="utf-8"), re.M))
    sources = [path for folder in ("kitchen_resources", "kitchen_assets") for path in (ROOT / folder).rglob("*.py")]
    used = {name for path in sources for name in re.findall(r"\bKITCHEN_[A-Z_]+\b", path.read_text(encoding="utf-8"))}
    assert told == used


def test_every_sensor_and_schedule_is_told(tmp_path: Path) -> None:
    rows = (DOCS / "operating.md").read_text(encoding="utf-8").partition("## Schedules and sensors")[2]
    told = dict(re.findall(r"^\| `([^`]+)` \|.*\| (on|off) \|$", rows, re.M))
    (tmp_path / "mine.yaml").write_text(
        "extends: supervised\n"
        'schedule: {cron: "0 3 * * *"}\n'
        "new_data: {every_minutes: 10}\n"
        "promotion: {automatic: true}\n"
    )
    definitions = kitchen.Kitchen(tmp_path).definitions()
    made = [*(definitions.sensors or []), *(definitions.schedules or [])]
    states = {each.name: "on" if each.default_status.value == "RUNNING" else "off" for each in made}
    assert {name.replace("mine_", "<recipe>_"): state for name, state in states.items()} == told
