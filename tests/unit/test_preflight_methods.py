"""What preflight refuses of preference, reinforcement and distillation before any work, and what it leaves to the rows."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.embedded import write_model
from kitchen_resources.errors import CapabilityError, ConfigError, DataError, KitchenError
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.preflight import PreflightReport, preflight
from kitchen_resources.training.trl.backend import TrlTrainer
from tests.rail import OF_METHOD, ExportingTrainer, launch_of
from tests.unit.misbehaving_environments import obedient


def refused(launch: Launch, error: type[KitchenError] = ConfigError) -> str:
    """What preflight says; and that nothing was prepared, trained or noted."""
    with pytest.raises(KitchenError) as caught:
        preflight(launch)
    assert type(caught.value) is error
    assert [key for key in launch.ports.blobs.list("") if not key.startswith("blobs/")] == []
    return str(caught.value)


def other_vocabulary(folder: Path) -> str:
    """The embedded model with two of its tokens in each other's place."""
    write_model(folder, seed=3)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["x"], vocabulary["y"] = vocabulary["y"], vocabulary["x"]
    path.unlink()
    path.write_text(json.dumps(tokenizer))
    return str(folder)


def more_rows(folder: Path) -> str:
    """The embedded model with a vocabulary that is padded to a rounder number, of which nothing is said in tokens."""
    write_model(folder, seed=3)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**config, "vocab_size": 264}))
    return str(folder)


@pytest.mark.parametrize("method", OF_METHOD)
@pytest.mark.parametrize("backend", [NoopTrainer, ExportingTrainer])
def test_a_small_recipe_of_each_method_passes(method: type[Recipe], backend: type[NoopTrainer]) -> None:
    report = preflight(launch_of(method, backend))
    assert report.backend == backend().capabilities().backend


# Models beside the base.


@pytest.mark.parametrize(
    ("method", "field"),
    [(DistillationRecipe, "teacher"), (PreferenceRecipe, "reference_model"), (SupervisedRecipe, "model")],
)
def test_a_model_that_is_not_there_is_told_by_its_field(tmp_path: Path, method: type[Recipe], field: str) -> None:
    nowhere = str(tmp_path / "no" / "where")
    assert refused(launch_of(method, **{field: nowhere})) == (
        f"{field} {nowhere!r}: there is no such folder, and it isn't a hub id\n"
        f"  fix: {field}: a local folder, a hub id such as org/name, or embedded:tiny"
    )
    (tmp_path / "empty").mkdir()
    said = refused(launch_of(method, **{field: str(tmp_path / "empty")}))
    assert said.startswith(f"{field} {str(tmp_path / 'empty')!r}: has no config.json")
    assert refused(launch_of(method, **{field: "embedded:huge"})) == (
        f"{field}: there is no embedded model 'huge'\n  fix: {field}: one of embedded:tiny"
    )
    # A backend without weights asks for none.
    assert preflight(launch_of(method, NoopTrainer, **{field: nowhere})).backend == "noop"


@pytest.mark.parametrize("mode", ["logit", "on_policy"])
def test_a_teacher_of_another_vocabulary_is_refused_where_distributions_are_compared(
    tmp_path: Path, mode: str
) -> None:
    teacher = other_vocabulary(tmp_path / "teacher")
    assert refused(launch_of(DistillationRecipe, teacher=teacher, mode=mode)) == (
        f"recipe mine, teacher: the teacher {teacher} has another vocabulary than embedded:tiny, such as 'x'\n"
        "  fix: mode: sequence, which trains on the teacher's text"
    )
    padded = more_rows(tmp_path / "padded")
    assert refused(launch_of(DistillationRecipe, teacher=padded, mode=mode)) == (
        f"recipe mine, teacher: the teacher {padded} has another vocabulary than embedded:tiny, "
        "264 tokens against 259\n  fix: mode: sequence, which trains on the teacher's text"
    )
    assert preflight(launch_of(DistillationRecipe, teacher=teacher, mode="sequence")).notes == ()


def test_a_teacher_of_the_same_vocabulary_is_not(tmp_path: Path) -> None:
    write_model(tmp_path / "teacher", seed=3)
    for mode in ("logit", "on_policy", "sequence"):
        launch = launch_of(DistillationRecipe, teacher=str(tmp_path / "teacher"), mode=mode)
        assert preflight(launch).backend == "pretending"
        assert launch.models["teacher"].digest != launch.base.digest


def test_a_reference_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    reference = other_vocabulary(tmp_path / "reference")
    assert refused(launch_of(PreferenceRecipe, reference_model=reference)) == (
        f"recipe mine, reference: the reference {reference} has another vocabulary than embedded:tiny, such as 'x'\n"
        "  fix: name a reference of the same family"
    )
    # It scores tokens that both know, whatever rows are left over in its head.
    assert preflight(launch_of(PreferenceRecipe, reference_model=more_rows(tmp_path / "padded"))).notes == ()


# Environments, and what samples.


