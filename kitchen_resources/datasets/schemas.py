"""Pandera schemas of normalised rows, one a shape: vectorised over a chunk of rows at a time."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from kitchen_resources.datasets.messages import ROLES, called_function
from kitchen_resources.datasets.port import Example

_CONTENTS = ("content", "tool_calls", "reasoning_content", "reasoning", "thinking")


def invalid_rows(examples: Sequence[Example]) -> dict[int, str]:
    """The rows of a chunk that break their shape's schema: row id -> the first reason."""
    by_shape: dict[str, list[Example]] = {}
    for example in examples:
        by_shape.setdefault(example.shape, []).append(example)
    problems: dict[int, str] = {}
    for shape, members in by_shape.items():
        problems.update(_failures(_frame(shape, members), _schema(shape)))
    return problems


_TYPES = {"content": "text or null", "tool_calls": "list or null", "weight": "number or null"}
_OF_CONTENT = "has_content"


def column_schema(shape: str) -> list[tuple[str, str, list[str]]]:
    """Name, type and what is refused of a shape's columns, for people to see."""
    errors = {name: [check.error for check in column.checks] for name, column in _schema(shape).columns.items()}
    # Not a column of anybody's rows, but what the schema asks of content and tool calls together.
    together = errors.pop(_OF_CONTENT, [])
    if together:
        errors["content"] += together
    return [(name, _TYPES.get(name, "text"), said) for name, said in errors.items()]


def _frame(shape: str, examples: Sequence[Example]) -> Any:
    """One line a message for conversations, one a row for raw text."""
    import pandas as pd

    if shape == "messages":
        lines = [
            {
                "row_id": example.row_id,
                "position": index,
                "role": message.get("role"),
                "content": message.get("content"),
                "tool_calls": message.get("tool_calls"),
                "has_content": _has_content(message),
                "weight": message.get("weight", 1.0),
            }
            for example in examples
            for index, message in enumerate(example.messages)
        ]
        return pd.DataFrame(lines, dtype=object)
    if shape == "prompt_completion":
        return pd.DataFrame(
            [{"row_id": e.row_id, "prompt": e.prompt, "completion": e.completion} for e in examples],
            dtype=object,
        )
    return pd.DataFrame([{"row_id": e.row_id, "text": e.text} for e in examples], dtype=object)


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
                _OF_CONTENT: column(lambda flags: flags.astype(bool), "it has neither content nor tool calls"),
                "weight": column(lambda weights: weights.map(_is_weight), "its weight must be a number from 0 to 1"),
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
            place = f"message {line['position']}: " if "position" in frame else ""
            said = f" ({str(value)[:40]!r})" if not isinstance(value, bool) else ""
            problems.setdefault(int(line["row_id"]), f"{place}{check}{said}")
        return problems
