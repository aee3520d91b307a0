"""Preference pairs: every form of row, what breaks their schema, and what is said of columns that hold none."""

from typing import Any

import pytest

from kitchen_resources.datasets.port import Example
from kitchen_resources.datasets.questions import question_of
from kitchen_resources.datasets.renderers import make_renderer
from kitchen_resources.datasets.schemas import column_schema, invalid_rows
from kitchen_resources.datasets.shapes import shape_of
from kitchen_resources.datasets.splitting import content_key, prompt_key
from kitchen_resources.errors import DataError
from tests.unit.dataset_rows import chat, examples_of
from tests.unit.preference_rows import BAD, GOOD, TOOL, Q, S, asked_ids, pair, pairs_of, preferring, reasons_of
from tests.unit.preparing import BASE

ROLE = "its role is none of system, developer, user, assistant, tool"
TURNS = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "good"}]


def conversation(*prompt: dict[str, Any], **others: Any) -> Example:
    return Example(0, "rows:1", "preference", messages=prompt, chosen=(GOOD,), rejected=(BAD,), **others)


def refusal(columns: list[str], method: str, renames: dict[str, str] | None = None) -> str:
    with pytest.raises(DataError) as refused:
        shape_of(columns, renames or {}, reference="dataset d", conversational=True, method=method)
    return str(refused.value)


# Every form of a pair

