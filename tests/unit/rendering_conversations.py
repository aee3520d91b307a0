"""The conversations that every chat template is tested with."""

from typing import Any

Messages = list[dict[str, Any]]


def user(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "system", "content": content, **more}


def call(name: str = "add", arguments: Any = None, id: str = "call00001") -> dict[str, Any]:
    return {
        "type": "function",
        "id": id,
        "function": {"name": name, "arguments": {"a": 1, "b": "two"} if arguments is None else arguments},
    }


def result(content: str, name: str = "add", id: str = "call00001") -> dict[str, Any]:
    return {"role": "tool", "content": content, "name": name, "tool_call_id": id}


CONVERSATIONS: dict[str, Messages] = {
    "single": [user("Q1"), assistant("A1")],
    "multi": [user("Q1"), assistant("A1"), user("Q2"), assistant("A2")],
    "system": [system("S"), user("Q1"), assistant("A1")],
    "tool": [user("Q1"), assistant("", tool_calls=[call()]), result("R1"), assistant("A1")],
    "reasoning": [
        user("Q1"),
        assistant("A1", reasoning_content="T1"),
        user("Q2"),
        assistant("A2", reasoning_content="T2"),
    ],
    "thinking": [user("Q1"), assistant("<think>\nT1\n</think>\n\nA1")],
    "spaces": [user("  Q1 \n"), assistant(" A1  "), user("Q2"), assistant("A2")],
}
