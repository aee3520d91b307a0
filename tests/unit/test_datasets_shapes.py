"""Every shape of rows, brought to messages or raw text; and what is said of columns of no known shape."""

from typing import Any

import pytest

from kitchen_resources.datasets.port import Example
from kitchen_resources.datasets.shapes import shape_of
from kitchen_resources.errors import DataError
from tests.unit.dataset_rows import chat, examples_of, reasons_of

Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
S = {"role": "system", "content": "S"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def messages_of(row: dict[str, Any], **columns: str) -> list[dict[str, Any]]:
    (example,) = examples_of(row, columns=columns)
    assert example == Example(0, "rows:1", "messages", messages=example.messages, tools=example.tools)
    return [dict(message) for message in example.messages]


def raw_text_of(row: dict[str, Any], **columns: str) -> tuple[str, str]:
    (example,) = examples_of(row, columns=columns, conversational=False)
    shape = "prompt_completion"
    assert example == Example(0, "rows:1", shape, prompt=example.prompt, completion=example.completion)  # type: ignore[arg-type]
    return example.prompt, example.completion


def refusal(columns: list[str], **renames: str) -> str:
    with pytest.raises(DataError) as refused:
        shape_of(columns, renames, reference="dataset d", conversational=True)
    return str(refused.value)


# Prompts and answers: a conversation where the model has a chat template, raw text where it has none

PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "prompt, completion": ({"prompt": "Q", "completion": "A"}, "Q"),
    "prompt, response": ({"prompt": "Q", "response": "A"}, "Q"),
    "instruction, output": ({"instruction": "Q", "output": "A"}, "Q"),
    "instruction, response": ({"instruction": "Q", "response": "A"}, "Q"),
    "instruction, empty input, output": ({"instruction": "Q", "input": "", "output": "A"}, "Q"),
    "instruction, no input, output": ({"instruction": "Q", "input": None, "output": "A"}, "Q"),
    "instruction, input, output": ({"instruction": "Q", "input": "I", "output": "A"}, "Q\n\nI"),
    "instruction, input, response": ({"instruction": "Q", "input": "I", "response": "A"}, "Q\n\nI"),
    "input, output": ({"input": "Q", "output": "A"}, "Q"),
    "other columns beside": ({"id": 7, "prompt": "Q", "completion": "A", "text": "x"}, "Q"),
    "completion before response": ({"prompt": "Q", "response": "x", "completion": "A"}, "Q"),
    "output before response": ({"instruction": "Q", "response": "x", "output": "A"}, "Q"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_becomes_a_conversation_with_a_chat_template(name: str) -> None:
    row, asked = PAIRS[name]
    assert messages_of(row) == [{"role": "user", "content": asked}, A]


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_stays_raw_text_without_one(name: str) -> None:
    row, asked = PAIRS[name]
    assert raw_text_of(row) == (asked, "A")


def test_a_pair_may_bring_a_system_text() -> None:
    assert messages_of({"system": "S", "prompt": "Q", "completion": "A"}) == [S, Q, A]
    assert messages_of({"system": "", "prompt": "Q", "completion": "A"}) == [Q, A]
    assert messages_of({"system": None, "instruction": "Q", "output": "A"}) == [Q, A]


@pytest.mark.parametrize("name", ["system", "tools"])
def test_raw_text_loses_nothing_that_it_has_no_place_for(name: str) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Q", "completion": "A", name: value} for value in (None, "", [], "S", [TOOL])
    ]
    reason = f"has `{name}`, which raw text has no place for; set a chat_template"
    assert reasons_of(*rows, conversational=False) == {3: reason, 4: reason}


@pytest.mark.parametrize("conversational", [True, False])
def test_a_pair_of_conversations_is_one(conversational: bool) -> None:
    row = {"prompt": [S, Q], "completion": [A], "tools": [TOOL]}
    (example,) = examples_of(row, conversational=conversational)
    assert example == Example(0, "rows:1", "messages", messages=(S, Q, A), tools=(TOOL,))


def test_a_conversation_may_be_answered_by_a_text() -> None:
    assert messages_of({"prompt": [Q], "completion": "A"}) == [Q, A]


@pytest.mark.parametrize("conversational", [True, False])
def test_text_is_learned_whole(conversational: bool) -> None:
    (example,) = examples_of({"text": "T", "source": "s"}, conversational=conversational)
    assert example == Example(0, "rows:1", "text", text="T")


def test_a_pair_without_text_is_a_finding() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": None, "completion": "A"},
        {"prompt": "Q", "completion": 4},
        {"prompt": "Q"},
        {"prompt": [], "completion": "A"},
        {"prompt": "Q", "completion": [A]},
    ]
    said = {
        0: "prompt must be text, this is missing",
        1: "completion must be text, this is int '4'",
        2: "completion must be text, this is missing",
        3: "prompt must be text, this is list '[]'",
        4: "completion must be text, this is list \"[{'role': 'assistant', 'content': 'A'}]\"",
    }
    assert reasons_of(*rows) == said
    assert reasons_of(*rows, conversational=False) == said