FORMS: dict[str, dict[str, Any]] = {
    "texts": pair("Q", "good", "bad"),
    "messages and texts": pair([Q], "good", "bad"),
    "messages": pair([Q], [GOOD], [BAD]),
    "a text and messages": pair("Q", [GOOD], [BAD]),
    "a text and a message": pair("Q", GOOD, BAD),
    "of two forms": pair([Q], [GOOD], "bad"),
    "whole conversations": {"chosen": [Q, GOOD], "rejected": [Q, BAD]},
    "whole conversations beside their prompt": pair([Q], [Q, GOOD], [Q, BAD]),
    "whole conversations beside their question": pair("Q", [Q, GOOD], [Q, BAD]),
    "one whole conversation": pair("Q", [Q, GOOD], "bad"),
    "with empty columns": pair("Q", "good", "bad", system=None, tools=None),
    "other columns beside": pair("Q", "good", "bad", messages=[Q, GOOD], text="x", score_chosen=7.5),
    "null keys": pair("Q", [{**GOOD, "tool_calls": None}], [{**BAD, "name": None}]),
    "content as a list of texts": pair("Q", [{**GOOD, "content": [{"type": "text", "text": "good"}]}], [BAD]),
    "turns": {"chosen": TURNS, "rejected": [TURNS[0], {"from": "gpt", "value": "bad"}]},
    "turns of a prompt": pair(TURNS[:1], TURNS[1], {"from": "gpt", "value": "bad"}),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_becomes_one_prompt_and_two_answers(name: str) -> None:
    assert pairs_of(FORMS[name]) == [conversation(Q)]


def test_the_prompt_of_whole_conversations_is_what_both_begin_with() -> None:
    before = [S, Q, GOOD, {"role": "user", "content": "R"}]
    assert pairs_of({"chosen": [*before, GOOD], "rejected": [*before, BAD]}) == [conversation(*before)]
    assert pairs_of(pair("R", [*before, GOOD], [*before, BAD])) == [conversation(*before)]
    # Where the last answers are the same, the pair is one of equal sides, and not another prompt.
    assert reasons_of({"chosen": [Q, GOOD], "rejected": [Q, GOOD]}) == {0: "chosen and rejected are the same"}


def test_a_system_text_and_tools_of_their_own_columns() -> None:
    assert pairs_of(pair("Q", "good", "bad", system="S", tools=[TOOL])) == [conversation(S, Q, tools=(TOOL,))]
    assert pairs_of({"chosen": [Q, GOOD], "rejected": [Q, BAD], "system": "S"}) == [conversation(S, Q)]
    assert pairs_of(pair([S, Q], "good", "bad", system="S")) == [conversation(S, Q)]
    assert reasons_of(pair([S, Q], "good", "bad", system="T")) == {
        0: "has `system` and another system message in its conversation"
    }


def test_columns_rename() -> None:
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    rows = [{"question": "Q", "better": "good", "worse": "bad"}, {"question": "Q", "better": "good"}]
    assert pairs_of(rows[0], columns=columns) == [conversation(Q)]
    assert reasons_of(*rows, columns=columns) == {1: "rejected must be text, this is missing"}
    swapped = pairs_of(pair("Q", "bad", "good"), columns={"chosen": "rejected", "rejected": "chosen"})
    assert swapped == [conversation(Q)]
    # A column that is renamed away isn't read.
    row = {"prompt": "?", "chosen": [Q, GOOD], "rejected": [Q, BAD]}
    assert pairs_of(row, columns={"unused": "prompt"}) == [conversation(Q)]


def test_raw_text_for_a_model_without_a_template() -> None:
    raw = Example(0, "rows:1", "preference", prompt="Q", chosen="good", rejected="bad")
    assert pairs_of(pair("Q", "good", "bad"), conversational=False) == [raw]
    assert pairs_of({"chosen": "good", "rejected": "bad"}, conversational=False) == [
        Example(0, "rows:1", "preference", chosen="good", rejected="bad")
    ]
    assert pairs_of(pair([Q], "good", "bad"), conversational=False) == [conversation(Q)]
    said = "has `system`, which raw text has no place for; set a chat_template"
    assert reasons_of(pair("Q", "good", "bad", system="S"), conversational=False) == {0: said}


def test_texts_without_a_prompt_are_not_guessed_at() -> None:
    said = (
        "has no prompt, and its answers are texts: give the question as `prompt` (columns: {prompt: …}), or both answers "
        "as whole conversations"
    )
    rows = [{"chosen": "Human: Q Assistant: good", "rejected": "Human: Q Assistant: bad"}, {"chosen": [Q, GOOD]}]
    assert reasons_of(rows[0]) == {0: said}
    assert reasons_of(rows[0], {"chosen": [Q, GOOD], "rejected": "bad"}, conversational=False) == {1: said}


SHARED = "after a prompt that both sides share, and this is"
ASSISTANT = "must be one message of the assistant"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (pair(None, "good", "bad"), "prompt must be text, this is missing"),
        (pair([], "good", "bad"), "prompt must be text, this is list '[]'"),
        (pair("Q", 4, "bad"), "chosen must be text, this is int '4'"),
        (pair("Q", "good", None), "rejected must be text, this is missing"),
        (pair("Q", "good", ["bad"]), "rejected must be text or messages, this is list \"['bad']\""),
        (pair("Q", [], "bad"), "its chosen answer is empty"),
        (pair("Q", "good", ""), "its rejected answer is empty"),
        (pair("Q", "", ""), "its chosen answer is empty"),
        (pair("Q", "good", [{"role": "assistant", "content": None}]), "its rejected answer is empty"),
        (pair("Q", "same", "same"), "chosen and rejected are the same"),
        (pair("Q", [GOOD], "good"), "chosen and rejected are the same"),
        (pair("", "good", "bad"), "message 0: it has neither content nor tool calls"),
        (pair([{"role": "bot", "content": "Q"}], "good", "bad"), f"message 0: {ROLE} ('bot')"),
        (pair([{"role": "user", "content": 3}], "good", "bad"), "message 0: its content must be text ('3')"),
        (pair("Q", "good", [{"role": "assistant", "content": 3}]), "rejected: its content must be text ('3')"),
        (pair("Q", "good", [{"from": "bot", "value": "x"}]), "rejected: turn 0 is from 'bot', which is none of "),
        (
            pair("Q", [{**GOOD, "content": [{"type": "image"}]}], "bad"),
            "chosen: message 0 has a part that is not text",
        ),
        (
            pair("Q", [{**GOOD, "weight": 0.5}], "bad"),
            "chosen carries `weight`, and of a pair both answers count whole",
        ),
        (pair("Q", "good", [Q]), f"its rejected answer {ASSISTANT} {SHARED} user"),
        (pair("Q", [GOOD, Q, GOOD], "bad"), f"its chosen answer {ASSISTANT} {SHARED} assistant, user, assistant"),
        (pair([Q], [S, Q, GOOD], [S, Q, BAD]), f"its chosen answer {ASSISTANT} {SHARED} system, user, assistant"),
        (
            pair("R", [Q, GOOD], [Q, BAD]),
            "its prompt is none of the messages with which both chosen and rejected begin",
        ),
        ({"chosen": [Q, GOOD, Q], "rejected": [Q, GOOD, S]}, f"its chosen answer {ASSISTANT} {SHARED} user"),
        (
            {"chosen": [Q, GOOD, Q, GOOD], "rejected": [Q, BAD]},
            f"its chosen answer {ASSISTANT} {SHARED} assistant, user, assistant",
        ),
        (
            {"chosen": [Q, GOOD], "rejected": [S, Q, BAD]},
            "chosen and rejected share no message before their last, so no prompt: give the question as `prompt`",
        ),
        (
            {"chosen": [GOOD], "rejected": [BAD]},
            "chosen and rejected share no message before their last, so no prompt",
        ),
        (pair("Q", "good", "\ud83d"), "holds half of a surrogate pair, which is no character"),
        (pair("Q", [{**GOOD, "at": float("nan")}], "bad"), "holds what is not a JSON value: "),
    ],
)
def test_a_row_that_is_no_pair_is_a_finding(row: dict[str, Any], said: str) -> None:
    first = {name: (row if name in row else FORMS["texts"])[name] for name in row}
    found = reasons_of(pair("Q", "good", "bad") if "prompt" in row else FORMS["whole conversations"], first)
    assert list(found) == [1]
    assert found[1].startswith(said)


