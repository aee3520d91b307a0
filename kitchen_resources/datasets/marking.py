"""Where a template puts each message: found by rendering the conversation once more with marked texts.

Every text of a message is put between characters that nothing else uses. Where they come out, there is the
text. The template must write the same as without them, to the character, so nothing is concluded from a
rendering that the marks have changed. One rendering places every message, whatever the template puts before,
between or into them: default system prompts, tools, a system message inside the first user turn, rewritten
history.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from kitchen_resources.datasets.chat_template import ChatTemplate, Messages, RenderedText
from kitchen_resources.datasets.messages import Message
from kitchen_resources.errors import DataError

Style = Literal["whole", "core", "content", "none"]
"""How a message is marked: its texts whole; without the white space at their ends, for templates that strip
it (empty texts stay unmarked); only its content, without that white space; or not at all."""

_STYLES: tuple[Style, ...] = ("whole", "core", "content", "none")
_PLANES = (0xF0000, 0x100000)
_PLANE_SIZE = 0xFFFE
_OPEN, _CLOSE, _OTHER, _STRIDE = 0, 1, 2, 3
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the texts of one message came out, in characters of the unmarked text.

    Attributes:
        style: How it was marked.
        first: Where its first text begins, and `last` where its last one ends; None when none came out.
        last: See `first`.
        content: Where its content begins and ends, when it came out whole and once.
        content_ends: Whether the end of its content came out, possibly without its beginning.
        others: Whether a text of its reasoning or of the arguments of its tool calls came out.
        marks: Its `{% generation %}` blocks.
    """

    style: Style
    first: int | None
    last: int | None
    content: tuple[int, int] | None
    content_ends: bool
    others: bool
    marks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Marked:
    """A conversation as the template writes it, with the place of each message.

    Attributes:
        text: What the template writes.
        places: One per message.
        template_marks: Whether there are `{% generation %}` blocks.
        edges: Where the first and last texts of messages begin and end, with their message, in order.
        reached: For each message, how far the texts of the messages before it reach.
    """

    text: str
    places: tuple[Place, ...]
    template_marks: bool
    edges: tuple[tuple[int, int], ...]
    reached: tuple[int, ...]

    def holds_other_text(self, index: int, start: int, end: int) -> bool:
        """Whether a text of another message than this one begins or ends inside a stretch."""
        inside = self.edges[bisect_left(self.edges, (start + 1,)) : bisect_left(self.edges, (end,))]
        return any(owner != index for _, owner in inside)

    def next_text(self, index: int, position: int) -> int:
        """Where, from a position on, the next text of another message is; the end when there is none."""
        for at in range(bisect_left(self.edges, (position,)), len(self.edges)):
            edge, owner = self.edges[at]
            if owner != index:
                return edge
        return len(self.text)


def mark_conversation(template: ChatTemplate, messages: Sequence[Message], tools: Messages | None) -> Marked:
    """Render a conversation and find the place of each message.

    Raises:
        DataError: The template refuses the conversation.
    """
    plain = template.render(messages, tools)
    pens = _Pens(plain.text, len(messages))
    styles: list[Style] = ["whole"] * len(messages)
    marked = _render(template, messages, tools, pens, styles, plain.text)
    if marked is None:
        # Rare: a template that strips white space, or looks at the ends of a text or whether it is empty.
        styles = [_style_of(template, messages, tools, pens, index, plain.text) for index in range(len(messages))]
        marked = _render(template, messages, tools, pens, styles, plain.text)
    if marked is None:
        marked, styles = plain, ["none"] * len(messages)
    return _read(plain.text, marked, pens, styles)


def _render(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Messages | None,
    pens: "_Pens",
    styles: Sequence[Style],
    plain: str,
) -> RenderedText | None:
    """The conversation with marked texts; None when the marks change what the template writes."""
    marked = [
        pens.mark(index, message, style) for index, (message, style) in enumerate(zip(messages, styles, strict=True))
    ]
    try:
        # role_colon marks the contents of all messages when asked to; others don't read the variable.
        rendered = template.render(marked, tools, mark_all_messages=True)
    except DataError:
        return None
    return rendered if pens.erase(rendered.text) == plain else None


def _style_of(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Messages | None,
    pens: "_Pens",
    index: int,
    plain: str,
) -> Style:
    """The first style in which marking this message alone leaves the text as it is."""
    for style in _STYLES[:-1]:
        styles: list[Style] = ["none"] * len(messages)
        styles[index] = style
        if _render(template, messages, tools, pens, styles, plain) is not None:
            return style
    return "none"


