"""Which characters of a rendered conversation are trained.

An assistant's content begins where the generation prompt for it ends, as inference has it, and ends with the
token that ends its turn. `{% generation %}` blocks are the template's own word on it: they must not begin
after the generation prompt; where they begin before, in the header, they are cut there, because what is given
is never trained; text that they leave out in the middle of a turn stays untrained. A block that leaves the
end token out is extended by it, when it is the very next thing, and refused otherwise: a model that isn't
trained to stop doesn't. What a block holds beyond the end token (mostly a newline) is not trained, so
templates with and without blocks train the same.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise

from kitchen_resources.datasets.chat_template import ChatTemplate, Messages
from kitchen_resources.datasets.encoding import Encoded, Span
from kitchen_resources.datasets.marking import Marked, Place, mark_conversation
from kitchen_resources.datasets.messages import Message, called_function, called_names, refuse, texts_of
from kitchen_resources.datasets.turns import PROBES, Turns, as_parts
from kitchen_resources.errors import DataError

_OTHER_TEMPLATE = "a template with {% generation %} blocks, as TRL's chat_templates/*_training.jinja are"
_FIX = f"train_on: last_assistant_message, or all_tokens, or {_OTHER_TEMPLATE}"


class SpanFinder:
    """Finds the trained spans of conversations in one template."""

    def __init__(self, template: ChatTemplate, turns: Turns) -> None:
        self._template = template
        self._turns = turns
        # The default first: it is what a served model is prompted with.
        self._prompt_variables: list[dict[str, bool]] = [{}]
        if "enable_thinking" in template.variables:
            self._prompt_variables += [{"enable_thinking": False}, {"enable_thinking": True}]
        self._agreeing = self._find_agreeing()

    def find(
        self,
        messages: Sequence[Message],
        tools: Messages | None,
        weights: Sequence[float],
        marked: Marked,
        encoded: Encoded,
    ) -> list[list[Span]]:
        """The trained spans of each message.

        Args:
            messages: The messages as they were rendered.
            tools: Tool definitions.
            weights: One per message; 0 is not trained.
            marked: Their places.
            encoded: Tokens of the whole text.

        Raises:
            DataError: A trained message has no place that is certain.
        """
        spans: list[list[Span]] = []
        for index, (message, weight) in enumerate(zip(messages, weights, strict=True)):
            if not weight:
                pieces = []
            elif message["role"] == "assistant":
                pieces = self._assistant(index, messages, tools, marked, encoded)
            else:
                pieces = [self._other(index, messages, marked, encoded)]
            owner = f"message {index} ({message['role']})"
            spans.append([Span(start, end, weight, owner) for start, end in pieces])
        return spans

    def _assistant(
        self,
        index: int,
        messages: Sequence[Message],
        tools: Messages | None,
        marked: Marked,
        encoded: Encoded,
    ) -> list[tuple[int, int]]:
        message, place = messages[index], marked.places[index]
        _refuse_unplaced(index, message, marked)
        agreeing = _opening(index, message, marked) in self._agreeing
        start = place.marks[0][0] if agreeing else self._prompt_end(index, messages, tools, marked.text)
        _refuse_late_block(index, message, marked, start)
        if place.first is not None and encoded.first(self._turns.openers, start, place.first) is not None:
            opened = marked.text[start : place.first]
            what = f"is written as a further turn ({opened!r}), which no generation prompt gives"
            raise refuse(index, message, what, fix=_FIX)
        if self._turns.assistant_ends:
            said, end = self._end(index, start, message, marked, encoded)
        elif self._turns.stop_string is not None and place.marks and place.marks[-1][1] > (place.last or start):
            said, end = place.last or start, place.marks[-1][1]
        else:
            what = "ends with no token that a model could learn to stop by, in this template"
            raise refuse(index, message, what, fix=_OTHER_TEMPLATE)
        if not agreeing:
            self._refuse_rewritten(index, messages, tools, marked.text[:said])
        pieces = _without_gaps(start, end, place)
        if any(marked.holds_other_text(index, *piece) for piece in pieces):
            raise refuse(index, message, "is written around the text of another message", fix=_FIX)
        return pieces

    def _prompt_end(self, index: int, messages: Sequence[Message], tools: Messages | None, text: str) -> int:
        """The length of the generation prompt of a message, with which the conversation must begin."""
        before = messages[:index]
        prompts = (
            self._template.render(before, tools, add_generation_prompt=True, **variables).text
            for variables in self._prompt_variables
        )
        first = ""
        for prompt in prompts:
            if text.startswith(prompt):
                return len(prompt)
            first = first or prompt
        raise refuse(index, messages[index], *_why_not_prompted(first, text))

    def _find_agreeing(self) -> frozenset[tuple[str, str]]:
        """The openings in which a generation block begins exactly where the generation prompt ends.

        To render the generation prompt of each of k messages takes k² messages. In these openings the block
        says the same, and the message is written as a last one is, so a long conversation in a template with
        blocks is rendered twice and not 2k times.
        """
        agreeing: set[tuple[str, str]] = set()
        for probe in PROBES:
            messages = as_parts(probe) if self._turns.as_parts else list(probe)
            last = len(messages) - 1
            try:
                marked = mark_conversation(self._template, messages, None)
                end = self._prompt_end(last, messages, None, marked.text)
            except DataError:
                continue
            opening = _opening(last, messages[last], marked)
            if opening is not None and marked.places[last].marks[0][0] == end:
                agreeing.add(opening)
        return frozenset(agreeing)

    def _refuse_rewritten(self, index: int, messages: Sequence[Message], tools: Messages | None, said: str) -> None:
        """Refuse a message that is written otherwise later in a conversation than as its last one.

        The model would learn in history a form that it never generates. Qwen3's template drops the reasoning
        block of all answers but the last: one question would be answered in two ways.
        """
        if index == len(messages) - 1:
            return
        alone = self._template.render(messages[: index + 1], tools).text
        if not alone.startswith(said):
            at = _first_difference(alone, said)
            what = (
                f"is written otherwise as the last message ({_around(alone, at)!r}) than with messages after "
                f"it ({_around(said, at)!r})"
            )
            raise refuse(index, messages[index], what, fix=_FIX)

    def _end(self, index: int, start: int, message: Message, marked: Marked, encoded: Encoded) -> tuple[int, int]:
        """Where the token that ends an assistant's turn begins and ends."""
        place = marked.places[index]
        after = start if place.last is None else max(start, place.last)
        before = marked.next_text(index, after)
        # A call without texts in its arguments leaves no mark; its name tells that the turn goes on to there.
        for call in message.get("tool_calls", ()):
            name, arguments = called_function(call).get("name", ""), called_function(call).get("arguments")
            found = -1 if _holds_text(arguments) else marked.text.find(str(name), after, before)
            after = after if found < 0 else found + len(str(name))
        token = encoded.first(self._turns.assistant_ends, after, before)
        if token is None or (place.last is None and _next_is_unplaced(index, marked)):
            what = "is followed by no token that ends its turn: the model would never learn to stop"
            raise refuse(index, message, what, fix=_FIX)
        if place.marks and place.marks[-1][1] < encoded.starts[token]:
            left_out = marked.text[place.marks[-1][1] : encoded.ends[token]]
            what = f"has a {{% generation %}} block that ends before {left_out!r}"
            fix = "put the token that ends the turn inside the block: a model learns to stop by it"
            raise refuse(index, message, what, fix=fix)
        return encoded.starts[token], encoded.ends[token]

    def _other(self, index: int, messages: Sequence[Message], marked: Marked, encoded: Encoded) -> tuple[int, int]:
        """Content and end of turn of a user, system or tool message."""
        message, place = messages[index], marked.places[index]
        if place.marks:
            return place.marks[0][0], place.marks[-1][1]
        if place.content is None:
            what = "has no certain place: its content is not whole, once, in what the template writes"
            raise refuse(index, message, what, fix=_FIX)
        start, end = place.content
        token = encoded.first(self._turns.other_ends, end, marked.next_text(index, end))
        if token is None or marked.text[end : encoded.starts[token]].strip():
            return start, end
        if _next_is_unplaced(index, marked):
            raise refuse(
                index,
                message,
                "is followed by an empty message, so the end of its turn can't be told",
                fix=_FIX,
            )
        return start, encoded.ends[token]


