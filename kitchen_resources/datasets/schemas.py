"""Pandera schemas of normalised rows, one a shape: vectorised over a chunk of rows at a time."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from kitchen_resources.datasets.messages import ROLES, called_function
from kitchen_resources.datasets.port import Answer, Example

_CONTENTS = ("content", "tool_calls", "reasoning_content", "reasoning", "thinking")


def invalid_rows(examples: Sequence[Example]) -> dict[int, str]:
    """The rows of a chunk that break their shape's schema: row id -> the first reason."""
    by_shape: dict[str, list[Example]] = {}
    for example in examples:
        by_shape.setdefault(example.shape, []).append(example)
    problems: dict[int, str] = {}
    for shape, members in by_shape.items():
        found = _failures(_frame(shape, members), _schema(shape))
        if shape == "preference":
            whole = [example for example in members if example.row_id not in found and example.messages]
            found.update(_failures(_message_lines(whole), _schema("messages")) if whole else {})
        problems.update(found)
    return problems


_TYPES = {
    ("messages", "content"): "text or null",
    ("messages", "tool_calls"): "list or null",
    ("messages", "weight"): "number or null",
    ("preference", "prompt"): "text or messages",
    ("preference", "chosen"): "text or message",
    ("preference", "rejected"): "text or message",
}
_ASKED_OF = {"has_content": "content", "has_chosen": "chosen", "has_rejected": "rejected", "differ": "rejected"}
"""What a schema asks of several columns together, or of a part of one: no column of anybody's rows."""


def column_schema(shape: str) -> list[tuple[str, str, list[str]]]:
    """Name, type and what is refused of a shape's columns, for people to see."""
    if shape == "problem":
        return [("prompt", "messages", ["the environment can't take the problem"]), ("problem", "JSON object", [])]
    errors: dict[str, list[str]] = {}
    for name, column in _schema(shape).columns.items():
        errors.setdefault(_ASKED_OF.get(name, name), []).extend(check.error for check in column.checks)
    return [(name, _TYPES.get((shape, name), "text"), said) for name, said in errors.items()]


def _frame(shape: str, examples: Sequence[Example]) -> Any:
    """One line a message for conversations, one a row for raw text and for pairs."""
    import pandas as pd

    if shape == "messages":
        return _message_lines(examples)
    if shape == "preference":
        pairs = [
            {
                "row_id": example.row_id,
                "prompt": example.messages or example.prompt,
                "chosen": example.chosen,
                "has_chosen": _says_something(example.chosen),
                "rejected": example.rejected,
                "has_rejected": _says_something(example.rejected),
                "differ": example.chosen != example.rejected,
            }
            for example in examples
        ]
        return pd.DataFrame(pairs, dtype=object)
    if shape == "prompt_completion":
        return pd.DataFrame(
            [{"row_id": e.row_id, "prompt": e.prompt, "completion": e.completion} for e in examples],
            dtype=object,
        )
    return pd.DataFrame([{"row_id": e.row_id, "text": e.text} for e in examples], dtype=object)


def _message_lines(examples: Sequence[Example]) -> Any:
    """One line a message; of a pair, those of its prompt and of both answers."""
    import pandas as pd

    lines = [
        {
            "row_id": example.row_id,
            "place": place,
            "role": message.get("role"),
            "content": message.get("content"),
            "tool_calls": message.get("tool_calls"),
            "has_content": _has_content(message),
            "weight": message.get("weight", 1.0),
        }
        for example in examples
        for place, message in _places(example)
    ]
    return pd.DataFrame(lines, dtype=object)


def _places(example: Example) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for index, message in enumerate(example.messages):
        yield f"message {index}", message
    for name, answer in (("chosen", example.chosen), ("rejected", example.rejected)):
        for message in answer if isinstance(answer, tuple) else ():
            yield name, message


def _says_something(answer: Answer) -> bool:
    if isinstance(answer, tuple) and _is_text_or_messages(answer):
        return any(map(_has_content, answer))
    return bool(answer)


def _has_content(message: Any) -> bool:
    return any(bool(message.get(key)) for key in _CONTENTS)


@lru_cache(maxsize=8)
def _schema(shape: str) -> Any:
    import pandera.pandas as pa

    def column(check: Any, error: str, dtype: Any = object) -> Any:
        return pa.Column(dtype, pa.Check(check, error=error, ignore_na=False), nullable=True)

    if shape == "messages":
        return pa.DataFrameSchema(
            {
                "role": column(lambda roles: roles.isin(ROLES), f"its role is none of {', '.join(ROLES)}"),
                "content": column(lambda contents: contents.map(_is_text_or_absent), "its content must be text"),
                "tool_calls": column(
                    lambda calls: calls.map(_are_calls_or_absent),
                    "its tool_calls must be a list of calls, each with a name",
                ),
                "has_content": column(lambda flags: flags.astype(bool), "it has neither content nor tool calls"),
                "weight": column(lambda weights: weights.map(_is_weight), "its weight must be a number from 0 to 1"),
            }
        )
    if shape == "preference":
        return pa.DataFrameSchema(
            {
                "prompt": column(
                    lambda prompts: prompts.map(_is_text_or_messages), "its prompt must be text or messages"
                ),
                "chosen": column(
                    lambda answers: answers.map(_is_text_or_messages), "its chosen answer must be text or a message"
                ),
                "has_chosen": column(lambda flags: flags.astype(bool), "its chosen answer is empty"),
                "rejected": column(
                    lambda answers: answers.map(_is_text_or_messages), "its rejected answer must be text or a message"
                ),
                "has_rejected": column(lambda flags: flags.astype(bool), "its rejected answer is empty"),
                "differ": column(lambda flags: flags.astype(bool), "chosen and rejected are the same"),
            }
        )
    if shape == "prompt_completion":
        return pa.DataFrameSchema(
            {
                "prompt": pa.Column(object),
                "completion": column(lambda texts: texts.str.len() > 0, "its completion is empty"),
            }
        )
    return pa.DataFrameSchema({"text": column(lambda texts: texts.str.len() > 0, "its text is empty")})


def _is_text_or_absent(content: Any) -> bool:
    return content is None or isinstance(content, str)


def _is_text_or_messages(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, tuple) and all(isinstance(message, Mapping) for message in value)
    )


def _are_calls_or_absent(calls: Any) -> bool:
    return calls is None or (isinstance(calls, (list, tuple)) and all(map(_names_a_function, calls)))


def _names_a_function(call: Any) -> bool:
    name = called_function(call).get("name")
    return isinstance(name, str) and name != ""


def _is_weight(weight: Any) -> bool:
    return isinstance(weight, (int, float)) and 0 <= weight <= 1


def _failures(frame: Any, schema: Any) -> dict[int, str]:
    import pandera.errors

    try:
        schema.validate(frame, lazy=True)
        return {}
    except pandera.errors.SchemaErrors as errors:
        problems: dict[int, str] = {}
        cases = errors.failure_cases
        for index, check, value in zip(cases["index"], cases["check"], cases["failure_case"], strict=True):
            if index is None or index != index:
                raise
            line = frame.loc[index]
            place = f"{line['place']}: " if "place" in frame else ""
            said = f" ({str(value)[:40]!r})" if not isinstance(value, bool) else ""
            problems.setdefault(int(line["row_id"]), f"{place}{check}{said}")
        return problems
