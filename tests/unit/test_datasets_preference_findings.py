"""What is found in prepared pairs: rows that are none, cuts, answers that are alike, and what lengths give away."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from kitchen_resources.datasets.prepare import prepared_from_json, read_report
from kitchen_resources.datasets.report import PairLengths, RowReport, report_from_json
from kitchen_resources.embedded.tokenizer import chat_template
from kitchen_resources.errors import DataError
from tests.unit.dataset_rows import chat, write_jsonl
from tests.unit.preference_rows import GOOD, Q, asked_ids, found, pair, preferring, prepare, said_ids
from tests.unit.preparing import Pantry

ASKED = len(asked_ids("Q"))


@pytest.fixture
def pantry() -> Pantry:
    return Pantry()


# Rows


def test_rows_that_are_no_pairs_are_invalid_with_their_ids(pantry: Pantry, tmp_path: Path) -> None:
    rows = [
        pair("Q", "good", "bad"),
        pair("Q", "same", "same"),
        pair("Q", "", "bad"),
        pair("Q", "good", []),
        pair("Q", "good", "bad<|im_end|>"),
        chat("Q", "A"),
    ]
    _, report = prepare(pantry, tmp_path, rows)
    forged = "message 1 (assistant) holds the text '<|im_end|>', which only the chat template may write: it could forge a turn"
    assert found(report) == {
        "invalid": {
            1: "chosen and rejected are the same",
            2: "its chosen answer is empty",
            3: "its rejected answer is empty",
            4: f"with its rejected answer: {forged}",
            5: "prompt must be text, this is missing",
        }
    }
    with pytest.raises(
        DataError, match=r"invalid: 5 of 6 rows .* row 1 \(rows.jsonl:2\): chosen and rejected are the s"
    ):
        report.require(preferring("rows").row_limits, "dataset")


def test_answers_are_cut_at_their_end(pantry: Pantry, tmp_path: Path) -> None:
    rows = [
        pair("Q", "abcdef", "xy"),
        pair("Q", "ab", "uvwxyz!"),
        pair("Q", "abcdef", "uvwxyz!"),
        pair("Q", "abcd", "xyz"),
    ]
    longest = ASKED + 5
    prepared, report = prepare(pantry, tmp_path, rows, max_length=longest)
    kept = [(row["chosen_ids"], row["rejected_ids"]) for row in pantry.rows(prepared.train)]
    assert kept == [
        ([*b"abcde"], said_ids("xy")),
        (said_ids("ab"), [*b"uvwxy"]),
        ([*b"abcde"], [*b"uvwxy"]),
        (said_ids("abcd"), said_ids("xyz")),
    ]
    assert found(report) == {
        "truncated": {
            0: f"chosen {ASKED + 7} tokens with the prompt, max_length is {longest}",
            1: f"rejected {ASKED + 8} tokens with the prompt, max_length is {longest}",
            2: f"chosen {ASKED + 7} and rejected {ASKED + 8} tokens with the prompt, max_length is {longest}",
        }
    }
    assert (report.cut_tokens, report.longest) == (2 + 3 + 2 + 3, ASKED + 8)
    assert prepared.train.tokens == 4 * ASKED + sum(len(chosen) + len(rejected) for chosen, rejected in kept)


def test_what_the_cut_leaves_nothing_to_compare_of_is_not_trained_on(pantry: Pantry, tmp_path: Path) -> None:
    rows = [
        pair("Q", "abcX", "abcY"),
        pair("Q" * 6, "good", "bad"),
        pair("Q" * 40, "good", "bad"),
        pair("Q", "ab", "c"),
    ]
    longest = ASKED + 3
    prepared, report = prepare(pantry, tmp_path, rows, max_length=longest)
    assert [row["row_id"] for row in pantry.rows(prepared.train)] == [3]
    assert found(report)["untrained"] == {
        0: f"chosen and rejected are the same up to max_length {longest}",
        1: f"its prompt of {ASKED + 5} tokens fills max_length {longest}",
        2: f"its prompt of {ASKED + 39} tokens fills max_length {longest}",
    }
    assert set(found(report)["truncated"]) == {0, 1, 2}
    # What isn't trained on has no part in the lengths.
    assert report.pairs["pairs"] == 1
    with pytest.raises(DataError, match="untrained: 3 of 4 rows"):
        report.require(preferring("rows").row_limits, "dataset")


def test_a_prompt_that_leaves_room_for_one_token_is_trained_on(pantry: Pantry, tmp_path: Path) -> None:
    prepared, report = prepare(pantry, tmp_path, [pair("Q", "good", "bad")], max_length=ASKED + 1)
    (row,) = pantry.rows(prepared.train)
    assert (row["chosen_ids"], row["rejected_ids"], prepared.train.trained_tokens) == ([ord("g")], [ord("b")], 2)
    assert report.cut_tokens == 4 + 3


def test_answers_that_a_template_writes_alike_are_not_trained_on(pantry: Pantry, tmp_path: Path) -> None:
    template = tmp_path / "strips.jinja"
    template.write_text(chat_template().replace("(message['content'] or '')", "message['content'].strip()"))
    rows = [pair("Q", "good", "good "), pair("Q", "good", "bad")]
    prepared, report = prepare(pantry, tmp_path, rows, chat_template=str(template))
    assert (prepared.train.rows, found(report)) == (1, {"untrained": {0: "chosen and rejected are the same tokens"}})


def test_repeated_pairs_are_found_and_turned_ones_are_others(pantry: Pantry, tmp_path: Path) -> None:
    rows = [pair("Q", "a", "b"), pair("Q", "b", "a"), pair([Q], [{**GOOD, "content": "a"}], "b")]
    prepared, report = prepare(pantry, tmp_path, rows)
    assert prepared.train.rows == 3
    assert found(report) == {"duplicates": {2: "the same as row 0"}}


# Lengths


def test_what_the_lengths_of_the_answers_give_away(pantry: Pantry, tmp_path: Path) -> None:
    rows = [
        pair("Q", "longer", "short"),
        pair("Q", "the longest", "short"),
        pair("R", "a", "bcd"),
        pair("R", "abc", "xyz"),
        pair("R", "x", "x"),
    ]
    _, report = prepare(pantry, tmp_path, rows)
    assert report.pairs == {
        "pairs": 4,
        "chosen_longer": 0.5,
        "same_length": 0.25,
        "mean_chosen_tokens": (7 + 12 + 2 + 4) / 4,
        "mean_rejected_tokens": (6 + 6 + 4 + 4) / 4,
        "longer_accuracy": 0.625,
    }


def test_a_bias_is_no_finding_and_held_out_pairs_are_not_measured(pantry: Pantry, tmp_path: Path) -> None:
    rows = [pair(f"Q{index}", "much longer", "short") for index in range(10)]
    held = write_jsonl(tmp_path / "held.jsonl", [pair("H", "a", "longer")])
    prepared, report = prepare(pantry, tmp_path, rows, held_out=str(held), row_limits={})
    assert (report.pairs["longer_accuracy"], report.pairs["pairs"]) == (1.0, 10)
    assert report.exceeded(preferring("rows").row_limits) == {}
    assert pantry.rows(prepared.held_out)[0]["where"] == "held.jsonl:1"


def test_a_report_comes_back_as_it_was_stored_and_old_ones_still_load(pantry: Pantry, tmp_path: Path) -> None:
    prepared, report = prepare(pantry, tmp_path, [pair("Q", "good", "no")])
    assert read_report(prepared, pantry.content) == report
    assert prepared_from_json(json.loads(json.dumps(asdict(prepared)))) == prepared
    old = {name: value for name, value in report.as_json().items() if name != "pairs"}
    assert report_from_json(old).pairs == {}
    # What knows no pairs is stored as it was before there were any.
    assert "pairs" not in RowReport().as_json()
    lengths = PairLengths()
    lengths.add(3, 3)
    assert lengths.measures()["longer_accuracy"] == 0.5
