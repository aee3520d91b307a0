"""Prepared rows as chat lines, for services that render and tokenize them themselves.

{"messages": [{"role": …, "content": …, "weight": 0 or 1}, …], "tools": […]}
{"input": {"messages": […], "tools": […]}, "preferred_output": […], "non_preferred_output": […]}
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kitchen_resources.datasets.port import LocalDataset
from kitchen_resources.errors import DataError

TRAINED = ("last_assistant_message", "all_assistant_messages", "customized")
"""What such lines can say of which tokens are learned: answers, whole."""

Line = dict[str, Any]


def write_lines(data: LocalDataset, train_on: str, path: Path) -> None:
    """Write the prepared rows to a JSONL file, in their order.

    Args:
        data: The rows, unpacked.
        train_on: Of the recipe: one of `TRAINED`; not read of pairs.
        path: The file.

    Raises:
        DataError: A row can't be said so.
    """
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for batch in pyarrow.parquet.ParquetFile(data.path).iter_batches(columns=["row_id", "example"]):
            for row in batch.to_pylist():
                try:
                    line = chat_line(json.loads(row["example"]), train_on)
                except DataError as error:
                    raise DataError(error.what, where=f"row {row['row_id']}", fix=error.fix) from None
                stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def chat_line(example: Mapping[str, Any], train_on: str) -> Line:
    """One prepared example as a line.

    Raises:
        DataError: It is raw text, or trains what such a line can't say.
    """
    tools = {"tools": list(example["tools"])} if example.get("tools") else {}
    if "chosen" in example:
        asked = _conversation(example["prompt"])
        return {
            "input": {"messages": [_plain(message) for message in asked], **tools},
            "preferred_output": [_plain(message) for message in _conversation(example["chosen"])],
            "non_preferred_output": [_plain(message) for message in _conversation(example["rejected"])],
        }
    messages = _conversation(example.get("messages"))
    weights = list(_weights(messages, train_on))
    said = [
        {**_plain(message), **({} if weight is None else {"weight": weight})}
        for message, weight in zip(messages, weights, strict=True)
    ]
    return {"messages": said, **tools}


def _conversation(value: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise DataError("is raw text, and the service takes conversations", fix="name a chat_template, or messages")
    return value


def _plain(message: Mapping[str, Any]) -> Line:
    """A message without what says whether it is trained, and without empty keys."""
    # As the kitchen's own rendering reads it: columnar files write an absent key as an empty one.
    absent = {key for key, value in message.items() if value is None or (key == "tool_calls" and not value)}
    kept = {key: value for key, value in message.items() if key not in {"weight", "trainable", *absent}}
    # The service knows no other name for it.
    return {**kept, "role": "system"} if kept["role"] == "developer" else kept


def _weights(messages: Sequence[Mapping[str, Any]], train_on: str) -> Iterator[int | None]:
    """The weight of each answer; None for what is no answer, which is never trained."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for index, message in enumerate(messages):
        asked = float(message.get("weight", message.get("trainable", 0)) or 0) if train_on == "customized" else None
        if asked is not None and asked not in (0.0, 1.0):
            raise DataError(f"message {index} has the weight {asked:g}, and the service takes 0 and 1", fix="0 or 1")
        if message["role"] != "assistant":
            if asked:
                raise DataError(
                    f"message {index} ({message['role']}) is trained, and the service trains answers alone"
                )
            yield None
        elif asked is not None:
            yield int(asked)
        else:
            yield int(train_on == "all_assistant_messages" or index == answers[-1])
