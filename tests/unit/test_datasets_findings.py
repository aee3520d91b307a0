"""What the row report finds in a data set: with row ids, places and reasons; and what is trained all the same."""

from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.datasets.report import RowReport
from kitchen_resources.errors import DataError
from kitchen_resources.recipes.blocks import RowLimits
from tests.unit.dataset_rows import chat, write_jsonl
from tests.unit.preparing import END, Pantry, chat_ids, recipe_of

USER_ONLY = {"messages": [{"role": "user", "content": "Q"}]}
FORGED = chat("<|im_end|>", "A")
SAID_FORGED = (
    "message 0 (user) holds the text '<|im_end|>', which only the chat template may write: it could forge a turn"
)


@pytest.fixture
def pantry() -> Pantry:
    return Pantry()


def found(report: RowReport) -> dict[str, list[tuple[int, str, str]]]:
    """The findings that there are; each counts the rows it shows."""
    for finding in report.findings.values():
        assert finding.count == len(finding.examples)
        assert finding.of == report.rows_read or finding.kind == "overlap"
    return {kind: finding.examples for kind, finding in report.findings.items() if finding.count}


def ids(pantry: Pantry, split: Any) -> list[int]:
    return [row["row_id"] for row in pantry.rows(split)]


# Invalid


def test_invalid_rows_are_named_and_the_others_trained(pantry: Pantry, tmp_path: Path) -> None:
    rows: list[Any] = [
        chat("Q", "A"),
        {"messages": [{"role": "bot", "content": "x"}]},
        {"messages": "hello"},
        FORGED,
        chat("R", "B"),
        {"messages": [*chat("Q", "A")["messages"], {"role": "user", "content": "thanks"}]},
        {"prompt": "Q", "completion": "A"},
    ]
    prepared, report = pantry.prepare(recipe_of(write_jsonl(tmp_path / "rows.jsonl", rows)))
    # The schema speaks first, then what is rendered.
    assert found(report) == {
        "invalid": [
            (1, "rows.jsonl:2", "message 0: its role is none of system, developer, user, assistant, tool ('bot')"),
            (2, "rows.jsonl:3", "messages must be a list of at least one message, this is str 'hello'"),
            (6, "rows.jsonl:7", "messages must be a list of at least one message, this is missing"),
            (3, "rows.jsonl:4", SAID_FORGED),
            (
                5,
                "rows.jsonl:6",
                "the last message is the user's, and train_on: last_assistant_message needs the assistant's",
            ),
        ]
    }
    assert ids(pantry, prepared.train) == [0, 4]
    assert (report.rows_read, report.rows_trained, prepared.train.rows) == (7, 2, 2)
    with pytest.raises(DataError, match=r"^d: invalid: 5 of 7 rows \(71.43%, limit 0.00%\)"):
        report.require(RowLimits(), "d")
    report.require(RowLimits(invalid=0.72), "d")


