"""Reading the values of a raw row: texts, messages in both of their common forms, tools and a system text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from kitchen_resources.datasets.port import Example, RawRow

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}

Message = Mapping[str, Any]

Convert = Callable[[RawRow, Mapping[str, Any]], Example]
"""An example of a raw row and its columns, renamed as the recipe says."""


class RowProblem(Exception):
    """A single row that doesn't have its data set's shape; becomes a finding of the row report."""


def read_text(value: Any, name: str) -> str:
    """A value that must be text. Raises `RowProblem`, naming what it is instead."""
    if not isinstance(value, str):
        raise RowProblem(f"{name} must be text, this is {described(value)}")
    return value


def read_messages(messages: Any) -> tuple[dict[str, Any], ...]:
    """Messages as templates read them. Raises `RowProblem` where they are no list of at least one message."""
    if not _is_filled_list(messages):
        raise RowProblem(f"messages must be a list of at least one message, this is {described(messages)}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RowProblem(f"message {index} must be an object with role and content, this is {described(message)}")
    return tuple(_message(message, index) for index, message in enumerate(messages))


def from_turns(turns: Any) -> list[Message]:
    """ShareGPT's turns (`from`, `value`) as messages; turns with a role are messages already.

    Raises:
        RowProblem: They are no list of at least one turn, or a speaker isn't known.
    """
    if not _is_filled_list(turns):
        raise RowProblem(f"conversations must be a list of at least one turn, this is {described(turns)}")
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise RowProblem(f"turn {index} must be an object with from and value, this is {described(turn)}")
        if "role" in turn and "from" not in turn:
            messages.append(turn)
            continue
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
            raise RowProblem(f"turn {index} is from {speaker!r}, which is none of {', '.join(_SHAREGPT_ROLES)}")
        others = {key: item for key, item in turn.items() if key not in ("from", "value")}
        messages.append({**others, "role": _SHAREGPT_ROLES[speaker], "content": turn.get("value")})
    return messages


def with_system(messages: Sequence[Message], value: Mapping[str, Any]) -> tuple[Message, ...]:
    """Messages with the system text that a row holds as a column of its own, unless they begin with it.

    Raises:
        RowProblem: They begin with another one.
    """
    system = value.get("system")
    if not isinstance(system, str) or not system:
        return tuple(messages)
    if messages[0].get("role") not in ("system", "developer"):
        return ({"role": "system", "content": system}, *messages)
    if messages[0].get("content") != system:
        raise RowProblem("has `system` and another system message in its conversation")
    return tuple(messages)


def read_tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    """Tool definitions, none where there is no value. Raises `RowProblem` where they are no list of objects."""
    if tools is None:
        return ()
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowProblem(f"tools must be a list of tool definitions, this is {described(tools)}")
    return tuple(dict(tool) for tool in tools)


def refuse_chat_columns(value: Mapping[str, Any]) -> None:
    """Refuse what raw text has no place for. Raises `RowProblem`."""
    for name in ("system", "tools"):
        if value.get(name):
            raise RowProblem(f"has `{name}`, which raw text has no place for; set a chat_template")


def is_messages(value: Any) -> bool:
    """Whether a value is a list of at least one object, and of nothing else."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def described(value: Any) -> str:
    """A value for messages: its type and how it begins."""
    return f"{type(value).__name__} {str(value)[:60]!r}" if value is not None else "missing"


def listed(names: Iterable[str]) -> str:
    """Column names for messages."""
    return ", ".join(sorted(map(str, names))) or "none"


def _message(message: Message, index: int) -> dict[str, Any]:
    """A message as templates read it: its content one text, and no key that it doesn't have.

    `"content": null` beside tool calls is common, and so is content as a list of text parts.
    """
    known = {key: item for key, item in message.items() if item is not None}
    content = known.get("content")
    if isinstance(content, (list, tuple)):
        parts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise RowProblem(f"message {index} has a part that is not text; images and audio can't be trained on")
        known["content"] = "".join(part for part in parts if part is not None)
    return known


def _is_filled_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and bool(value)
