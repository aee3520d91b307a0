"""Bringing preference pairs of every common shape to an `Example`: one prompt, a chosen and a rejected answer.

- `prompt` + `chosen` + `rejected`, where `prompt` is a text or messages and each answer is a text or messages. An answer
  may repeat the prompt before it, as some data sets have it, or leave it out. Beside two whole conversations a text prompt
  is one of their questions, and the conversations say what came before it.
- `chosen` + `rejected` without a prompt, both whole conversations: the messages with which both begin are the prompt.
- `chosen` + `rejected` without a prompt, both texts: raw text after an empty prompt. For a model with a chat template that
  is refused: where two texts begin alike is no sign of where a question ends.

Messages may be ShareGPT's turns. A pair compares one answer with one answer: where an answer is several messages, those of
users and tools among them can't be preferred, so such a row is refused.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import Any

from kitchen_resources.datasets.port import Example, RawRow
from kitchen_resources.datasets.row_values import (
    Convert,
    Message,
    RowProblem,
    described,
    from_turns,
    is_messages,
    read_messages,
    read_text,
    read_tools,
    refuse_chat_columns,
    with_system,
)

PAIR_SHAPES = ("prompt + chosen + rejected", "chosen + rejected")

_BETTER = ("chosen", "better", "preferred", "winner", "winning", "accepted", "positive")
_WORSE = ("rejected", "worse", "dispreferred", "unpreferred", "loser", "losing", "negative")

_WRITE_PROMPT = "give the question as `prompt` (columns: {prompt: …}), or both answers as whole conversations"

Value = str | tuple[Message, ...]


def pair_converter(names: set[str], conversational: bool) -> Convert | None:
    """How to bring rows of these columns to pairs, or None where they hold none.

    Args:
        names: Columns, renamed as the recipe says.
        conversational: Whether the model has a chat template.
    """
    if not {"chosen", "rejected"} <= names:
        return None
    prompted = "prompt" in names

    def convert(row: RawRow, value: Mapping[str, Any]) -> Example:
        prompt = _read(value.get("prompt"), "prompt") if prompted else None
        chosen, rejected = _read(value.get("chosen"), "chosen"), _read(value.get("rejected"), "rejected")
        texts = isinstance(chosen, str) and isinstance(rejected, str)
        if texts and not isinstance(prompt, tuple) and not conversational:
            refuse_chat_columns(value)
            return Example(row.row_id, row.where, "preference", prompt=prompt or "", chosen=chosen, rejected=rejected)
        messages, chosen, rejected = _parted(prompt, chosen, rejected)
        return Example(
            row.row_id,
            row.where,
            "preference",
            messages=with_system(messages, value),
            tools=read_tools(value.get("tools")),
            chosen=_one_answer(chosen, "chosen"),
            rejected=_one_answer(rejected, "rejected"),
        )

    return convert


def pair_suggestion(columns: Sequence[str], asking: Collection[str]) -> str:
    """The line to write, with the columns whose names say what they are; which answer is better is never guessed."""
    worse = next((name for name in columns if _is_named(name, _WORSE)), "…")
    better = next((name for name in columns if _is_named(name, _BETTER) and not _is_named(name, _WORSE)), "…")
    prompt = next((name for name in columns if name in asking and name not in (better, worse)), None)
    asked = "" if prompt is None else f"prompt: {prompt}, "
    return f"columns: {{{asked}chosen: {better}, rejected: {worse}}}"


def _is_named(name: str, words: Collection[str]) -> bool:
    return any(word in name.lower() for word in words)


def _read(value: Any, name: str) -> Value:
    """A text, or messages; an answer may also be a single message."""
    turns = [value] if isinstance(value, Mapping) else value
    if not is_messages(turns):
        if name != "prompt" and isinstance(value, (list, tuple)):
            raise RowProblem(
                f"{name} must be text or messages, this is {described(value)}"
                if value
                else f"its {name} answer is empty"
            )
        return read_text(value, name)
    try:
        messages = read_messages(from_turns(turns))
    except RowProblem as problem:
        raise RowProblem(f"{name}: {problem}") from problem
    for key in ("trainable", "weight"):
        if any(key in message for message in messages):
            raise RowProblem(f"{name} carries `{key}`, and of a pair both answers count whole")
    return messages


def _parted(prompt: Value | None, chosen: Value, rejected: Value) -> tuple[tuple[Message, ...], Value, Value]:
    """The prompt's messages, and what each side says after them."""
    both_whole = _is_whole(chosen) and _is_whole(rejected)
    if prompt is None or (isinstance(prompt, str) and both_whole):
        messages, chosen, rejected = _at_fork(chosen, rejected)
        if prompt is not None and all(message.get("content") != prompt for message in messages):
            raise RowProblem("its prompt is none of the messages with which both chosen and rejected begin")
        return messages, chosen, rejected
    asked = prompt if isinstance(prompt, tuple) else ({"role": "user", "content": prompt},)
    return asked, _after(asked, chosen), _after(asked, rejected)


def _at_fork(chosen: Value, rejected: Value) -> tuple[tuple[Message, ...], Value, Value]:
    """Two whole conversations, parted where they begin to differ; of each at least the last message is its answer."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowProblem(f"has no prompt, and its answers are texts: {_WRITE_PROMPT}")
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if not shared:
        raise RowProblem(f"chosen and rejected share no message before their last, so no prompt: {_WRITE_PROMPT}")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _is_whole(side: Value) -> bool:
    """Whether a side is a conversation from its start, and not what the assistant says after the prompt."""
    return isinstance(side, tuple) and side[0].get("role") != "assistant"


def _after(prompt: tuple[Message, ...], side: Value) -> Value:
    """What a side says after the prompt, which it may repeat."""
    repeated = isinstance(side, tuple) and len(side) > len(prompt) and side[: len(prompt)] == prompt
    return side[len(prompt) :] if repeated else side


def _one_answer(side: Value, name: str) -> tuple[Message, ...]:
    if isinstance(side, str):
        return ({"role": "assistant", "content": side},)
    roles = [str(message.get("role")) for message in side]
    if roles != ["assistant"]:
        raise RowProblem(
            f"its {name} answer must be one message of the assistant after a prompt that both sides share, "
            f"and this is {', '.join(roles)}"
        )
    return side
