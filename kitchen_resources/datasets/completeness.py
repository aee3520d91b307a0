"""Nothing of a conversation is lost: templates leave out what they don't know, and say nothing."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kitchen_resources.datasets.chat_template import Messages
from kitchen_resources.datasets.marking import Marked
from kitchen_resources.datasets.messages import Message, called_function, called_names, refuse
from kitchen_resources.errors import DataError

_FIX = "set a chat_template that writes it, or take it out of the data set"
_REASONING = ("reasoning_content", "thinking", "reasoning")


def check_complete(messages: Sequence[Message], tools: Messages | None, marked: Marked) -> None:
    """Refuse a conversation of which the template leaves a content, a tool call or a tool definition out.

    Args:
        messages: The messages as they were rendered.
        tools: Tool definitions.
        marked: What the template wrote.

    Raises:
        DataError: Something is missing; the reason names it.
    """
    for index, message in enumerate(messages):
        _check_content(index, message, marked)
        _check_calls(index, message, marked)
    for tool in tools or ():
        name = str(called_function(tool).get("name", ""))
        if name and name not in marked.text:
            raise DataError(f"the tool {name!r} is not in what the template writes", fix=_FIX)


def _check_content(index: int, message: Message, marked: Marked) -> None:
    place, content = marked.places[index], _content(message).strip()
    unmarked = place.style == "none" and content in marked.text
    if content and place.content is None and not place.content_ends and not unmarked:
        raise refuse(index, message, "has a content that the template does not write", fix=_FIX)


def _check_calls(index: int, message: Message, marked: Marked) -> None:
    for call in message.get("tool_calls", ()):
        name = str(called_function(call).get("name", ""))
        if name not in _region(index, marked):
            raise refuse(
                index, message, f"calls the tool {name!r}, and the template does not write the call", fix=_FIX
            )
        arguments = called_function(call).get("arguments")
        if (
            isinstance(arguments, str)
            and len(arguments) > 2
            and json.dumps(arguments, ensure_ascii=False) in marked.text
        ):
            raise refuse(
                index,
                message,
                f"gives the arguments of {name!r} as a JSON text, which the template encodes once more",
                fix='"arguments": {…}, an object',
            )


def check_trained(index: int, message: Message, marked: Marked, end: int) -> None:
    """Refuse a trained message of which reasoning, or a part of content or tool calls, is left out.

    Templates leave reasoning out of earlier turns by design; as something to learn it must be there.

    Args:
        index: Which message.
        message: The message as it was rendered.
        marked: What the template wrote.
        end: Where its trained text ends.

    Raises:
        DataError: Something is missing; the reason names it.
    """
    place = marked.places[index]
    begin = marked.reached[index] if marked.reached[index] <= end else 0
    written = _squeezed(marked.text[begin:end])
    if place.content is None and _squeezed(_content(message)) not in written:
        raise refuse(index, message, "is trained, and the template leaves a part of its content out", fix=_FIX)
    content = _content(message)
    if "<think>" in content and written.count("<think>") > content.count("<think>"):
        raise refuse(
            index,
            message,
            "holds reasoning in its content, before which the template writes a reasoning block of its own",
            fix='give it as "reasoning_content": "…"',
        )
    for key in _REASONING:
        reasoning = message.get(key, "")
        if isinstance(reasoning, str) and _squeezed(reasoning) not in written:
            raise refuse(index, message, f"is trained, and the template leaves its `{key}` out", fix=_FIX)
    for text in _call_texts(message):
        if _squeezed(text) not in written and _squeezed(json.dumps(text, ensure_ascii=False)[1:-1]) not in written:
            raise refuse(
                index,
                message,
                f"is trained, and the template leaves {text[:40]!r} of its tool call out",
                fix=_FIX,
            )


def _region(index: int, marked: Marked) -> str:
    """What the template wrote between the texts of the messages before and after this one."""
    begin, last = marked.reached[index], marked.places[index].last
    return marked.text[begin : marked.next_text(index, begin if last is None else max(begin, last))]


def _squeezed(text: str) -> str:
    """A text without white space, which templates add and strip."""
    return "".join(text.split())


def _content(message: Message) -> str:
    content = message.get("content", "")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _call_texts(message: Message) -> Iterator[str]:
    yield from called_names(message)
    for call in message.get("tool_calls", ()):
        yield from _leaves(called_function(call).get("arguments"))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
