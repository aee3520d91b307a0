"""Every command of the README is run, in order, in a copy of the project, as a newcomer would."""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.registry.store import StoreRegistry
from tests.docs.serving import started

pytestmark = pytest.mark.full

_SERVED_S = 300
ROOT = Path(__file__).parents[2]
VENV = Path(sys.executable).parents[1]
_BLOCK = re.compile(r"^```(?P<language>\w+)(?P<marks>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its marks (norun, serve, own, file=PATH), its text and its line."""

    language: str
    marks: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [
        Block(m["language"], m["marks"].strip(), m["text"], text[: m.start()].count("\n") + 1)
        for m in _BLOCK.finditer(text)
    ]


README = blocks(ROOT / "README.md")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files in a new folder, with this environment as its .venv."""
    folder = tmp_path_factory.mktemp("checkout")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    (folder / ".venv").symlink_to(VENV)
    (VENV / ".ready").touch()
    _own_model_and_rows(folder)
    return folder


def _own_model_and_rows(folder: Path) -> None:
    """What stands for the reader's own: path/to/model and path/to/rows.jsonl."""
    import json

    from kitchen_resources.embedded import rows, write_model

    write_model(folder / "path" / "to" / "model", seed=1)
    taken = [row for _, row in zip(range(200), rows("dates", seed=1), strict=False)]
    (folder / "path" / "to" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in taken))


def _environment(folder: Path) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("KITCHEN_", "DAGSTER_", "PYTEST_", "MAKE", "MFLAGS"))
    }
    return {
        **kept,
        "DAGSTER_HOME": str(folder / "dagster_home"),
        "PATH": f"{VENV / 'bin'}:{kept['PATH']}",
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
    }


def _run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        arguments, cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.heavy
def test_the_readme_runs_from_top_to_bottom(checkout: Path) -> None:
    ran = 0
    for block in README:
        if block.marks.startswith("file="):
            path = checkout / block.marks.removeprefix("file=")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.language == "bash" and block.marks == "serve":
            _serve(block.text.split(), checkout)
            ran += 1
        elif block.language == "bash" and block.marks != "norun":
            output = _run(["bash", "-euc", block.text], checkout)
            if "make demo" in block.text:
                assert "right answers on 250 rows it has not seen" in output
            if "-j reinforcement" in block.text:
                _require_that_they_learned(checkout)
            ran += 1
        elif block.language == "python":
            output = _run([sys.executable, "-c", block.text], checkout)
            ran += 1
    assert ran == 13
    assert (checkout / "my_model" / "model.safetensors").is_file()


def _require_that_they_learned(checkout: Path) -> None:
    """The built-in recipes of the other methods: before and after, on rows that they haven't seen."""
    registry = StoreRegistry(LocalBlobs(checkout / "dagster_home" / "kitchen_store"))

    def measured(recipe: str, metric: str) -> tuple[float, float, int]:
        version = registry.get(recipe, registry.alias(recipe, "candidate") or 0)
        before, after = version.base_metrics[f"held_out/{metric}"], version.metrics[f"held_out/{metric}"]
        assert before["n"] == after["n"]
        return before["value"], after["value"], after["n"]

    before, after, pairs = measured("preference", "accuracy")
    assert (before, pairs) == (0.0, 120)
    assert after > 0.9
    before, after, games = measured("reinforcement", "reward")
    assert before < 0.2
    assert after > 0.8
    assert games >= 100
    before, after, _ = measured("distillation", "teacher_kl")
    assert after <= before / 2
    before, after, _ = measured("distillation", "exact_match")
    assert after > before


def test_only_make_test_is_left_out() -> None:
    assert [block.text for block in README if block.marks == "norun"] == ["make test\n"]


def test_a_model_that_does_not_learn_fails_the_demo(checkout: Path) -> None:
    config = checkout / "no_learning.yaml"
    config.write_text("resources: {supervised: {config: {learning_rate: 0.0, epochs: 1}}}\n")
    environment = {**_environment(checkout), "DAGSTER_HOME": str(checkout / "other_home"), "CONFIG": str(config)}
    (checkout / "other_home").mkdir()
    shutil.copyfile(ROOT / "dagster_home" / "dagster.yaml", checkout / "other_home" / "dagster.yaml")
    done = subprocess.run(
        ["make", "demo"], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "It did not learn: 0.000 of 250 rows, and 0.8 of at least 200 was expected" in done.stdout


def _serve(command: list[str], folder: Path) -> None:
    """Start the UI, see that it serves the location, and stop it with all its processes."""
    with started(command, folder, _environment(folder)) as process:
        query = b'{"query": "{repositoriesOrError{... on RepositoryConnection{nodes{jobs{name}}}}}"}'
        request = urllib.request.Request(
            "http://127.0.0.1:3000/graphql", data=query, headers={"Content-Type": "application/json"}
        )
        # Two code locations are loaded, beside whole training runs of other tests.
        until = time.monotonic() + _SERVED_S
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    text = answer.read().decode()
                if "supervised_promote" in text:
                    return
            except OSError:
                pass
            assert process.poll() is None
            time.sleep(0.5)
        pytest.fail(f"the UI did not come up in {_SERVED_S} s")