# Conversations


def test_messages_keep_every_key_that_has_a_value() -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": None}}}]
    row = {
        "messages": [
            {**Q, "name": None, "trainable": False},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "3", "tool_call_id": "1"},
            {**A, "reasoning_content": "R"},
        ],
        "tools": [TOOL],
    }
    (example,) = examples_of(row)
    assert [dict(message) for message in example.messages] == [
        {**Q, "trainable": False},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        {**A, "reasoning_content": "R"},
    ]
    assert example.tools == (TOOL,)


def test_content_may_be_a_list_of_texts() -> None:
    parts = [{"type": "text", "text": "Q", "image": None}, {"type": "text", "text": "!"}]
    assert messages_of({"messages": [{"role": "user", "content": parts}, A]}) == [
        {"role": "user", "content": "Q!"},
        A,
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "x.png"},
        {"type": "image_url", "text": "x"},
        {"type": "text", "text": None},
        {"type": "text"},
        {"type": "audio", "audio": "x"},
        7,
    ],
)
def test_content_that_is_not_text_is_refused(part: Any) -> None:
    content = [{"type": "text", "text": "what is this?"}, part]
    assert reasons_of(chat("Q", "A"), {"messages": [A, {"role": "user", "content": content}]}) == {
        1: "message 1 has a part that is not text; images and audio can't be trained on"
    }


def test_a_system_text_of_its_own_column_comes_first() -> None:
    assert messages_of({"messages": [Q, A], "system": "S"}) == [S, Q, A]
    assert messages_of({"messages": [S, Q, A], "system": "S"}) == [S, Q, A]
    assert messages_of({"messages": [{"role": "developer", "content": "S"}, Q, A], "system": "S"})[1:] == [Q, A]
    assert messages_of({"prompt": [Q], "completion": [A], "system": "S"}) == [S, Q, A]
    assert messages_of({"messages": [S, Q, A], "system": ""}) == [S, Q, A]
    assert reasons_of({"messages": [S, Q, A], "system": "another"}) == {
        0: "has `system` and another system message in its conversation"
    }


@pytest.mark.parametrize(
    ("value", "described"),
    [(None, "missing"), ("hello", "str 'hello'"), ([], "list '[]'"), ({"role": "user"}, "dict \"{'role': 'user'}\"")],
)
def test_messages_that_are_no_list_are_a_finding(value: Any, described: str) -> None:
    assert reasons_of(chat("Q", "A"), {"messages": value}) == {
        1: f"messages must be a list of at least one message, this is {described}"
    }
    turns = {"conversations": [{"from": "human", "value": "Q"}]}
    assert reasons_of(turns, {"conversations": value}) == {
        1: f"conversations must be a list of at least one turn, this is {described}"
    }


def test_a_message_that_is_no_object_is_a_finding() -> None:
    assert reasons_of({"messages": [Q, "A"]}, {"messages": [None]}) == {
        0: "message 1 must be an object with role and content, this is str 'A'",
        1: "message 0 must be an object with role and content, this is missing",
    }


@pytest.mark.parametrize(("tools", "described"), [("f", "str 'f'"), (["f"], "list \"['f']\""), (3, "int '3'")])
def test_tools_that_are_no_definitions_are_a_finding(tools: Any, described: str) -> None:
    assert reasons_of({**chat("Q", "A"), "tools": tools}) == {
        0: f"tools must be a list of tool definitions, this is {described}"
    }


# ShareGPT


def test_sharegpt_roles() -> None:
    expected = {
        **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant"},
        **{"bard": "assistant", "system": "system", "tool": "tool", "function": "tool", "observation": "tool"},
    }
    turns = [{"from": speaker, "value": speaker.upper()} for speaker in expected]
    assert messages_of({"conversations": turns}) == [
        {"role": role, "content": speaker.upper()} for speaker, role in expected.items()
    ]


def test_sharegpt_keeps_what_else_a_turn_has() -> None:
    turns = [{"from": "human", "value": "Q", "weight": None}, {"from": "gpt", "value": "A", "weight": 0.5}]
    assert messages_of({"conversations": turns}) == [Q, {**A, "weight": 0.5}]


def test_sharegpt_with_a_system_text_and_with_messages_of_the_other_form() -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    assert messages_of({"conversations": turns, "system": "S"}) == [S, Q, A]
    assert messages_of({"conversations": [Q, A]}) == [Q, A]
    (example,) = examples_of({"conversations": turns, "tools": [TOOL]})
    assert example.tools == (TOOL,)


