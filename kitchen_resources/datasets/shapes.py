"""Bringing rows of every common shape to an `Example`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from kitchen_resources.datasets.port import Example, RawRow
from kitchen_resources.errors import DataError

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

_KNOWN = (
    "messages",
    "conversations",
    "prompt + completion",
    "prompt + response",
    "instruction (+ input) + output",
    "instruction (+ input) + response",
    "input + output",
    "text",
)

_LEADING = ("messages", "conversations", "prompt", "instruction", "text")
"""Columns that tell a shape by themselves, in the order in which they are looked for."""

_ASKING = frozenset({"question", "query", "input", "instruction", "prompt", "problem", "source", "user"})
_ANSWERING = frozenset({"answer", "response", "output", "completion", "solution", "target", "reply", "assistant"})


class RowProblem(Exception):
    """A single row that doesn't have its data set's shape; becomes a finding of the row report."""


Normalize = Callable[[RawRow], Example]


def shape_of(
    columns: Iterable[str], renames: Mapping[str, str], *, reference: str, conversational: bool
) -> Normalize:
    """How to bring the rows of a data set to examples, told by its columns.

    Args:
        columns: Columns of the first row.
        renames: The recipe's `columns`: {ours: theirs}.
        reference: The data set, for messages.
        conversational: Whether the model has a chat template. With one, prompts and answers become a
            conversation; without, they stay raw text.

    Raises:
        DataError: The columns are of no known shape, or `columns` names one that isn't there.
    """
    found = [str(name) for name in columns]
    present = set(found)
    for ours, theirs in renames.items():
        if theirs not in present:
            raise DataError(
                f"`columns` names {theirs!r} for {ours!r}, and the data set has {_listed(present)}",
                where=reference,
                fix=f"columns: {{{ours}: one of those}}",
            )
    names = (present - set(renames.values())) | set(renames)
    # What a recipe names explicitly goes before what else the rows hold.
    named = names & set(_LEADING) & set(renames)
    names -= set(_LEADING) - named if named else set()
    convert = _converter(names, conversational)
    if convert is None:
        raise DataError(
            f"its columns are {_listed(present)}, which is no known shape ({'; '.join(_KNOWN)})",
            where=reference,
            fix=_suggestion(found),
        )

    def normalize(row: RawRow) -> Example:
        value = dict(row.value)
        renamed = {ours: value.get(theirs) for ours, theirs in renames.items()}
        return convert(row, {**value, **renamed})

    return normalize


def _converter(names: set[str], conversational: bool) -> "Callable[[RawRow, Mapping[str, Any]], Example] | None":
    pairs = _prompt_to_messages if conversational else _prompt_to_text
    if "messages" in names:
        return lambda row, value: _messages(row, value, value.get("messages"))
    if "conversations" in names:
        return _sharegpt
    if "prompt" in names:
        for answer in ("completion", "response"):
            if answer in names:
                return lambda row, value: pairs(row, value, value.get("prompt"), value.get(answer))
        return None
    if "instruction" in names:
        for answer in ("output", "response"):
            if answer in names:
                return lambda row, value: pairs(row, value, _instruction(value), value.get(answer))
        return None
    if {"input", "output"} <= names:
        return lambda row, value: pairs(row, value, value.get("input"), value.get("output"))
    if "text" in names:
        return lambda row, value: Example(row.row_id, row.where, "text", text=_text(value.get("text"), "text"))
    return None


def _messages(row: RawRow, value: Mapping[str, Any], messages: Any) -> Example:
    if not _is_filled_list(messages):
        raise RowProblem(f"messages must be a list of at least one message, this is {_described(messages)}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RowProblem(
                f"message {index} must be an object with role and content, this is {_described(message)}"
            )
    read = tuple(_message(message, index) for index, message in enumerate(messages))
    return Example(
        row.row_id,
        row.where,
        "messages",
        messages=(*_system_before(read, value), *read),
        tools=_tools(value.get("tools")),
    )


def _sharegpt(row: RawRow, value: Mapping[str, Any]) -> Example:
    turns = value.get("conversations")
    if not _is_filled_list(turns):
        raise RowProblem(f"conversations must be a list of at least one turn, this is {_described(turns)}")
    messages: list[Mapping[str, Any]] = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise RowProblem(f"turn {index} must be an object with from and value, this is {_described(turn)}")
        if "role" in turn and "from" not in turn:
            messages.append(turn)
            continue
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
            raise RowProblem(f"turn {index} is from {speaker!r}, which is none of {', '.join(_SHAREGPT_ROLES)}")
        others = {key: item for key, item in turn.items() if key not in ("from", "value")}
        messages.append({**others, "role": _SHAREGPT_ROLES[speaker], "content": turn.get("value")})
    return _messages(row, value, messages)


def _prompt_to_messages(row: RawRow, value: Mapping[str, Any], prompt: Any, answer: Any) -> Example:
    if _is_messages(prompt):
        answers = answer if _is_messages(answer) else [{"role": "assistant", "content": _text(answer, "completion")}]
        return _messages(row, value, [*prompt, *answers])
    asked = {"role": "user", "content": _text(prompt, "prompt")}
    return _messages(row, value, [asked, {"role": "assistant", "content": _text(answer, "completion")}])


def _prompt_to_text(row: RawRow, value: Mapping[str, Any], prompt: Any, answer: Any) -> Example:
    if _is_messages(prompt):
        return _prompt_to_messages(row, value, prompt, answer)
    for name in ("system", "tools"):
        if value.get(name):
            raise RowProblem(f"has `{name}`, which raw text has no place for; set a chat_template")
    return Example(
        row.row_id,
        row.where,
        "prompt_completion",
        prompt=_text(prompt, "prompt"),
        completion=_text(answer, "completion"),
    )


def _system_before(messages: Sequence[Mapping[str, Any]], value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The system message that a row holds as a column of its own, unless its messages begin with it."""
    system = value.get("system")
    if not isinstance(system, str) or not system:
        return []
    if messages[0].get("role") not in ("system", "developer"):
        return [{"role": "system", "content": system}]
    if messages[0].get("content") != system:
        raise RowProblem("has `system` and another system message in its conversation")
    return []


def _instruction(value: Mapping[str, Any]) -> Any:
    instruction = _text(value.get("instruction"), "instruction")
    context = value.get("input")
    return f"{instruction}\n\n{_text(context, 'input')}" if context else instruction


def _tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    if tools is None:
        return ()
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowProblem(f"tools must be a list of tool definitions, this is {_described(tools)}")
    return tuple(dict(tool) for tool in tools)


def _message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
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


def _is_messages(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowProblem(f"{name} must be text, this is {_described(value)}")
    return value


def _described(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}" if value is not None else "missing"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


def _suggestion(columns: Sequence[str]) -> str:
    """The line to write, with the columns that look like a question and an answer, else the first ones."""
    if len(columns) == 1:
        return f"columns: {{text: {columns[0]}}}"
    prompt = _first(columns, lambda name: name in _ASKING, lambda name: name not in _ANSWERING)
    answer = _first(columns, lambda name: name in _ANSWERING, lambda name: name != prompt)
    return f"columns: {{prompt: {prompt}, completion: {answer}}}"


def _first(columns: Sequence[str], *tests: Callable[[str], bool]) -> str:
    return next((name for test in tests for name in columns if test(name)), "…")
