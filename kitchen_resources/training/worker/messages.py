"""What workers tell: Dagster Pipes' messages, one a line of a file on the disk that they share with their launcher.

Not in what they print, where a warning of any library can land in the middle of a line.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

NAME = "messages.jsonl"
"""The file, in the folder of a worker's messages."""

Message = dict[str, Any]


def custom_messages(
    path: Path, others: Callable[[Mapping[str, Any]], None] = lambda message: None
) -> Iterator[Message | None]:
    """What is told, in order and without end; None whenever there is nothing more yet.

    Args:
        path: The file.
        others: Is given each message of Dagster Pipes' own.
    """
    with path.open("rb") as stream:
        line = b""
        while True:
            line += stream.readline()
            if not line.endswith(b"\n"):
                yield None
                continue
            message, line = json.loads(line), b""
            if message["method"] == "report_custom_message":
                payload: Message = message["params"]["payload"]
                yield payload
            else:
                others(message)
