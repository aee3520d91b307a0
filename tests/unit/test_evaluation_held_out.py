"""What is measured of held-out rows by method: from a launch to tasks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from kitchen_resources.datasets.port import PreparedDataset, PreparedSplit
from kitchen_resources.environments.port import EnvironmentSpec
from kitchen_resources.errors import ConfigError
from kitchen_resources.evaluation.episodes import EpisodesTask
from kitchen_resources.evaluation.pairs import PairsTask
from kitchen_resources.evaluation.port import EvaluationTask, Task
from kitchen_resources.evaluation.tasks import evaluation_key, make_tasks
from kitchen_resources.evaluation.teacher import TeacherTask
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.rules import measured_metrics
from kitchen_resources.training.port import BaseModel
from tests.pretending import Pretence, write_sums

END, PAD = 258, 256

COLUMNS: Mapping[type[Recipe], tuple[str, ...]] = {
    PreferenceRecipe: ("prompt_ids", "chosen_ids", "rejected_ids", "example"),
    ReinforcementRecipe: ("prompt_ids", "problem"),
    DistillationRecipe: ("input_ids", "labels", "prompt_ids", "expected"),
}
OWN: Mapping[type[Recipe], dict[str, Any]] = {
    PreferenceRecipe: {"beta": 0.2},
    ReinforcementRecipe: {
        "environment": {"name": "arithmetic", "max_turns": 2, "workers": 3, "time_limit_s": 4.0, "max_failed": 0.3},
        "rewards": [{"name": "ended"}],
        "pass_at": 5,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 11,
        "max_tokens": 7,
    },
    DistillationRecipe: {"teacher": "embedded:tiny"},
}
SPLIT_DIGEST = "5" * 64
PAIR = {"chosen": [{"role": "assistant", "content": "2"}], "rejected": [{"role": "assistant", "content": "3"}]}


@pytest.fixture
def pretence(tmp_path: Path) -> Pretence:
    return Pretence(write_sums(tmp_path / "rows.jsonl"))


def launch_of(pretence: Pretence, kind: type[Recipe], *, held_out: bool = True, **fields: Any) -> Launch:
    """A launch of a method, with two prepared held-out rows or none."""
    named = {"model": "embedded:tiny", "dataset": str(pretence.rows), **OWN[kind], **fields}
    recipe = bind(kind, named, RecipeDefinition(name="sums"))
    launch = Launch(recipe, pretence.launch().ports, run_id="launch")
    blob = launch.content.put_file(write_rows(pretence.rows.with_suffix(".parquet"), COLUMNS[kind])).sha256
    split = PreparedSplit(blob=blob, rows=2, tokens=1, trained_tokens=1, digest=SPLIT_DIGEST)
    vars(launch)["prepared"] = PreparedDataset(
        key="k",
        train=split,
        held_out=split if held_out else None,
        packs=None,
        raw={},
        rendering={},
        pad_token_id=PAD,
        stop_token_ids=(END,),
        report="r",
    )
    return launch


def write_rows(path: Path, columns: tuple[str, ...]) -> Path:
    texts = {"problem": '{"question": "1+1="}', "expected": "2", "example": json.dumps(PAIR)}
    row = {"where": "rows:1", **{name: texts.get(name, [65, 66]) for name in columns}}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, row]), path)
    return path


def tasks_of(launch: Launch, tmp_path: Path) -> list[Task]:
    return make_tasks(launch, tmp_path / "rows")


def test_of_pairs(pretence: Pretence, tmp_path: Path) -> None:
    launch = launch_of(pretence, PreferenceRecipe)
    (task,) = tasks_of(launch, tmp_path)
    assert isinstance(task, PairsTask)
    assert task == PairsTask(
        name="held_out",
        digest=SPLIT_DIGEST,
        rows=task.rows,
        samples=None,
        beta=0.2,
        reference=launch.base,
        batch_size=64,
        pad_token_id=PAD,
        content=launch.content,
    )
    assert pyarrow.parquet.read_table(task.rows).num_rows == 2


def test_of_pairs_against_another_reference(pretence: Pretence, tmp_path: Path) -> None:
    launch = launch_of(pretence, PreferenceRecipe)
    other = BaseModel("other", tmp_path, "9" * 64, {})
    vars(launch)["models"] = {"reference": other}
    (task,) = tasks_of(launch, tmp_path)
    assert isinstance(task, PairsTask)
    assert task.reference == other


def test_of_episodes(pretence: Pretence, tmp_path: Path) -> None:
    launch = launch_of(pretence, ReinforcementRecipe, seed=6)
    (task,) = tasks_of(launch, tmp_path)
    assert isinstance(task, EpisodesTask)
    assert (task.name, task.digest, task.samples, task.episodes, task.seed) == ("held_out", SPLIT_DIGEST, None, 5, 6)
    # Its own reward alone is measured.
    assert task.environment == EnvironmentSpec("arithmetic")
    assert (task.max_turns, task.workers, task.time_limit_s, task.max_failed) == (2, 3, 4.0, 0.3)
    assert task.sampling.spec() == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 11,
        "max_tokens": 7,
        "stop_token_ids": [END],
        "seed": f"6/{SPLIT_DIGEST}",
    }
    assert (task.sampling.batch_size, task.sampling.pad_token_id) == (64, PAD)
    assert task.dialogue.decode([*b"hi", END]).text == "hi"


def test_of_a_student(pretence: Pretence, tmp_path: Path) -> None:
    launch = launch_of(pretence, DistillationRecipe)
    loss, divergence = tasks_of(launch, tmp_path)
    assert isinstance(loss, EvaluationTask)
    assert (loss.name, loss.digest, list(loss.questions)) == ("held_out", SPLIT_DIGEST, [])
    assert isinstance(divergence, TeacherTask)
    assert divergence == TeacherTask(
        name="held_out",
        digest=SPLIT_DIGEST,
        rows=divergence.rows,
        teacher=launch.models["teacher"],
        batch_size=64,
        pad_token_id=PAD,
    )
    assert loss.scored == divergence.rows


def test_of_a_student_whose_answers_are_asked_too(pretence: Pretence, tmp_path: Path) -> None:
    evaluation = {"name": "held_out", "samples": 1, "batch_size": 3}
    divergence, answers = tasks_of(launch_of(pretence, DistillationRecipe, evaluations=[evaluation]), tmp_path)
    assert isinstance(divergence, TeacherTask)
    assert isinstance(answers, EvaluationTask)
    assert (answers.scored, len(answers.questions)) == (divergence.rows, 1)
    assert (answers.batch_size, divergence.batch_size) == (3, 3)


@pytest.mark.parametrize("kind", COLUMNS)
def test_what_is_measured_is_announced(pretence: Pretence, tmp_path: Path, kind: type[Recipe]) -> None:
    """Rules name the metrics before anything is measured; their prefix is the tasks' name."""
    launch = launch_of(pretence, kind)
    assert {task.name for task in tasks_of(launch, tmp_path)} == {"held_out"}
    assert {metric.split("/")[0] for metric in measured_metrics(launch.recipe)} == {"held_out"}


