"""Recipe files: what they mean, and that each defect is told with file and line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipe_cases import launch

from kitchen_assets.kitchen import BUILT_IN_RECIPES, Kitchen, built_in
from kitchen_assets.workflows import WORKFLOWS
from kitchen_resources.errors import ConfigError
from kitchen_resources.recipes.binding import unknown_field
from kitchen_resources.recipes.files import DEFINITION_KEYS, load_recipe, load_recipes, recipe_folder
from kitchen_resources.recipes.recipe import Recipe, Timetable
from kitchen_resources.recipes.rules import check_values, measured_metrics
from kitchen_resources.recipes.supervised import SupervisedRecipe

METHODS: dict[str, type[Recipe]] = {"supervised": SupervisedRecipe}
HEAD = "workflow: supervised\nmodel: m\ndataset: d\n"
_LIST = "correct or remove it; docs/recipes.md lists every field"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    """Load a recipe file of the given text."""

    def load(text: str | bytes, name: str = "mine.yaml") -> Recipe:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path, METHODS)

    return load


def refusal(load: Callable[..., Any], tmp_path: Path, text: str | bytes, name: str = "mine.yaml") -> str:
    """What is said of a file, without its folder."""
    with pytest.raises(ConfigError) as refused:
        load(text, name)
    return str(refused.value).replace(f"{tmp_path}/", "")


# What a file means.


def test_a_file_is_a_bound_recipe_with_a_definition(load: Callable[..., Any], tmp_path: Path) -> None:
    made = load(
        HEAD
        + """\
description: Dates, by *night*.
schedule: {cron: "0 3 * * *", timezone: Europe/Berlin}
owners: ["team:models"]
tags: {cost: high}
epochs: 5
lora: {rank: 8, dropout: 0.1}
evaluations:
  - name: dates
    dataset: held_out
    scorer: contains
"""
    )
    assert isinstance(made, SupervisedRecipe)
    assert (made.model, made.dataset, made.epochs, made.learning_rate) == ("m", "d", 5, 2.0e-5)
    assert made.lora is not None
    assert (made.lora.rank, made.lora.alpha, made.lora.dropout) == (8, 32, 0.1)
    assert [(e.name, e.scorer, e.max_tokens) for e in made.evaluations] == [("dates", "contains", 128)]
    definition = made.definition
    assert (definition.name, definition.description) == ("mine", "Dates, by *night*.")
    assert definition.schedule == Timetable("0 3 * * *", "Europe/Berlin")
    assert (definition.owners, definition.tags) == (("team:models",), {"cost": "high"})
    assert definition.source == f"{tmp_path}/mine.yaml:1"


def test_a_launch_keeps_what_the_file_says(load: Callable[..., Any]) -> None:
    seen = launch(load(HEAD + "learning_rate: 3e-4\nlora: {rank: 8, alpha: 4}\n"), {"lora": {"rank": 2}})
    assert (seen.learning_rate, seen.lora.rank, seen.lora.alpha, seen.model) == (3.0e-4, 2, 4, "m")


def test_the_name_is_that_of_the_file_unless_it_is_given(load: Callable[..., Any]) -> None:
    assert load(HEAD, "dates_2.yml").definition.name == "dates_2"
    assert load(HEAD + "name: other\n", "Anything At All.yaml").definition.name == "other"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("2e-4", 2.0e-4),
        ("2E-4", 2.0e-4),
        ("2.0e-4", 2.0e-4),
        (".5e-3", 5.0e-4),
        ("1e+0", 1.0),
        ("1e0", 1.0),
        ("1", 1.0),
        ("0.5", 0.5),
    ],
)
def test_a_number_is_read_as_everyone_writes_it(load: Callable[..., Any], written: str, value: float) -> None:
    assert repr(load(HEAD + f"learning_rate: {written}\n").learning_rate) == repr(value)
    assert load(HEAD + f"lora: {{rank: 4, dropout: {written}}}\n").lora.dropout == value


@pytest.mark.parametrize("written", ["0.25", '"0.25"', "'0.25'"])
def test_a_share_needs_no_quotes(load: Callable[..., Any], written: str) -> None:
    assert load(HEAD + f"held_out: {written}\n").held_out == "0.25"


def test_a_date_is_text(load: Callable[..., Any]) -> None:
    assert load("workflow: supervised\nmodel: 2024-13-45\ndataset: 2024-01-01\n").dataset == "2024-01-01"


def test_null_is_a_value(load: Callable[..., Any]) -> None:
    made = load(HEAD + "lora: null\nmax_steps: ~\nchat_template:\n")
    assert (made.lora, made.max_steps, made.chat_template) == (None, None, None)


def test_an_anchor_shares_settings_and_a_merge_may_replace_some(load: Callable[..., Any]) -> None:
    made = load(
        HEAD
        + """\