# The schema


def test_the_schema_refuses_what_was_made_elsewhere() -> None:
    made = [
        Example(0, "a", "preference", prompt="Q", chosen="A", rejected="B"),
        Example(1, "b", "preference", prompt="Q", chosen=7, rejected="B"),  # type: ignore[arg-type]
        Example(2, "c", "preference", prompt=None, chosen="A", rejected="B"),  # type: ignore[arg-type]
        Example(3, "d", "preference", prompt="Q", chosen="A", rejected=("B",)),  # type: ignore[arg-type]
        Example(4, "e", "text", text=""),
    ]
    assert invalid_rows(made) == {
        1: "its chosen answer must be text or a message ('7')",
        2: "its prompt must be text or messages ('None')",
        3: "its rejected answer must be text or a message (\"('B',)\")",
        4: "its text is empty ('')",
    }


def test_the_schema_as_people_see_it() -> None:
    assert column_schema("preference") == [
        ("prompt", "text or messages", ["its prompt must be text or messages"]),
        ("chosen", "text or message", ["its chosen answer must be text or a message", "its chosen answer is empty"]),
        (
            "rejected",
            "text or message",
            [
                "its rejected answer must be text or a message",
                "its rejected answer is empty",
                "chosen and rejected are the same",
            ],
        ),
    ]


# Columns that hold no pairs


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (["id", "question", "better", "worse"], "columns: {prompt: question, chosen: better, rejected: worse}"),
        (
            ["instruction", "chosen_response", "rejected_response"],
            "columns: {prompt: instruction, chosen: chosen_response, rejected: rejected_response}",
        ),
        (["dispreferred", "preferred"], "columns: {chosen: preferred, rejected: dispreferred}"),
        (["prompt", "chosen"], "columns: {prompt: prompt, chosen: chosen, rejected: …}"),
        # Which of two answers is better is nothing to guess.
        (["query", "response_0", "response_1"], "columns: {prompt: query, chosen: …, rejected: …}"),
        ([], "columns: {chosen: …, rejected: …}"),
        (
            ["prompt", "completion"],
            "columns: {prompt: prompt, chosen: …, rejected: …}; or, where rows have one answer to learn, "
            "workflow: supervised",
        ),
        (
            ["messages"],
            "columns: {chosen: …, rejected: …}; or, where rows have one answer to learn, workflow: supervised",
        ),
    ],
)
def test_columns_without_pairs_are_refused_with_a_line_to_write(columns: list[str], line: str) -> None:
    assert refusal(columns, "preference") == (
        f"dataset d: its columns are {', '.join(sorted(columns)) or 'none'}, which are no pairs of answers "
        f"(prompt + chosen + rejected; chosen + rejected)\n  fix: {line}"
    )


