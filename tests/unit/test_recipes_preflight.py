"""Preflight: what it refuses and how it says so, in which order, and what it estimates."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from kitchen_resources import launch as launch_module
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.datasets.port import RawDataset
from kitchen_resources.datasets.sources import NoopDatasets, SourceDatasets
from kitchen_resources.errors import CapabilityError, ConfigError, DataError, DiskFull, KitchenError
from kitchen_resources.evaluation import scorers
from kitchen_resources.evaluation.local import LocalEvaluator
from kitchen_resources.evaluation.scorers import register_scorer
from kitchen_resources.formulas.scoring import Score
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.port import BaseModel, Capabilities, Resolution
from kitchen_resources.training.preflight import PreflightReport, preflight
from tests.engine import Engine


class Recorded(NoopTrainer):
    """The noop backend with other capabilities, that notes what it was asked."""

    def __init__(self, asked: list[str], problems: list[Problem] | None = None, **capabilities: Any) -> None:
        self.asked = asked
        self._problems = problems or []
        self._capabilities = capabilities

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), **self._capabilities)

    def check(self, recipe: Recipe) -> list[Problem]:
        self.asked.append("check")
        return self._problems

    def resolve(self, recipe: Recipe, base: BaseModel, models: Any = MappingProxyType({})) -> Resolution:
        self.asked.append("resolve")
        return replace(
            super().resolve(recipe, base, models), device="cuda:0", memory_bytes=5 * 2**30, state_bytes=3 * 2**20
        )


class RecordedDatasets(NoopDatasets):
    """The data sets of nowhere, that note what is opened."""

    def __init__(self, asked: list[str], missing: str = "") -> None:
        super().__init__(10)
        self._asked, self._missing = asked, missing

    def open(self, reference: str, *, split: str = "train") -> RawDataset:
        self._asked.append(f"open {reference}/{split}")
        if reference == self._missing:
            raise DataError("is missing", where=reference)
        return super().open(reference, split=split)


class SmallDisk(MemoryBlobs):
    """A store with little room."""

    def __init__(self, free: int) -> None:
        super().__init__()
        self._free = free

    def free_bytes(self) -> int:  # type: ignore[override]
        return self._free


@pytest.fixture(autouse=True)
def _no_other_scorers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scorers that other tests have registered are not known here."""
    monkeypatch.setattr(scorers, "_registered", {})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of backend, data sets and models, in order."""
    asked: list[str] = []
    simulated = launch_module.simulated_base

    def base(reference: str) -> BaseModel:
        asked.append("base")
        return simulated(reference)

    monkeypatch.setattr(launch_module, "simulated_base", base)
    return asked


def launch(
    asked: list[str], *, missing: str = "", problems: Any = None, fields: Any = None, **capabilities: Any
) -> Launch:
    engine = Engine(
        adapter=Recorded(asked, problems, **capabilities),
        datasets=RecordedDatasets(asked, missing),
        evaluator=LocalEvaluator(),
    )
    return engine.launch(**(fields or {}))


def refused(made: Launch, error: type[KitchenError]) -> str:
    with pytest.raises(KitchenError) as caught:
        preflight(made)
    assert type(caught.value) is error
    return str(caught.value)


# The order: what is cheap comes first.


def test_nothing_is_asked_or_read_when_a_value_is_wrong(asked: list[str]) -> None:
    said = refused(launch(asked, fields={"epochs": 0}), ConfigError)
    assert said.startswith(
        "recipe supervised: the recipe can't be trained as it is\n  epochs: must be at least 1, got 0"
    )
    assert asked == []


def test_nothing_is_read_when_the_backend_can_not_do_it(asked: list[str]) -> None:
    refused(launch(asked, methods=frozenset({"preference"})), CapabilityError)
    assert asked == []


def test_no_data_are_read_when_the_backend_refuses_an_argument(asked: list[str]) -> None:
    said = refused(launch(asked, problems=[("trainer_args.x", "is unknown", "nothing")]), ConfigError)
    assert said.endswith("\n  trainer_args.x: is unknown\n    write: nothing")
    assert asked == ["check"]


@pytest.mark.parametrize("missing", ["rows", "held", "asked"])
def test_no_model_is_fetched_when_data_are_missing(asked: list[str], missing: str) -> None:
    fields = {"held_out": "held", "evaluations": [{"name": "more", "dataset": "asked", "split": "test"}]}
    refused(launch(asked, missing=missing, fields=fields), DataError)
    everything = ["check", "open rows/train", "open held/train", "open asked/test"]
    assert asked == everything[: 2 + ["rows", "held", "asked"].index(missing)]


def test_the_whole_order(asked: list[str]) -> None:
    preflight(launch(asked, fields={"held_out": "0.1", "evaluations": [{"name": "own", "dataset": "held_out"}]}))
    assert asked == ["check", "open rows/train", "base", "resolve"]


# What the backend can't do.

INCAPABLE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "the method": (
        {"methods": frozenset({"preference", "distillation"})},
        {},
        "backend noop: doesn't train supervised\n  fix: it trains distillation, preference; choose another backend",
    ),
    "step checkpoints": (
        {"step_checkpoints": frozenset({"preference"})},
        {"checkpoint_steps": 5},
        "backend noop: can't resume supervised exactly from inside an epoch\n"
        "  fix: remove checkpoint_steps and checkpoint_minutes",
    ),
    "checkpoints by the clock": (
        {"step_checkpoints": frozenset()},
        {"checkpoint_minutes": 5.0},
        "backend noop: can't resume supervised exactly from inside an epoch\n"
        "  fix: remove checkpoint_steps and checkpoint_minutes",
    ),
    "a LoRA": ({"lora": False}, {"lora": {"rank": 4}}, "backend noop: doesn't train a LoRA\n  fix: lora: null"),
    "the whole model": ({"full": False}, {}, "backend noop: doesn't train the whole model\n  fix: lora: {rank: 16}"),
    "a quantized base": (
        {"quantization": frozenset({"none", "8bit"})},
        {"quantization": "4bit", "lora": {"rank": 4}},
        "backend noop: has no 4bit base\n  fix: quantization: none",
    ),
}


@pytest.mark.parametrize("case", INCAPABLE)
def test_what_the_backend_can_not_do(asked: list[str], case: str) -> None:
    capabilities, fields, said = INCAPABLE[case]
    assert refused(launch(asked, fields=fields, **capabilities), CapabilityError) == said
    assert isinstance(preflight(launch(asked, fields=fields)), PreflightReport)


# Scorers.

UNSCORED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown scorer": (
        {"scorer": "bleu"},
        "there is no scorer 'bleu'; one of contains, exact_match, judge, lm_eval, numeric, regex, token_f1, "
        "or register_scorer(…) yours",
    ),
    "an unknown option": (
        {"scorer": "contains", "scorer_args": {"tolerance": 1.0}},
        "contains has no option 'tolerance'; it has case_sensitive",
    ),
    "an option out of its bounds": (
        {"scorer": "token_f1", "scorer_args": {"threshold": 2.0}},
        "token_f1 can't take these options: 2.0 is not from 0 to 1",
    ),
    "an option of another type": (
        {"scorer": "numeric", "scorer_args": {"tolerance": "much"}},
        "numeric can't take these options: must be real number, not str",
    ),
    "a pattern that is none": (
        {"scorer": "regex", "scorer_args": {"pattern": ""}},
        "regex can't take these options: the pattern is empty: it is in every text",
    ),
}


@pytest.mark.parametrize("case", UNSCORED)
def test_a_scorer_that_can_not_score(asked: list[str], case: str) -> None:
    wrong, said = UNSCORED[case]
    fields = {"evaluations": [{"name": "one", "dataset": "a"}, {"name": "two", "dataset": "b", **wrong}]}
    assert refused(launch(asked, fields=fields), ConfigError) == (
        "recipe supervised: the recipe can't be trained as it is\n"
        f"  evaluations.1.scorer: {said}\n"
        "    write: a registered scorer, and its own scorer_args"
    )
    assert asked == []


@pytest.mark.parametrize(
    "scorer",
    [
        {"scorer": "numeric", "scorer_args": {"tolerance": 0.5}},
        {"scorer": "regex"},
        {"scorer": "regex", "scorer_args": {"pattern": "[0-9]+"}},
        {"scorer": "contains", "scorer_args": {"case_sensitive": False}},
        {"scorer": "own_scorer_of_a_test", "scorer_args": {"any": "thing"}},
    ],
    ids=str,
)
def test_a_scorer_that_can(asked: list[str], scorer: dict[str, Any]) -> None:
    register_scorer("own_scorer_of_a_test", _never_called)
    preflight(launch(asked, fields={"evaluations": [{"name": "one", "dataset": "a", **scorer}]}))


def _never_called(prediction: str, expected: str, **options: Any) -> Score:
    raise AssertionError("a scorer of one's own is not tried out")


# Data.


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write rows, or a text, to a file."""

    def write(rows: list[dict[str, Any]] | str, name: str = "rows.jsonl") -> str:
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


