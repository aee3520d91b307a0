"""Chat messages: what a valid one is, and which of them are trained."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kitchen_resources.errors import DataError

TRAIN_ON = (
    "last_assistant_message",
    "all_assistant_messages",
    "all_messages",
    "all_tokens",
    "all_user_and_system_messages",
    "customized",
)
"""What of a conversation is trained. A message is header, content with the token that ends the turn, and what
the template writes from there to the next header. Contents are trained where the mode says so, headers only
by `all_tokens`, which trains everything but a leading BOS. `all_user_and_system_messages` leaves tool results
out: they are written by programs. In `customized` every message carries `trainable` (true or false) or
`weight` (0 to 1)."""

ROLES = ("system", "developer", "user", "assistant", "tool")
"""`developer` is what newer templates call `system`; both count as system messages."""

_WEIGHT_KEYS = ("trainable", "weight")

Message = dict[str, Any]


def refuse(index: int, message: Mapping[str, Any], what: str, fix: str = "") -> DataError:
    """The error of one message; `what` goes on after "message 2 (user) "."""
    return DataError(f"message {index} ({message.get('role')}) {what}", fix=fix)


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages as templates see them: without the keys that say what is trained, and without empty keys.

    A key whose value is None is dropped, as `apply_chat_template` does, and so is an empty `tool_calls`: both
    are how columnar files write "no such key".

    Raises:
        DataError: There is no message, or one is not an object with a known role and text as its content.
    """
    if not messages:
        raise DataError("the conversation has no message", fix="remove the row")
    return [_read_message(index, message) for index, message in enumerate(messages)]


def _read_message(index: int, message: Mapping[str, Any]) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(
            f"message {index} is a {type(message).__name__}, not an object",
            fix='{"role": "user", "content": "…"}',
        )
    role = message.get("role")
    if role not in ROLES:
        raise DataError(
            f"message {index} has the role {role!r}, which is none of {', '.join(ROLES)}",
            fix='"role": "user"',
        )
    read = {
        str(key): value
        for key, value in message.items()
        if value is not None and key not in _WEIGHT_KEYS and not (key == "tool_calls" and not value)
    }
    if not isinstance(read.get("content", ""), str):
        kind = type(read["content"]).__name__
        raise refuse(index, message, f"has a {kind} as its content, not text", fix='"content": "…"')
    if "content" not in read and not any(
        key in read for key in ("tool_calls", "reasoning_content", "reasoning", "thinking")
    ):
        raise refuse(index, message, "has neither content nor tool calls", fix='"content": "…"')
    return read


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys too.

    Raises:
        DataError: Something in it is not a JSON value.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from texts_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_of(item)
    elif not (value is None or isinstance(value, (bool, int, float))):
        raise DataError(
            f"a message holds a {type(value).__name__}, which is not a JSON value", fix="write it as text"
        )


def message_weights(messages: Sequence[Mapping[str, Any]], train_on: str) -> list[float]:
    """The loss weight of each message's content.

    Args:
        messages: Valid messages, still with the keys that say what is trained.
        train_on: One of `TRAIN_ON`. For `all_tokens` every weight is 1.

    Raises:
        DataError: The messages contradict the mode: the last one is not the assistant's, a weight is missing,
            or there are weights that the mode would ignore.
    """
    if train_on == "customized":
        return [_own_weight(index, message) for index, message in enumerate(messages)]
    for index, message in enumerate(messages):
        for key in _WEIGHT_KEYS:
            if message.get(key) is not None:
                raise refuse(
                    index,
                    message,
                    f"carries `{key}`, which train_on: {train_on} would ignore",
                    fix="train_on: customized",
                )
    if train_on == "last_assistant_message":
        last = len(messages) - 1
        if messages[last]["role"] != "assistant":
            raise DataError(
                f"the last message is the {messages[last]['role']}'s, and train_on: last_assistant_message "
                "needs the assistant's",
                fix="train_on: all_assistant_messages, or remove the messages after the last answer",
            )
        return [float(index == last) for index in range(len(messages))]
    trained = {
        "all_assistant_messages": ("assistant",),
        "all_user_and_system_messages": ("user", "system", "developer"),
    }.get(train_on, ROLES)
    return [float(message["role"] in trained) for message in messages]


def _own_weight(index: int, message: Mapping[str, Any]) -> float:
    given = [key for key in _WEIGHT_KEYS if message.get(key) is not None]
    fix = '"trainable": true on every message, or "weight": 0 to 1'
    if len(given) != 1:
        found = "both `trainable` and `weight`" if given else "neither `trainable` nor `weight`"
        raise refuse(index, message, f"carries {found}, and train_on: customized needs one of them", fix=fix)
    value = message[given[0]]
    if given[0] == "trainable" and isinstance(value, bool):
        return float(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if given[0] == "weight" and number and math.isfinite(value) and 0 <= value <= 1:
        return float(value)
    raise refuse(index, message, f"carries `{given[0]}: {value!r}`", fix=fix)


def called_function(call: Any) -> Mapping[str, Any]:
    """Name and arguments of a tool call or definition, whether or not it has them inside `function`."""
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    return function if isinstance(function, Mapping) else {}


def called_names(message: Mapping[str, Any]) -> list[str]:
    """The names of the tools that a message calls."""
    return [str(called_function(call).get("name", "")) for call in message.get("tool_calls", ())]