def test_a_held_out_row_whose_question_can_not_be_asked_is_a_finding(pantry: Pantry, tmp_path: Path) -> None:
    template = tmp_path / "picky.jinja"
    template.write_text(
        "{% if add_generation_prompt and messages and messages[0]['content'] == 'rude' %}{{ raise_exception('no') }}{% endif %}"
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rude = write_jsonl(tmp_path / "held.jsonl", [chat("rude", "A"), chat("kind", "A")])
    path = write_jsonl(tmp_path / "rows.jsonl", [chat("Q", "A")])
    recipe = recipe_of(path, held_out=str(rude), chat_template=str(template), train_on="all_tokens")
    prepared, report = pantry.prepare(recipe)
    assert found(report) == {
        "invalid": [(0, "held_out held.jsonl:1", "the chat template refuses the conversation: no")]
    }
    assert ids(pantry, prepared.held_out) == [1]
    trained, _ = pantry.prepare(recipe_of(rude, chat_template=str(template), train_on="all_tokens"))
    assert ids(pantry, trained.train) == [0, 1]


# Untrained


@pytest.mark.parametrize(
    ("train_on", "row"),
    [
        ("all_assistant_messages", USER_ONLY),
        ("all_user_and_system_messages", {"messages": [{"role": "assistant", "content": "A"}]}),
        ("customized", {"messages": [{"role": "user", "content": "Q", "weight": 0}]}),
    ],
)
def test_a_row_of_which_nothing_is_picked_is_untrained(
    pantry: Pantry, tmp_path: Path, train_on: str, row: dict[str, Any]
) -> None:
    good: dict[str, Any] = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    if train_on == "customized":
        good = {"messages": [{**message, "trainable": True} for message in good["messages"]]}
    path = write_jsonl(tmp_path / "rows.jsonl", [good, row])
    prepared, report = pantry.prepare(recipe_of(path, train_on=train_on))
    assert found(report) == {"untrained": [(1, "rows.jsonl:2", f"train_on {train_on} picks no token of it")]}
    assert ids(pantry, prepared.train) == [0]


def test_a_row_whose_answer_lies_beyond_the_cut_is_untrained(pantry: Pantry, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [chat("Q", "A"), chat("Q" * 20, "A")])
    prepared, report = pantry.prepare(recipe_of(path, max_length=30))
    assert found(report) == {
        "untrained": [(1, "rows.jsonl:2", "all that would be learned lies beyond max_length 30")],
        "truncated": [(1, "rows.jsonl:2", "42 tokens, max_length is 30")],
    }
    assert ids(pantry, prepared.train) == [0]
    assert (report.rows_trained, report.tokens, report.longest) == (1, 23, 42)


# Truncated


def test_cut_rows_are_counted_and_trained_as_far_as_they_go(pantry: Pantry, tmp_path: Path) -> None:
    rows = [chat("Q", "A"), chat("Q", "ABCDEFGH"), chat("Q", "ABC"), chat("Q", "ABCD")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    full = chat_ids("Q", "ABCDEFGH")
    assert len(full[0]) == 30
    prepared, report = pantry.prepare(recipe_of(path, max_length=25))
    assert found(report) == {
        "truncated": [
            (1, "rows.jsonl:2", "30 tokens, max_length is 25"),
            (3, "rows.jsonl:4", "26 tokens, max_length is 25"),
        ]
    }
    second = pantry.rows(prepared.train)[1]
    assert (second["input_ids"], second["labels"]) == (full[0][:25], full[1][:25])
    assert second["labels"][-4:] == [*b"BCDE"]
    assert (report.cut_tokens, report.longest, report.tokens) == (6, 30, 23 + 25 + 25 + 25)
    assert report.trained_tokens == prepared.train.trained_tokens == 2 + 5 + 4 + 5
    assert report.lengths == {32: 4}
    uncut, report = pantry.prepare(recipe_of(path, max_length=30))
    assert (found(report), report.cut_tokens) == ({}, 0)
    assert pantry.rows(uncut.train)[1]["input_ids"] == full[0]


def test_held_out_rows_are_cut_as_well_and_their_questions_are_not(pantry: Pantry, tmp_path: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [chat("Q", "ABCDEFGH")])
    path = write_jsonl(tmp_path / "rows.jsonl", [chat("R", "A")])
    prepared, report = pantry.prepare(recipe_of(path, held_out=str(held), max_length=24))
    assert found(report) == {"truncated": [(0, "held_out held.jsonl:1", "30 tokens, max_length is 24")]}
    (row,) = pantry.rows(prepared.held_out)
    assert len(row["input_ids"]) == 24
    assert (bytes(row["prompt_ids"][1:7]), row["expected"]) == (b"user\nQ", "ABCDEFGH")
    assert (report.lengths, report.longest) == ({32: 1}, 23)


# Duplicates


def test_rows_that_repeat_an_earlier_one_are_named_with_it(pantry: Pantry, tmp_path: Path) -> None:
    turned = {
        "messages": [
            {"content": message["content"], "role": message["role"]} for message in chat("Q", "A")["messages"]
        ]
    }
    invalid = {"messages": [{"role": "bot", "content": "x"}]}
    rows = [invalid, chat("Q", "A"), chat("Q", "B"), turned, invalid, chat("R", "A"), chat("Q", "B"), chat("Q", "A")]
    prepared, report = pantry.prepare(recipe_of(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert found(report)["duplicates"] == [
        (3, "rows.jsonl:4", "the same as row 1"),
        (6, "rows.jsonl:7", "the same as row 2"),
        (7, "rows.jsonl:8", "the same as row 1"),
    ]
    # They are told and not taken out: repeating a row is a common way to weigh it.
    assert ids(pantry, prepared.train) == [1, 2, 3, 5, 6, 7]


def test_duplicates_are_found_whatever_the_file_calls_its_columns(pantry: Pantry, tmp_path: Path) -> None:
    rows = [{"id": 1, "q": "Q", "a": "A"}, {"id": 2, "q": "Q", "a": "A"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    _, report = pantry.prepare(recipe_of(path, columns={"prompt": "q", "completion": "a"}))
    assert found(report) == {"duplicates": [(1, "rows.jsonl:2", "the same as row 0")]}


def test_duplicates_go_to_one_side_of_the_split(pantry: Pantry, tmp_path: Path) -> None:
    rows = [chat(f"Q{index % 10}", "A") for index in range(40)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    prepared, report = pantry.prepare(recipe_of(path, held_out="0.2"))
    assert report.findings["duplicates"].count == 30
    sides = [{index % 10 for index in ids(pantry, split)} for split in (prepared.train, prepared.held_out)]
    assert [len(side) for side in sides] == [8, 2]
    assert sides[0].isdisjoint(sides[1])


# Overlap


def test_held_out_rows_whose_prompt_is_trained_are_named(pantry: Pantry, tmp_path: Path) -> None:
    held = [chat("Q", "A"), chat("R", "A"), chat("Q", "another answer"), chat("q", "A")]
    path = write_jsonl(tmp_path / "rows.jsonl", [chat("Q", "A"), chat("S", "A")])
    prepared, report = pantry.prepare(recipe_of(path, held_out=str(write_jsonl(tmp_path / "held.jsonl", held))))
    said = "its prompt is also in the training rows"
    assert found(report) == {"overlap": [(0, "held_out held.jsonl:1", said), (2, "held_out held.jsonl:3", said)]}
    assert ids(pantry, prepared.held_out) == [0, 1, 2, 3]
    assert (report.rows_read, report.rows_trained, report.rows_held_out) == (6, 2, 4)
    with pytest.raises(DataError, match=r"^d: overlap: 2 of 4 rows \(50.00%, limit 0.00%\)"):
        report.require(RowLimits(), "d")


@pytest.mark.parametrize("train_on", ["last_assistant_message", "all_tokens"])
def test_the_training_file_held_out_as_well_overlaps_wholly(pantry: Pantry, tmp_path: Path, train_on: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [chat("Q", "A"), chat("R", "B")])
    _, report = pantry.prepare(recipe_of(path, held_out=str(path), train_on=train_on))
    assert report.findings["overlap"].share == 1.0


def test_a_split_by_share_never_overlaps(pantry: Pantry, tmp_path: Path) -> None:
    rows = [chat(f"Q{index % 20}", f"A{index}") for index in range(60)]
    prepared, report = pantry.prepare(recipe_of(write_jsonl(tmp_path / "rows.jsonl", rows), held_out="0.25"))
    assert found(report) == {}
    prompts = [{index % 20 for index in ids(pantry, split)} for split in (prepared.train, prepared.held_out)]
    assert prompts[0].isdisjoint(prompts[1])
    assert (prepared.train.rows, report.rows_held_out, report.findings["overlap"].of) == (45, 15, 15)


def test_an_end_that_is_trained_is_no_defect_of_a_row(pantry: Pantry, tmp_path: Path) -> None:
    prepared, report = pantry.prepare(recipe_of(write_jsonl(tmp_path / "rows.jsonl", [chat("Q", "A")])))
    assert found(report) == {}
    assert pantry.rows(prepared.train)[0]["labels"][-2:] == [END, -100]
