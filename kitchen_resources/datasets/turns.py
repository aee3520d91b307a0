"""How a template ends turns: found by rendering small conversations, once for a template and tokenizer."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from kitchen_resources.datasets.chat_template import ChatTemplate
from kitchen_resources.datasets.marking import Marked, mark_conversation
from kitchen_resources.datasets.messages import Message
from kitchen_resources.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASK: Message = {"role": "user", "content": "zqx1"}
_ANSWER: Message = {"role": "assistant", "content": "zqx2"}
_ASK_AGAIN: Message = {"role": "user", "content": "zqx3"}
_CALL: dict[str, Any] = {
    "type": "function",
    "id": "call00000",
    "function": {"name": "beep", "arguments": {"tone": "low"}},
}
_CALLED: Message = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT: Message = {"role": "tool", "content": "zqx4", "name": "beep", "tool_call_id": "call00000"}
_ANSWERS: tuple[Message, ...] = (
    _ANSWER,
    {**_ANSWER, "reasoning_content": "zqx5"},
    _CALLED,
    {**_CALLED, "reasoning_content": "zqx5"},
)
PROBES = tuple(
    (*before, answer) for before in ((_ASK, _ANSWER, _ASK_AGAIN), (_ASK, _CALLED, _RESULT)) for answer in _ANSWERS
)
"""Conversations that end with an answer or a tool call, after a question or a tool's result."""

# Templates that read reasoning out of contents know these by their text, also where a tokenizer has them as
# tokens.
_CONTENT_TOKENS = frozenset({"<think>", "</think>"})
_TOKEN_LIKE = re.compile(r"<\|[^\s<>|]{1,60}\|>")


@dataclass(frozen=True)
class Turns:
    """What ends turns in a template.

    Attributes:
        as_parts: Whether contents must be given as lists of text parts, as templates of vision models want
            them.
        assistant_ends: Tokens that end an assistant's turn; none where the template writes no such token.
        other_ends: Tokens that end the turns of others.
        openers: Tokens that open an assistant's turn.
        stop_ids: Tokens that end the assistant's last turn, with and without a tool call: generation stops
            there.
        stop_string: The text that ends the assistant's last turn where no token does; None when neither does.
        reserved: Texts of tokens that only the template may write.
        borders: In a template without end tokens, the texts between turns, which no content may hold.
    """

    as_parts: bool
    assistant_ends: frozenset[int]
    other_ends: frozenset[int]
    openers: frozenset[int]
    stop_ids: frozenset[int]
    stop_string: str | None
    reserved: frozenset[str]
    borders: tuple[str, ...]


def as_parts(messages: Sequence[Message]) -> list[Message]:
    """The messages with each content as a list of one text part."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]} if "content" in message else message
        for message in messages
    ]


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of some texts, the longest where several begin at one place.

    Some vocabularies have 1,000 special tokens. Looking at first characters first makes the search of 12 kB
    of source code take 0.15 ms instead of 4.9.
    """
    longest_first = sorted(texts, key=len, reverse=True)
    heads = sorted({text[:4] for text in longest_first})
    if not longest_first:
        return re.compile("(?!)")
    return re.compile(f"(?={'|'.join(map(re.escape, heads))})(?:{'|'.join(map(re.escape, longest_first))})")