@pytest.mark.heavy
def test_an_engine_that_is_not_installed_is_refused_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without_vllm(name: str, *args: Any) -> Any:
        return None if name == "vllm" else found(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", without_vllm)
    launch = launch_of(ReinforcementRecipe, lambda: TrlTrainer(device="cpu"), generation={"engine": "vllm"})
    assert refused(launch, CapabilityError) == (
        "generation.engine: vllm: needs vllm, which isn't installed\n"
        '  fix: pip install "crucible-kitchen[vllm]", or engine: transformers'
    )


@pytest.mark.parametrize("backend", [NoopTrainer, ExportingTrainer])
def test_an_unknown_environment_is_refused_without_starting_a_worker(
    monkeypatch: pytest.MonkeyPatch, backend: type[NoopTrainer]
) -> None:
    from kitchen_resources.environments import process

    monkeypatch.setattr(process.WorkerProcess, "__init__", _never)
    said = refused(launch_of(ReinforcementRecipe, backend, environment={"name": "arithmetik"}))
    assert said.startswith(
        "recipe mine: the recipe can't be trained as it is\n"
        "  environment.name: there is no environment 'arithmetik'\n"
        "    write: arithmetic? Known are arithmetic, "
    )


def _never(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a worker was started")


def test_an_environment_without_problems_of_its_own_needs_a_data_set() -> None:
    obedient()
    launch = launch_of(ReinforcementRecipe, environment={"name": "obedient", "args": {"count": 0}, "workers": 1})
    assert refused(launch) == (
        "dataset: the environment obedient makes no problems itself\n  fix: dataset: a file, folder or hub id"
    )


def test_an_environment_that_fails_to_make_its_problems_is_told() -> None:
    obedient()
    environment = {"name": "obedient", "args": {"problem": "nan"}, "workers": 1}
    assert "obedient" in refused(launch_of(ReinforcementRecipe, environment=environment), DataError)


@pytest.mark.parametrize("backend", [NoopTrainer, ExportingTrainer])
def test_turns_that_no_token_ends_are_refused(backend: type[NoopTrainer]) -> None:
    assert refused(launch_of(ReinforcementRecipe, backend, chat_template="role_colon")) == (
        "chat_template: no token ends an assistant's turn, so that what is sampled has no end\n"
        "  fix: chat_template: chatml or llama3, or a model whose template ends turns by a token"
    )
    # Where nothing is sampled the end may be a text.
    assert isinstance(preflight(launch_of(PreferenceRecipe, backend, chat_template="role_colon")), PreflightReport)


def test_problems_that_the_environment_can_not_take_are_findings(tmp_path: Path) -> None:
    rows = [
        {"question": "1 + 1", "answer": 2},
        {"question": "", "answer": 3},
        {"question": "2 + 2", "answer": 4},
        {"question": "3 + 3"},
    ]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    launch = launch_of(ReinforcementRecipe, dataset=str(path))
    assert preflight(launch).backend == "pretending"
    prepared, report = launch.prepare()
    invalid = report.findings["invalid"]
    assert (prepared.train.rows, invalid.count, invalid.of) == (2, 2, 4)
    assert [(row, where) for row, where, _ in invalid.examples] == [(1, "problems.jsonl:2"), (3, "problems.jsonl:4")]
    reasons = [reason for _, _, reason in invalid.examples]
    assert all(reason.startswith("the environment can't take it: ") for reason in reasons)
    assert "the problem has no question" in reasons[0]
    assert "the problem has no answer" in reasons[1]
    assert set(report.exceeded(launch.recipe.row_limits)) == {"invalid"}


@pytest.mark.parametrize("method", OF_METHOD)
def test_a_data_set_that_is_not_there_is_told_first(tmp_path: Path, method: type[Recipe]) -> None:
    nowhere = str(tmp_path / "nowhere.jsonl")
    assert refused(launch_of(method, dataset=nowhere), DataError).startswith(
        f"dataset {nowhere!r}: there is no such file or folder"
    )


@pytest.mark.parametrize(
    ("method", "row", "said", "fix"),
    [
        (
            PreferenceRecipe,
            {"prompt": "a", "completion": "b"},
            "are no pairs of answers (",
            "columns: {prompt: prompt, chosen: …, rejected: …}; or, where rows have one answer to learn, "
            "workflow: supervised",
        ),
        (
            SupervisedRecipe,
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "are pairs of answers to compare, and not rows to learn",
            "workflow: preference; or, to learn the chosen answers alone, "
            "columns: {prompt: prompt, completion: chosen}",
        ),
        (
            DistillationRecipe,
            {"question": "a", "solution": "b"},
            "is no known shape (",
            "columns: {prompt: question, completion: solution}",
        ),
    ],
)
def test_rows_of_another_method_are_refused_by_their_columns(
    tmp_path: Path, method: type[Recipe], row: dict[str, str], said: str, fix: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    told, _, to_write = refused(launch_of(method, dataset=str(path)), DataError).partition("\n  fix: ")
    assert told.startswith(f"dataset {path}: its columns are {', '.join(sorted(row))}, which {said}")
    assert to_write == fix