def in_order(spans: Iterable[Sequence[Span]]) -> list[Span]:
    """The spans of all messages in the order of the text.

    Raises:
        DataError: Two of them overlap.
    """
    ordered = sorted(chain.from_iterable(spans), key=lambda span: span.start)
    for before, after in pairwise(ordered):
        if after.start < before.end:
            raise DataError(f"the trained texts of {before.owner} and {after.owner} overlap", fix=_FIX)
    return ordered


def _opening(index: int, message: Message, marked: Marked) -> tuple[str, str] | None:
    """What the template wrote before a message's generation block, and in it before the message's own text.

    None where there is no block, or it is not clear what is the template's.
    """
    place, before = marked.places[index], marked.places[index - 1].last if index else None
    if not place.marks or place.first is None or before is None or before > place.marks[0][0]:
        return None
    start = place.marks[0][0]
    lead_in = marked.text[start : place.first]
    for name in called_names(message)[:1]:
        lead_in = lead_in.partition(name)[0]
    return marked.text[before:start], lead_in


def _next_is_unplaced(index: int, marked: Marked) -> bool:
    return index + 1 < len(marked.places) and marked.places[index + 1].first is None


def _refuse_unplaced(index: int, message: Message, marked: Marked) -> None:
    place = marked.places[index]
    if place.style == "none" and _has_text(message):
        what = "has no certain place: marking its text changes what the template writes"
        raise refuse(index, message, what, fix=_FIX)
    if marked.template_marks and place.first is not None and not place.marks:
        raise refuse(index, message, "lies in no {% generation %} block of the template", fix=_FIX)