@pytest.mark.parametrize("kind", COLUMNS)
def test_without_held_out_rows_nothing_is_asked(pretence: Pretence, tmp_path: Path, kind: type[Recipe]) -> None:
    assert tasks_of(launch_of(pretence, kind, held_out=False), tmp_path) == []


def test_the_evaluation_of_that_name_says_how_many_pairs_and_answers(pretence: Pretence, tmp_path: Path) -> None:
    evaluation = {"name": "held_out", "samples": 1, "batch_size": 3}
    pairs, answers = tasks_of(launch_of(pretence, PreferenceRecipe, evaluations=[evaluation]), tmp_path)
    assert isinstance(pairs, PairsTask)
    assert (pairs.samples, pairs.batch_size) == (1, 3)
    assert isinstance(answers, EvaluationTask)
    # What is compared with is the chosen answer; a pair has no loss of its own.
    assert [(question.prompt, question.expected) for question in answers.questions] == [("AB", "2")]
    assert (answers.scored, answers.batch_size) == (None, 3)


def test_a_chosen_answer_may_be_a_text(pretence: Pretence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAIR, "chosen", "two")
    launch = launch_of(pretence, PreferenceRecipe, evaluations=[{"name": "own", "dataset": "held_out"}])
    _, answers = tasks_of(launch, tmp_path)
    assert isinstance(answers, EvaluationTask)
    assert [question.expected for question in answers.questions] == ["two", "two"]


def test_the_evaluation_of_that_name_says_how_many_episodes(pretence: Pretence, tmp_path: Path) -> None:
    evaluation = {"name": "held_out", "samples": 1, "batch_size": 3}
    (task,) = tasks_of(launch_of(pretence, ReinforcementRecipe, evaluations=[evaluation]), tmp_path)
    assert isinstance(task, EpisodesTask)
    assert (task.samples, task.sampling.batch_size) == (1, 3)


def test_rows_without_answers_are_not_asked(pretence: Pretence, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        tasks_of(launch_of(pretence, ReinforcementRecipe, evaluations=[{"name": "sums"}]), tmp_path)
    assert str(refused.value) == (
        "evaluations.sums: the held-out rows of reinforcement have no answers to compare with\n"
        "  fix: name a data set with answers"
    )


@pytest.mark.parametrize("kind", COLUMNS)
def test_other_data_sets_are_asked_as_ever(pretence: Pretence, tmp_path: Path, kind: type[Recipe]) -> None:
    evaluation = {"name": "sums", "dataset": str(pretence.rows), "samples": 2}
    *_, task = tasks_of(launch_of(pretence, kind, evaluations=[evaluation]), tmp_path)
    assert isinstance(task, EvaluationTask)
    assert ([question.expected for question in task.questions], task.scored) == (["0", "2"], None)


@pytest.mark.parametrize(
    ("kind", "changed", "moves"),
    [
        (PreferenceRecipe, {"beta": 0.3}, True),
        (PreferenceRecipe, {"loss_type": ["ipo"]}, False),
        (ReinforcementRecipe, {"pass_at": 6}, True),
        (ReinforcementRecipe, {"temperature": 0.6}, True),
        (ReinforcementRecipe, {"rewards": []}, False),
        (ReinforcementRecipe, {"learning_rate": 1.0}, False),
        (DistillationRecipe, {"alpha": 0.1}, False),
        (DistillationRecipe, {"mode": "sequence"}, False),
    ],
    ids=str,
)
def test_only_what_is_asked_moves_the_key(
    pretence: Pretence, tmp_path: Path, kind: type[Recipe], changed: dict[str, Any], moves: bool
) -> None:
    one, other = (
        evaluation_key(tasks_of(launch_of(pretence, kind, **fields), tmp_path), "local") for fields in ({}, changed)
    )
    assert (one != other) == moves
