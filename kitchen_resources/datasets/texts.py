"""What people wrote in a row: its questions and its answers, without what programs and templates add."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kitchen_resources.datasets.port import Example
from kitchen_resources.datasets.rows import example_json


def texts_of(row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Questions and answers of a row. System messages and the results of tools are neither: many rows share them.

    Args:
        row: An example as prepared files hold it; see `rows.example_json`.

    Returns:
        Texts that are asked, and texts that are answered; of a pair both answers.
    """
    if "messages" in row:
        return _by_role(row["messages"])
    if "text" in row:
        return [], [row["text"]]
    prompt = row["prompt"]
    asked, answered = ([prompt], []) if isinstance(prompt, str) else _by_role(prompt)
    for answer in (row.get("completion"), row.get("chosen"), row.get("rejected")):
        if isinstance(answer, str):
            answered.append(answer)
        elif answer is not None:
            answered += _by_role(answer)[1]
    return asked, answered


def texts_of_example(example: Example) -> tuple[list[str], list[str]]:
    """As `texts_of`, of an example that isn't stored."""
    return texts_of(json.loads(example_json(example)))


def _by_role(messages: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    found: dict[str, list[str]] = {"user": [], "assistant": []}
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and message.get("role") in found:
            found[message["role"]].append(content)
    return found["user"], found["assistant"]