@pytest.mark.parametrize("columns", [["question", "better", "worse"], ["losing_answer", "winning_answer"]])
def test_the_line_to_write_works(columns: list[str]) -> None:
    line = refusal(columns, "preference").rpartition("columns: {")[2].rstrip("}")
    renames = dict(part.split(": ") for part in line.split(", "))
    row = {name: f"<{name}>" for name in columns}
    (example,) = pairs_of(row, columns=renames, conversational=False)
    assert [example.chosen, example.rejected] == [f"<{renames['chosen']}>", f"<{renames['rejected']}>"]


def test_a_recipe_that_learns_rows_is_pointed_to_the_other_workflow() -> None:
    assert refusal(["prompt", "chosen", "rejected"], "supervised") == (
        "dataset d: its columns are chosen, prompt, rejected, which are pairs of answers to compare, and not rows to learn"
        "\n  fix: workflow: preference; or, to learn the chosen answers alone, "
        "columns: {prompt: prompt, completion: chosen}"
    )
    assert refusal(["chosen", "rejected"], "supervised").endswith("columns: {messages: chosen}")
    renamed = refusal(["q", "a", "b"], "supervised", {"prompt": "q", "chosen": "a", "rejected": "b"})
    assert "which are pairs of answers to compare" in renamed
    # Beside a shape of their own, pairs are columns like any other.
    (example,) = examples_of({**chat("Q", "A"), **pair("Q", "good", "bad")})
    assert example.shape == "messages"


def test_a_column_that_is_not_there_is_refused() -> None:
    assert refusal(["q", "good", "bad"], "preference", {"chosen": "godo"}) == (
        "dataset d: `columns` names 'godo' for 'chosen', and the data set has bad, good, q\n"
        "  fix: columns: {chosen: one of those}"
    )


# Keys and questions


def test_the_prompt_of_a_pair_is_all_before_its_answers() -> None:
    (base,) = pairs_of(pair("Q", "good", "bad"))
    for same in (pair([Q], "other", "bad"), pair("Q", "bad", "good"), {"chosen": [Q, BAD], "rejected": [Q, GOOD]}):
        assert prompt_key(pairs_of(same)[0]) == prompt_key(base)
    for other in (pair("R", "good", "bad"), pair([S, Q], "good", "bad"), pair("Q", "good", "bad", tools=[TOOL])):
        assert prompt_key(pairs_of(other)[0]) != prompt_key(base)
    # The same as that of a row that is learned: held-out pairs are told from such rows too.
    assert prompt_key(base) == prompt_key(examples_of(chat("Q", "A"))[0])


def test_the_prompt_of_raw_pairs() -> None:
    rows = [pair("Q", "a", "b"), pair("Q", "c", "d"), pair("R", "a", "b")]
    first, second, third = (prompt_key(example) for example in pairs_of(*rows, conversational=False))
    assert first == second != third
    assert first == prompt_key(examples_of({"prompt": "Q", "completion": "A"}, conversational=False)[0])
    nothing = [{"chosen": "a", "rejected": "b"}, {"chosen": "b", "rejected": "a"}, {"chosen": "a", "rejected": "c"}]
    first, turned, other = (prompt_key(example) for example in pairs_of(*nothing, conversational=False))
    assert first == turned != other


def test_the_content_of_a_pair_is_prompt_and_both_answers_in_their_order() -> None:
    rows = [pair("Q", "a", "b"), pair("Q", "b", "a"), pair("Q", "a", "c"), pair("R", "a", "b"), pair("Q", "a", "b")]
    keys = [content_key(example) for example in pairs_of(*rows)]
    assert keys[0] == keys[4]
    assert len(set(keys)) == 4
    assert len({content_key(example) for example in pairs_of(*rows, conversational=False)} - set(keys)) == 4


def test_the_question_of_a_pair_is_answered_by_the_chosen_one() -> None:
    renderer = make_renderer(preferring("rows"), BASE).renderer
    calls = [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]
    text, calling = pairs_of(pair("Q", "good", "bad"), pair("Q", calls, "bad"))
    assert question_of(text, renderer) == (asked_ids("Q"), "good")
    assert question_of(calling, renderer) == ([], None)
    (raw,) = pairs_of(pair("Q", "good", "bad"), conversational=False)
    assert question_of(raw, renderer) == ([*b"Q"], "good")