evaluations:
  - &first {name: one, dataset: a.jsonl, samples: 5}
  - {<<: *first, name: two}
"""
    )
    assert [(e.name, e.dataset, e.samples) for e in made.evaluations] == [
        ("one", "a.jsonl", 5),
        ("two", "a.jsonl", 5),
    ]


def test_a_byte_order_mark_does_no_harm(load: Callable[..., Any]) -> None:
    assert load(b"\xef\xbb\xbf" + HEAD.encode()).model == "m"


# Defects: what is said, with file and line.

REFUSED: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "mine.yaml:1: a recipe is a mapping of fields\n  fix: workflow: supervised"),
    "a list": ("- a\n", "mine.yaml:1: a recipe is a mapping of fields\n  fix: workflow: supervised"),
    "no workflow": (
        "model: m\n",
        "mine.yaml:1, workflow: no `workflow` is named\n  fix: workflow: one of supervised",
    ),
    "an unknown workflow": (
        "model: m\nworkflow: sft\n",
        "mine.yaml:2, workflow: there is no workflow 'sft'\n  fix: workflow: one of supervised",
    ),
    "a workflow that is no text": ("model: m\nworkflow: [a]\n", "mine.yaml:2, workflow: there is no workflow ['a']\n"),
    "an unknown field": (
        HEAD + "\nlearnig_rate: 1.0\n",
        f"mine.yaml:5, learnig_rate: unknown field 'learnig_rate'; did you mean 'learning_rate'?\n  fix: {_LIST}",
    ),
    "an unknown definition key": (
        HEAD + "shedule: x\n",
        f"mine.yaml:4, shedule: unknown field 'shedule'; did you mean 'schedule'?\n  fix: {_LIST}",
    ),
    "a name of the class that is no field": (HEAD + "method: x\n", "mine.yaml:4, method: unknown field 'method'\n"),
    "an unknown field of a block": (
        HEAD + "lora:\n  rank: 2\n  alfa: 3\n",
        f"mine.yaml:6, lora.alfa: unknown field 'alfa'; did you mean 'alpha'?\n  fix: {_LIST}",
    ),
    "an unknown field in a list": (
        HEAD + "evaluations:\n  - name: a\n  - name: b\n    sample: 3\n",
        f"mine.yaml:7, evaluations.1.sample: unknown field 'sample'; did you mean 'samples'?\n  fix: {_LIST}",
    ),
    "a wrong type": (
        HEAD + "epochs: three\n",
        "mine.yaml:4, epochs: Input should be a valid integer, got 'three'\n"
        "  fix: write it as a number, without quotes: 3, or 2.0e-4",
    ),
    "a wrong type in a list": (
        HEAD + "evaluations:\n  - name: a\n  - name: b\n    samples: x\n",
        "mine.yaml:7, evaluations.1.samples: Input should be a valid integer, got 'x'\n",
    ),
    "an item that is no block": (
        HEAD + "evaluations:\n  - name: a\n  - b\n",
        "mine.yaml:6, evaluations.1: must be a block of fields, got 'b'\n",
    ),
    "a wrong item of a list": (
        HEAD + "lora:\n  target_modules:\n    - q\n    - 3\n",
        "mine.yaml:7, lora.target_modules.1: Input should be a valid string, got 3\n",
    ),
    "digits for a fingerprint": (
        HEAD + "continue_from: 12e4\n",
        "mine.yaml:4, continue_from: Input should be a valid string, got 120000.0\n"
        "  fix: write it in quotes, so that YAML reads it as text",
    ),
    "a switch where a word belongs": (HEAD + "optimizer: off\n", "mine.yaml:4, optimizer: Input should be 'adamw', "),
    "null for text": (
        "workflow: supervised\nmodel:\n",
        "mine.yaml:2, model: Input should be a valid string, got None\n",
    ),
    "a key twice": (
        HEAD + "epochs: 1\nseed: 2\nepochs: 3\n",
        "mine.yaml:6: 'epochs' is given twice, first in line 4\n  fix: remove one of them",
    ),
    "a key of a block twice": (
        HEAD + "lora:\n  rank: 1\n  rank: 2\n",
        "mine.yaml:6: 'lora.rank' is given twice, first in line 5\n  fix: remove one of them",
    ),
    "a key in a list twice": (
        HEAD + "evaluations:\n  - name: a\n    name: b\n",
        "mine.yaml:6: 'evaluations.0.name' is given twice, first in line 5\n  fix: remove one of them",
    ),
    "a key that YAML reads as a switch": (
        HEAD + "on: 3\n",
        "mine.yaml:4: 'on' is read as something else than text\n  fix: write the key in quotes",
    ),
    "a key that is a number": (HEAD + "columns:\n  3: a\n", "mine.yaml:5: '3' is read as something else than text\n"),
    "a value that contains itself": (
        HEAD + "trainer_args: &a {b: [*a]}\n",
        "mine.yaml:4: 'trainer_args.b.0' contains itself\n  fix: remove the alias (*)",
    ),
    "a tab": (
        HEAD + "lora:\n\trank: 3\n",
        "mine.yaml:5: not valid YAML: found character '\\t' that cannot start any token\n"
        "  fix: correct the indentation or quoting",
    ),
    "an open quote": (HEAD + "description: 'a\n", "mine.yaml:5: not valid YAML: found unexpected end of stream\n"),
    "two documents": (HEAD + "---\n" + HEAD, "mine.yaml:4: not valid YAML: but found another document\n"),
    "a control character": (
        HEAD.encode() + b"description: \x00\n",
        "mine.yaml:1: not valid YAML: unacceptable character #x0000: special characters are not allowed\n",
    ),
    "a number that is none": (HEAD + "seed: !!int x\n", "mine.yaml:1: not valid YAML: "),
    "not UTF-8": (
        "description: grün\n".encode("latin-1"),
        "mine.yaml: can't be read: 'utf-8' codec can't decode byte 0xfc in position 15: invalid start byte\n"
        "  fix: save it as UTF-8 text",
    ),
    "a description that is no text": (
        HEAD + "description: [a]\n",
        "mine.yaml:4, description: must be text, got ['a']\n  fix: description: \"…\"",
    ),
    "a base that is no text": (HEAD + "base_from: 3\n", "mine.yaml:4, base_from: must be text, got 3\n"),
    "owners that are no list": (HEAD + "owners: team:x\n", "mine.yaml:4, owners: must be a list of texts, got 'team:x'\n"),
    "an owner that is none": (
        HEAD + "owners: [bob]\n",
        "mine.yaml:4, owners: ['bob'] has an owner that is neither a team nor a mail address\n"
        '  fix: owners: ["team:models"], or mail addresses',
    ),
    "tags that are no text": (HEAD + "tags: {a: 1}\n", "mine.yaml:4, tags: must map texts to texts, got {'a': 1}\n"),
    "a schedule that is no block": (
        HEAD + "schedule: daily\n",
        "mine.yaml:4, schedule: 'daily' is not a schedule\n"
        '  fix: schedule: {cron: "0 3 * * *", timezone: Europe/Berlin}',
    ),
    "a schedule with another key": (
        HEAD + 'schedule: {cron: "0 3 * * *", zone: UTC}\n',
        "mine.yaml:4, schedule: {'cron': '0 3 * * *', 'zone': 'UTC'} is not a schedule\n",
    ),
    "no cron": (
        HEAD + 'schedule: {cron: "61 3 * * *"}\n',
        "mine.yaml:4, schedule: cron '61 3 * * *' in timezone 'UTC' is not a schedule\n",
    ),
    "no such timezone": (
        HEAD + 'schedule: {cron: "0 3 * * *", timezone: Mars/Olympus}\n',
        "mine.yaml:4, schedule: cron '0 3 * * *' in timezone 'Mars/Olympus' is not a schedule\n",
    ),
    "a reserved name": (
        HEAD + "name: trainer\n",
        "mine.yaml:4, name: 'trainer' is the key of a resource\n  fix: name: trainer_recipe",
    ),
    "a name that is none": (HEAD + "name: 3\n", "mine.yaml:4, name: '3' can't be a recipe's name: "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_defect_is_told_with_file_and_line(load: Callable[..., Any], tmp_path: Path, case: str) -> None:
    text, said = REFUSED[case]
    assert refusal(load, tmp_path, text).startswith(said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My Recipe-2.yaml", "My Recipe-2.yaml:1, name: 'My Recipe-2' can't be a recipe's name: "),
        ("registry.yaml", "registry.yaml:1, name: 'registry' is the key of a resource\n"),
        ("class.yaml", "class.yaml:1, name: 'class' is a keyword of Python\n"),
    ],
)
def test_the_name_of_a_file_is_checked_too(load: Callable[..., Any], tmp_path: Path, name: str, said: str) -> None:
    assert refusal(load, tmp_path, HEAD, name).startswith(said)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [{made}]",
        "!!python/object/new:os.mkdir {{args: [{made}]}}",
        "!!python/object/apply:subprocess.check_call [[mkdir, {made}]]",
    ],
)
def test_yaml_that_would_run_code_is_refused_and_runs_nothing(
    load: Callable[..., Any], tmp_path: Path, value: str
) -> None:
    made = tmp_path / "made"
    text = HEAD.replace("model: m", f"model: {value.format(made=made)}")
    said = refusal(load, tmp_path, text)
    assert said.startswith("mine.yaml:2: not valid YAML: could not determine a constructor for the tag")
    assert not made.exists()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"mine\.yaml: can't be read: .*Is a directory"):
        load_recipes(tmp_path, METHODS)


# Folders of files.


def test_a_folder_is_read_by_file_name_and_only_its_yaml(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", "c.txt", "d.yaml.bak"):
        (tmp_path / name).write_text(HEAD)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "e.yaml").write_text(HEAD)
    assert [made.definition.name for made in load_recipes(tmp_path, METHODS)] == ["a", "b"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(HEAD)
    (tmp_path / "b.yaml").write_text(HEAD + "name: a\n")
    with pytest.raises(ConfigError) as refused:
        load_recipes(tmp_path, METHODS)
    assert str(refused.value) == (
        f"{tmp_path}/b.yaml:1: recipe 'a' is also defined in {tmp_path}/a.yaml:1\n"
        "  fix: rename one of the two (`name: …`)"
    )


def test_a_recipe_can_not_take_the_name_of_a_built_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "supervised.yaml").write_text(HEAD)
    monkeypatch.setenv("KITCHEN_RECIPES", str(tmp_path))
    with pytest.raises(ConfigError) as refused:
        built_in()
    assert str(refused.value).startswith(
        f"{tmp_path}/supervised.yaml:1: recipe 'supervised' is also defined in {BUILT_IN_RECIPES}/supervised.yaml:1"
    )


def test_the_folder_is_named_or_beside_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KITCHEN_RECIPES", raising=False)
    assert recipe_folder() is None
    (tmp_path / "recipes").mkdir()
    assert recipe_folder() == Path("recipes")
    (tmp_path / "named").mkdir()
    monkeypatch.setenv("KITCHEN_RECIPES", str(tmp_path / "named"))
    assert recipe_folder() == tmp_path / "named"


def test_a_named_folder_that_is_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITCHEN_RECIPES", "nowhere")
    with pytest.raises(ConfigError) as refused:
        recipe_folder()
    assert str(refused.value) == "KITCHEN_RECIPES: 'nowhere' is not a folder\n  fix: mkdir -p nowhere, or unset it"


def test_a_file_has_its_own_job_promotion_and_schedule(load: Callable[..., Any]) -> None:
    made = load(HEAD + 'description: By night.\nschedule: {cron: "0 3 * * *", timezone: Europe/Berlin}\n')
    definitions = Kitchen(recipes={"mine": made}).definitions()
    assert definitions.resolve_job_def("mine").description == "By night."
    assert definitions.resolve_job_def("mine_promote").name == "mine_promote"
    schedule = definitions.resolve_schedule_def("mine_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * *", "Europe/Berlin")
    assert schedule.default_status.value == "STOPPED"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("3", "promotion: 3 is not a rule"),
        ("{metrics: held_out/loss}", "promotion.metrics: unknown field 'metrics'; did you mean 'metric'?"),
        ("{better_than: candidate}", "promotion.better_than: "),
        ("{minimum: much}", "promotion.minimum: "),
        ("{minimum: .nan}", "promotion.minimum: must be a finite number"),
        ("{minimum: .inf}", "promotion.minimum: must be a finite number"),
        ("{metric: held_out/los}", "promotion.metric: 'held_out/los' is not measured by this recipe"),
        ("{metric: ''}", "promotion.metric: '' is not measured by this recipe"),
    ],
)
def test_a_rule_for_promotion_that_could_never_decide_is_refused(
    load: Callable[..., Any], rule: str, said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(HEAD + f"promotion: {rule}\n")
    assert said in str(refused.value)
    assert "\n  fix: " in str(refused.value)


# The built-in recipes, and the words of the messages.


@pytest.mark.parametrize("path", sorted(BUILT_IN_RECIPES.iterdir()), ids=lambda path: path.stem)
def test_a_built_in_recipe_is_one_that_can_be_trained(path: Path) -> None:
    made = load_recipe(path, {name: workflow.recipe for name, workflow in WORKFLOWS.items()})
    # Each method has one recipe, under its own name.
    assert made.definition.name == made.method == path.stem
    assert made.definition.description
    assert check_values(made) == []
    assert made.promotion.metric in measured_metrics(made)
    assert (
        made.promotion.metric
        == {
            "supervised": "held_out/loss",
            "preference": "held_out/accuracy",
            "reinforcement": "held_out/reward",
            "distillation": "held_out/loss",
        }[path.stem]
    )
    # Without a network: what isn't made here comes from another of them.
    assert made.model == "embedded:tiny" or made.definition.base_from == "supervised"
    assert made.dataset.partition(":")[0] in ("embedded", "environment")


def test_the_built_in_recipes_that_build_on_another_one_train_it_first() -> None:
    found = built_in().recipes
    chained = {name: made.definition for name, made in found.items() if made.method in ("preference", "distillation")}
    assert {name: (made.base_from, made.teacher_from) for name, made in chained.items()} == {
        "preference": ("supervised", ""),
        "distillation": ("", "supervised"),
    }
    assert {made.upstream_missing for made in chained.values()} == {"train"}


def test_no_field_has_the_name_of_a_definition_key() -> None:
    assert set(DEFINITION_KEYS) & set(SupervisedRecipe.model_fields) == set()


def test_a_suggestion_is_made_only_for_what_is_close() -> None:
    assert unknown_field("epoch", ["epochs", "model"]) == "unknown field 'epoch'; did you mean 'epochs'?"
    assert unknown_field("xyz", ["epochs", "model"]) == "unknown field 'xyz'"
    assert unknown_field(3, ["epochs"]) == "unknown field 3"
