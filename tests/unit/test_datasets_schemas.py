"""The schema of each shape: which rows break it, and what is said of them."""

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from kitchen_resources.datasets.messages import ROLES
from kitchen_resources.datasets.port import Example
from kitchen_resources.datasets.schemas import column_schema, invalid_rows
from tests.unit.dataset_rows import chat, examples_of, reasons_of

ROLE = "its role is none of system, developer, user, assistant, tool"


def said(value: Any) -> str:
    return "" if isinstance(value, bool) else f" ({str(value)[:40]!r})"


def asked(**message: Any) -> dict[str, Any]:
    return {"messages": [message, {"role": "assistant", "content": "A"}]}


@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("assistent", "'assistent'"),
        ("User", "'User'"),
        ("", "''"),
        (3, "'3'"),
        (None, "'None'"),
        (["user"], "\"['user']\""),
        ({"name": "user"}, "\"{'name': 'user'}\""),
        ("x" * 50, f"'{'x' * 40}'"),
    ],
)
def test_a_wrong_role_is_named_with_its_message(role: Any, said: str) -> None:
    messages = [*chat("Q", "A")["messages"], {"role": role, "content": "C"}]
    assert reasons_of(chat("Q", "A"), {"messages": messages}, chat("Q", "B")) == {1: f"message 2: {ROLE} ({said})"}


@pytest.mark.parametrize("role", ROLES)
def test_known_roles_are_valid(role: str) -> None:
    assert reasons_of(asked(role=role, content="C")) == {}


@pytest.mark.parametrize(("content", "said"), [(3, "'3'"), (0, "'0'"), ({"a": 1}, "\"{'a': 1}\""), (0.5, "'0.5'")])
def test_content_of_another_type_is_named(content: Any, said: str) -> None:
    assert reasons_of(asked(role="user", content=content)) == {0: f"message 0: its content must be text ({said})"}


@pytest.mark.parametrize(
    "calls",
    [
        5,
        True,
        "f",
        {"name": "f"},
        ["f"],
        [None],
        [{}],
        [{"name": ""}],
        [{"name": 3}],
        [{"function": "f"}],
        [{"function": {}}],
    ],
)
def test_tool_calls_must_name_functions(calls: Any) -> None:
    rows = [asked(role="assistant", content="A", tool_calls=value) for value in ([{"name": "f"}], calls)]
    assert reasons_of(*rows) == {
        1: "message 0: its tool_calls must be a list of calls, each with a name" + said(calls)
    }


def test_a_message_must_hold_something() -> None:
    said = "message 0: it has neither content nor tool calls"
    rows = [
        asked(role="user", content=""),
        asked(role="user"),
        asked(role="user", content=None),
        asked(role="user", content=[]),
        asked(role="user", content=[{"type": "text", "text": ""}]),
        asked(role="assistant", content="", tool_calls=[]),
        asked(role="assistant", tool_calls=[{"function": {"name": "f"}}]),
        asked(role="assistant", content="", tool_calls=[{"function": {"name": "f"}}]),
        asked(role="assistant", reasoning_content="R"),
        asked(role="assistant", reasoning="R"),
        asked(role="assistant", thinking="R"),
        asked(role="user", content=" "),
    ]
    assert reasons_of(*rows) == dict.fromkeys(range(6), said)


@pytest.mark.parametrize("weight", [0, 1, 0.5, 0.0, True, False, None])
def test_weights_from_0_to_1_are_valid(weight: Any) -> None:
    assert reasons_of(asked(role="user", content="Q", weight=weight)) == {}


@pytest.mark.parametrize(("weight", "said"), [(1.01, "'1.01'"), (-1, "'-1'"), ("1", "'1'"), ([1], "'[1]'")])
def test_other_weights_are_named(weight: Any, said: str) -> None:
    assert reasons_of(asked(role="user", content="Q", weight=weight)) == {
        0: f"message 0: its weight must be a number from 0 to 1 ({said})"
    }


def test_a_row_with_several_defects_gives_one_reason() -> None:
    row = {"messages": [{"role": "user", "content": 1}, {"role": "x", "content": 2}]}
    assert reasons_of(row) == {0: f"message 1: {ROLE} ('x')"}


@pytest.mark.parametrize("conversational", [True, False])
def test_an_empty_text_is_a_finding(conversational: bool) -> None:
    rows = [{"text": "T"}, {"text": ""}, {"text": " "}]
    assert reasons_of(*rows, conversational=conversational) == {1: "its text is empty ('')"}


def test_an_empty_completion_is_a_finding_and_an_empty_prompt_is_not() -> None:
    rows = [{"prompt": "Q", "completion": ""}, {"prompt": "", "completion": "A"}]
    assert reasons_of(*rows, conversational=False) == {0: "its completion is empty ('')"}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (datetime(2020, 1, 2), "Object of type datetime is not JSON serializable"),
        (Decimal("1.5"), "Object of type Decimal is not JSON serializable"),
        (b"raw", "Object of type bytes is not JSON serializable"),
        (float("nan"), "Out of range float values are not JSON compliant"),
        (float("inf"), "Out of range float values are not JSON compliant"),
    ],
)
def test_what_json_cannot_hold_is_a_finding(value: Any, said: str) -> None:
    rows = [chat("Q", "A"), asked(role="user", content="Q", at=value), {**chat("Q", "A"), "tools": [{"at": value}]}]
    reason = f"holds what is not a JSON value: {said}"
    found = reasons_of(*rows)
    assert found.keys() == {1, 2}
    assert {text[: len(reason)] for text in found.values()} == {reason}


def test_half_a_character_is_a_finding() -> None:
    said = "holds half of a surrogate pair, which is no character"
    assert reasons_of(chat("Q", "A"), chat("\ud83d", "A"), chat("\U0001f600", "A")) == {1: said}
    assert reasons_of({"text": "a\udc00"}) == {0: said}
    assert reasons_of({"prompt": "Q", "completion": "\ud83d"}, conversational=False) == {0: said}


def test_rows_of_several_chunks_are_told_apart() -> None:
    rows = [chat(f"Q{index}", "A") for index in range(2500)]
    for index in (0, 999, 1000, 2499):
        rows[index] = {"messages": [{"role": "usr", "content": "Q"}]}
    assert reasons_of(*rows) == dict.fromkeys((0, 999, 1000, 2499), f"message 0: {ROLE} ('usr')")
    assert [example.row_id for example in examples_of(*(rows[1:999] + rows[1001:2499]))] == list(range(2496))


def test_shapes_may_be_mixed_in_one_chunk() -> None:
    examples = [
        Example(0, "a", "text", text=""),
        Example(1, "b", "messages", messages=({"role": "x", "content": "C"},)),
        Example(2, "c", "prompt_completion", prompt="P", completion=""),
        Example(3, "d", "text", text="T"),
    ]
    assert invalid_rows(examples) == {
        0: "its text is empty ('')",
        1: f"message 0: {ROLE} ('x')",
        2: "its completion is empty ('')",
    }
    assert invalid_rows([]) == {}


def test_schemas_as_people_see_them() -> None:
    assert column_schema("messages") == [
        ("role", "text", [ROLE]),
        ("content", "text or null", ["its content must be text", "it has neither content nor tool calls"]),
        ("tool_calls", "list or null", ["its tool_calls must be a list of calls, each with a name"]),
        ("weight", "number or null", ["its weight must be a number from 0 to 1"]),
    ]
    assert column_schema("prompt_completion") == [
        ("prompt", "text", []),
        ("completion", "text", ["its completion is empty"]),
    ]
    assert column_schema("text") == [("text", "text", ["its text is empty"])]