PAIRS = [{"prompt": "a", "completion": "b"}] * 3
QUESTIONS = [{"question": "a", "solution": "b"}] * 3


def about_data(fields: Mapping[str, Any]) -> str:
    """What is said of data, without the folder they lie in."""
    made = Engine(datasets=SourceDatasets(), evaluator=LocalEvaluator()).launch(**fields)
    said = refused(made, DataError)
    for value in fields.values():
        if isinstance(value, str) and "/" in value:
            said = said.replace(f"{Path(value).parent}/", "")
    return said


def test_a_missing_file(tmp_path: Path) -> None:
    said = about_data({"dataset": str(tmp_path / "nowhere.jsonl")})
    assert said.startswith("dataset 'nowhere.jsonl': there is no such file or folder\n  fix: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "rows.jsonl: is empty\n  fix: write at least one row to it"),
        ("\n\n \n", "dataset rows.jsonl: holds no rows\n  fix: write at least one row to it"),
        ("[]", "rows.jsonl:1: a row must be a JSON object, this one is list\n"),
        ('{"prompt": "a"', "rows.jsonl:1: line 1 is not valid JSON: "),
    ],
    ids=["empty", "blank", "no object", "no JSON"],
)
def test_a_file_without_a_row(write: Any, text: str, said: str) -> None:
    assert about_data({"dataset": write(text)}).startswith(said)


