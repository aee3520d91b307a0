"""What the tests of rendering share: messages, conversations, renderers, and what they learn or refuse."""

from typing import Any

import pytest

from kitchen_resources.datasets.rendering import Renderer
from kitchen_resources.datasets.templating import load_template
from kitchen_resources.errors import DataError
from tests.tiny_tokenizers import byte_tokenizer, tokenizer_for, trl_templates

Messages = list[dict[str, Any]]

TEMPLATES = trl_templates()


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


def renderer(template: str, train_on: str = "all_assistant_messages", tokenizer: Any = None) -> Renderer:
    tokenizer = tokenizer or byte_tokenizer()
    return Renderer(tokenizer, train_on=train_on, template=template)


def chatml(train_on: str = "all_assistant_messages", tokenizer: Any = None) -> Renderer:
    tokenizer = tokenizer or byte_tokenizer()
    return renderer(load_template("chatml", tokenizer) or "", train_on, tokenizer)


def shipped(name: str, train_on: str = "all_assistant_messages") -> Renderer:
    return renderer(TEMPLATES[name], train_on, tokenizer_for(TEMPLATES[name]))


def learned(used: Renderer, messages: Any, **more: Any) -> str:
    return used.conversation(messages, **more).trained_text(used.tokenizer)


def reason(used: Renderer, messages: Any, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        used.conversation(messages, **more)
    assert caught.value.fix
    return caught.value.what