def find_turns(template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase") -> Turns:
    """Find how a template ends turns.

    Raises:
        ConfigError: The template can't write a question and an answer, always opens an assistant turn, or
            writes tokens that the tokenizer doesn't have.
    """
    probe = _Probe(template, tokenizer)
    asked = probe.pieces([_ASK])
    start, question_gap, tail = probe.pieces([_ASK, _ANSWER], required=True)
    prompt_gap = probe.prompt_after([_ASK])
    _refuse_open_end(probe, question_gap, tail)
    _refuse_missing_tokens(tokenizer, start + question_gap + tail)

    asked_tail = asked[1] if asked else ""
    other_end = _common_start(asked_tail, prompt_gap)
    header = set(probe.tokens(prompt_gap[len(other_end) :]))
    follow = probe.pieces([_ASK, _ANSWER, _ASK_AGAIN])
    answer_gap = follow[2] if follow else ""
    between = _common_start(answer_gap, probe.prompt_after([_ASK, _ANSWER]))
    # What comes before the next turn whoever it is of ends this one; tokens that open turns are not ends.
    middle = [token for token in probe.tokens(between) if token not in header][-1:]
    final = _final(probe.tokens(tail), middle)
    call_tail = probe.call_tail()
    final_call = _final(probe.tokens(call_tail), [*middle, *final]) if final else []
    ends = [*middle, *final, *final_call] if final else []
    return Turns(
        as_parts=probe.as_parts,
        assistant_ends=probe.ids(ends),
        other_ends=probe.ids(probe.tokens(other_end)[-1:]),
        openers=probe.ids(sorted(header - _CONTENT_TOKENS)),
        stop_ids=probe.ids([*final, *final_call]) | _eos(tokenizer),
        stop_string=tail if not probe.tokens(tail) and tail.strip() else None,
        reserved=_reserved(tokenizer, [*probe.tokens(start + question_gap + prompt_gap + answer_gap), *ends]),
        borders=() if ends else _borders(question_gap, answer_gap, tail),
    )


class _Probe:
    def __init__(self, template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._template = template
        self._ids: dict[str, int] = dict(tokenizer.get_added_vocab())
        self._pattern = any_of(self._ids)
        self.as_parts = False
        if not self.pieces([_ASK, _ANSWER]):
            self.as_parts = True
            self.as_parts = bool(self.pieces([_ASK, _ANSWER]))

    def _given(self, messages: Sequence[Message]) -> list[Message]:
        return as_parts(messages) if self.as_parts else list(messages)

    def _marked(self, messages: Sequence[Message]) -> Marked:
        return mark_conversation(self._template, self._given(messages), None)

    def pieces(self, messages: Sequence[Message], *, required: bool = False) -> list[str]:
        """What the template writes before, between and after the contents; empty when it doesn't write them
        all.

        Raises:
            ConfigError: It is required, and the template can't write it.
        """
        try:
            marked = self._marked(messages)
            contents = [place.content for place in marked.places]
            reason = "it does not write each content whole and once"
        except DataError as error:
            contents, reason = [None], error.what
        if any(content is None for content in contents):
            if required:
                roles = ", ".join(message["role"] for message in messages)
                raise ConfigError(
                    f"the template can't write a conversation of {roles}: {reason}",
                    where="chat_template",
                    fix="chat_template: chatml, or llama3, role_colon, or a .jinja file",
                )
            return []
        edges = [0, *(edge for content in contents if content for edge in content), len(marked.text)]
        return [marked.text[edges[index] : edges[index + 1]] for index in range(0, len(edges), 2)]

    def prompt_after(self, messages: Sequence[Message]) -> str:
        """What a generation prompt adds after the last content."""
        try:
            text = self._template.render(self._given(messages), add_generation_prompt=True).text
        except DataError:
            return ""
        content = messages[-1]["content"]
        return text[text.rindex(content) + len(content) :] if content in text else ""

    def call_tail(self) -> str:
        """What follows a tool call at the end of a conversation."""
        for arguments in ({"tone": "low"}, '{"tone": "low"}'):
            call = {**_CALL, "function": {"name": "beep", "arguments": arguments}}
            try:
                marked = self._marked([_ASK, {"role": "assistant", "content": "", "tool_calls": [call]}])
            except DataError:
                continue
            place = marked.places[-1]
            if place.others and place.last is not None:
                return marked.text[place.last :]
        return ""

    def tokens(self, text: str) -> list[str]:
        """The added tokens of a text, in order, without those that are white space."""
        return [match.group() for match in self._pattern.finditer(text) if not match.group().isspace()]

    def ids(self, tokens: Sequence[str]) -> frozenset[int]:
        return frozenset(self._ids[token] for token in tokens)


def _common_start(one: str, other: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return one[: sum(1 for _ in same)]


def _final(tokens: Sequence[str], known: Sequence[str]) -> list[str]:
    """The token that ends a last turn: one that also ends earlier ones, else the last that is written."""
    return [token for token in tokens if token in known][-1:] or list(tokens[-1:])


def _borders(*gaps: str) -> tuple[str, ...]:
    return tuple(sorted({gap.rstrip() for gap in gaps if gap.strip()}))


def _eos(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    return frozenset(() if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),))


def _reserved(tokenizer: "PreTrainedTokenizerBase", written: Sequence[str]) -> frozenset[str]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(special | (set(written) - _CONTENT_TOKENS))


def _refuse_open_end(probe: _Probe, question_gap: str, tail: str) -> None:
    tokens = probe.tokens(question_gap)
    opening = question_gap[question_gap.rindex(tokens[-1]) :] if tokens else question_gap.strip()
    if opening and tail.rstrip().endswith(opening.rstrip()):
        raise ConfigError(
            f"the template opens an assistant turn ({opening!r}) after the last message, unasked",
            where="chat_template",
            fix="write the opening under {% if add_generation_prompt %}",
        )


def _refuse_missing_tokens(tokenizer: "PreTrainedTokenizerBase", written: str) -> None:
    vocabulary = tokenizer.get_added_vocab()
    missing = sorted({token for token in _tokens_like(written) if token not in vocabulary})
    if missing:
        raise ConfigError(
            f"the template writes {', '.join(missing)}; the tokenizer lacks them and would split them",
            where="chat_template",
            fix="chat_template: role_colon, which needs no tokens of its own",
        )


def _tokens_like(text: str) -> Iterator[str]:
    return (match.group() for match in _TOKEN_LIKE.finditer(text))