def test_a_wrong_turn_is_a_finding() -> None:
    known = "human, user, gpt, assistant, chatgpt, bard, system, tool, function, observation"
    rows: list[dict[str, Any]] = [
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "GPT", "value": "A"}]},
        {"conversations": [{"from": ["human"], "value": "Q"}]},
        {"conversations": [{"value": "Q"}]},
        {"conversations": ["Q"]},
        {"conversations": [{"from": "human"}]},
        {"conversations": [{"from": "human", "value": 3}]},
    ]
    assert reasons_of(*rows) == {
        0: f"turn 1 is from 'GPT', which is none of {known}",
        1: f"turn 0 is from ['human'], which is none of {known}",
        2: f"turn 0 is from None, which is none of {known}",
        3: "turn 0 must be an object with from and value, this is str 'Q'",
        4: "message 0: it has neither content nor tool calls",
        5: "message 0: its content must be text ('3')",
    }


# Which shape, and the recipe's `columns`


def test_messages_go_before_the_other_shapes() -> None:
    pair = {"prompt": "x", "completion": "y", "text": "z"}
    assert messages_of({**pair, "messages": [Q, A], "conversations": []}) == [Q, A]
    assert messages_of({**pair, "conversations": [Q, A]}) == [Q, A]


def test_columns_rename() -> None:
    row = {"question": "Q", "context": "I", "reply": "A", "persona": "S"}
    assert messages_of(row, prompt="question", completion="reply") == [Q, A]
    assert messages_of(row, prompt="question", completion="reply", system="persona") == [S, Q, A]
    asked = {"role": "user", "content": "Q\n\nI"}
    assert messages_of(row, instruction="question", input="context", output="reply") == [asked, A]
    assert raw_text_of(row, prompt="question", completion="reply") == ("Q", "A")
    assert messages_of({"chat": [Q, A]}, messages="chat") == [Q, A]
    assert messages_of({"chat": [Q, A], "functions": [TOOL]}, messages="chat", tools="functions") == [Q, A]
    assert examples_of({"body": "T"}, columns={"text": "body"})[0].text == "T"


def test_columns_may_swap_names() -> None:
    assert raw_text_of({"prompt": "A", "completion": "Q"}, prompt="completion", completion="prompt") == ("Q", "A")


def test_columns_that_a_recipe_names_go_before_others_that_the_rows_have() -> None:
    row = {"messages": [S], "text": "x", "prompt": "y", "question": "Q", "reply": "A"}
    assert messages_of(row, prompt="question", completion="reply") == [Q, A]
    assert messages_of(row, instruction="question", output="reply") == [Q, A]
    assert examples_of(row, columns={"text": "question"})[0].text == "Q"
    # `completion` alone tells no shape.
    assert messages_of({"messages": [Q, A], "reply": "x"}, completion="reply") == [Q, A]


def test_a_column_may_be_renamed_away() -> None:
    row = {"messages": [S], "prompt": "Q", "completion": "A"}
    assert messages_of(row, unused="messages") == [Q, A]
    assert messages_of(row) == [S]


def test_a_row_without_a_renamed_column_is_a_finding() -> None:
    rows = [{"q": "Q", "a": "A"}, {"prompt": "Q", "a": "A"}]
    assert reasons_of(*rows, columns={"prompt": "q", "completion": "a"}) == {
        1: "prompt must be text, this is missing"
    }


def test_a_column_that_is_not_there_is_refused_with_those_that_are() -> None:
    assert refusal(["question", "answer"], prompt="questoin", completion="answer") == (
        "dataset d: `columns` names 'questoin' for 'prompt', and the data set has answer, question\n"
        "  fix: columns: {prompt: one of those}"
    )


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (["id", "answer", "question"], "columns: {prompt: question, completion: answer}"),
        (["prompt", "chosen"], "columns: {prompt: prompt, completion: chosen}"),
        (["uid", "left", "right"], "columns: {prompt: uid, completion: left}"),
        (["answer", "topic"], "columns: {prompt: topic, completion: answer}"),
        (["instruction", "text"], "columns: {prompt: instruction, completion: text}"),
        (["body"], "columns: {text: body}"),
        ([], "columns: {prompt: …, completion: …}"),
    ],
)
def test_an_unknown_shape_is_refused_with_the_columns_and_a_line_to_write(columns: list[str], line: str) -> None:
    assert refusal(columns) == (
        f"dataset d: its columns are {', '.join(sorted(columns)) or 'none'}, which is no known shape "
        "(messages; conversations; prompt + completion; prompt + response; instruction (+ input) + output; "
        f"instruction (+ input) + response; input + output; text)\n  fix: {line}"
    )


@pytest.mark.parametrize("columns", [["answer", "id", "question"], ["q", "a"], ["body"]])
def test_the_line_to_write_works(columns: list[str]) -> None:
    line = refusal(columns).rpartition("columns: {")[2].rstrip("}")
    renames = dict(pair.split(": ") for pair in line.split(", "))
    row = {name: f"<{name}>" for name in columns}
    (example,) = examples_of(row, columns=renames, conversational=False)
    assert (example.prompt + example.completion + example.text) == "".join(f"<{name}>" for name in renames.values())