def _refuse_late_block(index: int, message: Message, marked: Marked, start: int) -> None:
    place = marked.places[index]
    if place.marks and place.marks[0][0] > start:
        left_out = marked.text[start : place.marks[0][0]]
        what = (
            f"has a {{% generation %}} block that begins after {left_out!r}, which no generation prompt "
            "gives: the model would have to write it and never learn it"
        )
        raise refuse(index, message, what, fix="begin the block where add_generation_prompt ends")


def _holds_text(arguments: object) -> bool:
    values = arguments.values() if isinstance(arguments, dict) else [arguments]
    return any(text for value in values if value is not None for text in texts_of(value))


def _has_text(message: Message) -> bool:
    return bool(message.get("content")) or "tool_calls" in message or "reasoning_content" in message


def _without_gaps(start: int, end: int, place: Place) -> list[tuple[int, int]]:
    """[start, end) without what lies between the generation blocks of the message."""
    pieces: list[tuple[int, int]] = []
    reached = start
    for (_, block_end), (next_start, _) in pairwise(place.marks):
        if start < block_end < next_start < end:
            pieces.append((reached, block_end))
            reached = next_start
    return [*pieces, (reached, end)]


def _why_not_prompted(prompt: str, text: str) -> tuple[str, str]:
    """What to say, and how to mend it, when a conversation doesn't begin with its generation prompt."""
    at = _first_difference(prompt, text)
    what = (
        f"is written otherwise than it would be asked for: the generation prompt has {_around(prompt, at)!r} "
        f"where the conversation has {_around(text, at)!r}"
    )
    return what, f"{_FIX}, or begin its content with {prompt[at:]!r}" if len(prompt) - at < 40 else _FIX


def _first_difference(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (mine, theirs) in pairs if mine != theirs), min(len(one), len(other)))


def _around(text: str, at: int) -> str:
    return text[max(0, at - 20) : at + 20]