class _Pens:
    """The marking characters of a conversation: three a message, of a private plane that it doesn't use."""

    def __init__(self, text: str, messages: int) -> None:
        if messages * _STRIDE > _PLANE_SIZE:
            raise DataError(
                f"the conversation has {messages} messages; at most {_PLANE_SIZE // _STRIDE} can be placed"
            )
        for base in _PLANES:
            found = re.compile(f"[{chr(base)}-{chr(base + _PLANE_SIZE - 1)}]")
            if not found.search(text):
                self.base, self.found = base, found
                return
        raise DataError(
            "the conversation uses both private planes of Unicode (U+F0000, U+100000), which place messages",
            fix="remove private characters, such as icon fonts', from the row",
        )

    def erase(self, text: str) -> str:
        return self.found.sub("", text)

    def mark(self, index: int, message: Message, style: Style) -> Message:
        if style == "none":
            return message
        opens, closes, other = (chr(self.base + _STRIDE * index + kind) for kind in (_OPEN, _CLOSE, _OTHER))
        marked = dict(message)
        content = message.get("content")
        # An empty content beside tool calls is where the template has it, which says nothing of the calls.
        if content is not None and not ("tool_calls" in message and _is_blank(content)):
            marked["content"] = (
                _wrap(content, opens, closes, style)
                if isinstance(content, str)
                else [{**part, "text": _wrap(part["text"], opens, closes, style)} for part in content]
            )
        if style == "content":
            return marked
        for key in _REASONING:
            if key in message:
                marked[key] = _wrap_all(message[key], other, style)
        if "tool_calls" in message:
            marked["tool_calls"] = [_wrap_call(call, other, style) for call in message["tool_calls"]]
        return marked


def _is_blank(content: Any) -> bool:
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return not any(text.strip() for text in texts)


def _wrap(text: str, opens: str, closes: str, style: Style) -> str:
    if style == "whole":
        return opens + text + closes
    core = text.strip()
    if not core:
        return text
    start = text.index(core)
    return text[:start] + opens + core + closes + text[start + len(core) :]


def _wrap_all(value: Any, other: str, style: Style) -> Any:
    if isinstance(value, str):
        return _wrap(value, other, other, style)
    if isinstance(value, dict):
        return {key: _wrap_all(item, other, style) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_wrap_all(item, other, style) for item in value]
    return value


def _wrap_call(call: Any, other: str, style: Style) -> Any:
    """Mark the arguments of a tool call; not its name, which templates write into the tool's answer too."""
    if not isinstance(call, dict):
        return call
    marked = dict(call)
    if isinstance(call.get("function"), dict):
        marked["function"] = _wrap_call(call["function"], other, style)
    if "arguments" in call:
        marked["arguments"] = _wrap_all(call["arguments"], other, style)
    return marked


def _read(text: str, marked: RenderedText, pens: _Pens, styles: Sequence[Style]) -> Marked:
    raw: list[int] = []
    owners: list[int] = []
    kinds: list[int] = []
    for match in pens.found.finditer(marked.text):
        owner, kind = divmod(ord(match.group()) - pens.base, _STRIDE)
        raw.append(match.start())
        owners.append(owner)
        kinds.append(kind)
    positions = [place - before for before, place in enumerate(raw)]
    marks = _own_marks(marked.marks, raw, owners, len(styles))
    seen: list[list[int]] = [[] for _ in styles]
    for index, owner in enumerate(owners):
        if owner < len(styles):
            seen[owner].append(index)
    places: list[Place] = []
    for owner, style in enumerate(styles):
        mine = seen[owner]
        first = positions[mine[0]] if mine else None
        opened = [positions[index] for index in mine if kinds[index] == _OPEN]
        closed = [positions[index] for index in mine if kinds[index] == _CLOSE]
        places.append(
            Place(
                style=style,
                first=first,
                last=positions[mine[-1]] if mine else None,
                content=(opened[0], closed[0]) if len(opened) == len(closed) == 1 else None,
                content_ends=bool(closed),
                others=any(kinds[index] == _OTHER for index in mine),
                marks=marks[owner],
            )
        )
    edges = sorted(
        (edge, owner) for owner, place in enumerate(places) for edge in (place.first, place.last) if edge is not None
    )
    reached = accumulate((place.last or 0 for place in places[:-1]), max, initial=0)
    return Marked(text, tuple(places), bool(marked.marks), tuple(edges), tuple(reached))


def _own_marks(
    marks: Sequence[tuple[int, int]], raw: Sequence[int], owners: Sequence[int], messages: int
) -> list[tuple[tuple[int, int], ...]]:
    """The blocks of each message: those that hold one of its texts, and those that follow one at once."""
    own: list[list[tuple[int, int]]] = [[] for _ in range(messages)]
    owner: int | None = None
    reached = -1
    for start, end in marks:
        low, high = bisect_left(raw, start), bisect_left(raw, end)
        if low < high:
            owner = owners[low]
        elif start != reached:
            owner = None
        reached = end
        if owner is not None and owner < messages:
            own[owner].append((start - low, end - high))
    return [tuple(spans) for spans in own]