def test_columns_of_no_known_shape(write: Any) -> None:
    assert about_data({"dataset": write(QUESTIONS)}) == (
        "dataset rows.jsonl: its columns are question, solution, which is no known shape (messages; conversations; "
        "prompt + completion; prompt + response; instruction (+ input) + output; instruction (+ input) + response; "
        "input + output; text)\n"
        "  fix: columns: {prompt: question, completion: solution}"
    )


def test_a_name_of_a_column_that_is_not_there(write: Any) -> None:
    assert about_data({"dataset": write(QUESTIONS), "columns": {"prompt": "query", "completion": "solution"}}) == (
        "dataset rows.jsonl: `columns` names 'query' for 'prompt', and the data set has question, solution\n"
        "  fix: columns: {prompt: one of those}"
    )


def test_a_split_that_is_not_there(write: Any) -> None:
    said = about_data({"dataset": write(PAIRS), "split": "test"})
    assert said.startswith("rows.jsonl: is one file and has no split 'test'\n")


def test_held_out_rows_are_looked_at_too(write: Any) -> None:
    rows = write(PAIRS)
    blank, other = write("\n", "blank.jsonl"), write(QUESTIONS, "other.jsonl")
    assert about_data({"dataset": rows, "held_out": blank}).startswith("dataset blank.jsonl: holds no rows\n")
    assert about_data({"dataset": rows, "held_out": other}).startswith("dataset other.jsonl: its columns are ")


def test_rows_of_evaluations_are_looked_at_with_their_own_columns(write: Any) -> None:
    rows, other = write(PAIRS), write(QUESTIONS, "other.jsonl")
    evaluation: dict[str, Any] = {"name": "own", "dataset": other}
    said = about_data({"dataset": rows, "evaluations": [evaluation]})
    assert said.startswith("dataset other.jsonl: its columns are question, solution, ")
    evaluation["columns"] = {"prompt": "question", "completion": "solution"}
    made = Engine(datasets=SourceDatasets()).launch(dataset=rows, evaluations=[evaluation])
    assert isinstance(preflight(made), PreflightReport)


def test_what_is_wrong_with_a_row_is_left_to_the_row_report(write: Any) -> None:
    rows = write([{"messages": "none"}, {"messages": [{"role": "user", "content": "a"}]}])
    assert isinstance(preflight(Engine(datasets=SourceDatasets()).launch(dataset=rows)), PreflightReport)


def test_conversations_for_a_model_without_a_template(write: Any) -> None:
    chat = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    made = Engine(datasets=SourceDatasets()).launch(dataset=write(chat), chat_template="none")
    assert refused(made, ConfigError) == (
        "chat_template: the model has no chat template, and the data set holds conversations\n"
        "  fix: chat_template: chatml (or llama3, role_colon, or a path that ends in .jinja)"
    )
    pairs = Engine(datasets=SourceDatasets()).launch(dataset=write(PAIRS), chat_template="none")
    assert isinstance(preflight(pairs), PreflightReport)


# What is said of a launch that is accepted.


def test_a_checkpoint_that_does_not_fit_is_refused(asked: list[str]) -> None:
    needed = 3 * 3 * 2**20
    engine = Engine(blobs=SmallDisk(needed - 1), adapter=Recorded(asked), datasets=NoopDatasets(10))
    assert "9.0 MiB are free, and the next checkpoint needs 9.0 MiB (3 x 3.0: " in refused(engine.launch(), DiskFull)
    assert preflight(replace(engine, blobs=SmallDisk(needed)).launch()).free_bytes == needed


def test_the_report(asked: list[str]) -> None:
    engine = Engine(blobs=SmallDisk(7 * 2**30), adapter=Recorded(asked), datasets=NoopDatasets(10))
    report = preflight(engine.launch())
    assert report == PreflightReport("noop", "cuda:0", 5 * 2**30, 3 * 2**20, 7 * 2**30, ("simulated rows",))
    assert report.lines() == [
        "backend noop on cuda:0",
        "memory about 5.00 GiB at the peak (an estimate)",
        "disk about 3.0 MiB a checkpoint; 7.0 GiB free",
        "simulated rows",
    ]
    assert replace(report, free_bytes=None).lines()[2] == "disk about 3.0 MiB a checkpoint; unlimited free"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "org/llama-8b", "learning_rate": 1.0}, "over ten times what is usual for such a model"),
        ({"model": "org/llama-8b", "learning_rate": 2.0e-5}, ""),
        ({"model": "embedded:tiny", "learning_rate": 1.0}, ""),
    ],
)
def test_a_word_on_a_learning_rate_far_from_what_is_usual(fields: dict[str, Any], said: str) -> None:
    notes = preflight(Engine().launch(**fields)).notes
    assert [note for note in notes if "learning_rate" in note] == ([] if not said else [notes[-1]])
    assert said in notes[-1]
    if said:
        assert notes[-1].startswith("learning_rate 1 is over ten times")
