"""Bringing rows of every common shape to an `Example`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kitchen_resources.datasets.pair_shapes import PAIR_SHAPES, pair_converter, pair_suggestion
from kitchen_resources.datasets.port import Example, RawRow
from kitchen_resources.datasets.row_values import (
    Convert,
    Message,
    RowProblem,
    from_turns,
    is_messages,
    listed,
    read_messages,
    read_text,
    read_tools,
    refuse_chat_columns,
    with_system,
)
from kitchen_resources.errors import DataError

__all__ = ["Normalize", "RowProblem", "shape_of"]

_KNOWN = (
    "messages",
    "conversations",
    "prompt + completion",
    "prompt + response",
    "instruction (+ input) + output",
    "instruction (+ input) + response",
    "input + output",
    "text",
)

_LEADING = ("messages", "conversations", "prompt", "instruction", "text")
"""Columns that tell a shape by themselves, in the order in which they are looked for."""

_ASKING = frozenset({"question", "query", "input", "instruction", "prompt", "problem", "source", "user"})
_ANSWERING = frozenset({"answer", "response", "output", "completion", "solution", "target", "reply", "assistant"})

Normalize = Callable[[RawRow], Example]


def shape_of(
    columns: Iterable[str],
    renames: Mapping[str, str],
    *,
    reference: str,
    conversational: bool,
    method: str = "supervised",
) -> Normalize:
    """How to bring the rows of a data set to examples, told by its columns.

    Args:
        columns: Columns of the first row.
        renames: The recipe's `columns`: {ours: theirs}.
        reference: The data set, for messages.
        conversational: Whether the model has a chat template. With one, prompts and answers become a
            conversation; without, they stay raw text.
        method: The recipe's. `preference` takes pairs of answers (see `pair_shapes`), every other method rows to
            learn.

    Raises:
        DataError: The columns are of no shape that the method takes, or `columns` names one that isn't there.
    """
    found = [str(name) for name in columns]
    present = set(found)
    for ours, theirs in renames.items():
        if theirs not in present:
            raise DataError(
                f"`columns` names {theirs!r} for {ours!r}, and the data set has {listed(present)}",
                where=reference,
                fix=f"columns: {{{ours}: one of those}}",
            )
    names = (present - set(renames.values())) | set(renames)
    # What a recipe names explicitly goes before what else the rows hold.
    named = names & set(_LEADING) & set(renames)
    names -= set(_LEADING) - named if named else set()
    convert = (pair_converter if method == "preference" else _converter)(names, conversational)
    if convert is None:
        what, fix = _no_pairs(found, names) if method == "preference" else _no_rows_to_learn(found, names)
        raise DataError(f"its columns are {listed(present)}, which {what}", where=reference, fix=fix)

    def normalize(row: RawRow) -> Example:
        value = dict(row.value)
        renamed = {ours: value.get(theirs) for ours, theirs in renames.items()}
        return convert(row, {**value, **renamed})

    return normalize


def _converter(names: set[str], conversational: bool) -> Convert | None:
    pairs = _prompt_to_messages if conversational else _prompt_to_text
    if "messages" in names:
        return lambda row, value: _messages(row, value, value.get("messages"))
    if "conversations" in names:
        return lambda row, value: _messages(row, value, from_turns(value.get("conversations")))
    if "prompt" in names:
        for answer in ("completion", "response"):
            if answer in names:
                return lambda row, value: pairs(row, value, value.get("prompt"), value.get(answer))
        return None
    if "instruction" in names:
        for answer in ("output", "response"):
            if answer in names:
                return lambda row, value: pairs(row, value, _instruction(value), value.get(answer))
        return None
    if {"input", "output"} <= names:
        return lambda row, value: pairs(row, value, value.get("input"), value.get("output"))
    if "text" in names:
        return lambda row, value: Example(row.row_id, row.where, "text", text=read_text(value.get("text"), "text"))
    return None


def _messages(row: RawRow, value: Mapping[str, Any], messages: Any) -> Example:
    return Example(
        row.row_id,
        row.where,
        "messages",
        messages=with_system(read_messages(messages), value),
        tools=read_tools(value.get("tools")),
    )


def _prompt_to_messages(row: RawRow, value: Mapping[str, Any], prompt: Any, answer: Any) -> Example:
    asked: Sequence[Message] = (
        prompt if is_messages(prompt) else [{"role": "user", "content": read_text(prompt, "prompt")}]
    )
    if is_messages(prompt) and is_messages(answer):
        return _messages(row, value, [*asked, *answer])
    return _messages(row, value, [*asked, {"role": "assistant", "content": read_text(answer, "completion")}])


def _prompt_to_text(row: RawRow, value: Mapping[str, Any], prompt: Any, answer: Any) -> Example:
    if is_messages(prompt):
        return _prompt_to_messages(row, value, prompt, answer)
    refuse_chat_columns(value)
    return Example(
        row.row_id,
        row.where,
        "prompt_completion",
        prompt=read_text(prompt, "prompt"),
        completion=read_text(answer, "completion"),
    )


def _instruction(value: Mapping[str, Any]) -> Any:
    instruction = read_text(value.get("instruction"), "instruction")
    context = value.get("input")
    return f"{instruction}\n\n{read_text(context, 'input')}" if context else instruction


def _no_rows_to_learn(columns: Sequence[str], names: set[str]) -> tuple[str, str]:
    """What to say of columns of no known shape, and the line to write."""
    if {"chosen", "rejected"} <= names:
        alone = "{prompt: prompt, completion: chosen}" if "prompt" in names else "{messages: chosen}"
        return (
            "are pairs of answers to compare, and not rows to learn",
            f"workflow: preference; or, to learn the chosen answers alone, columns: {alone}",
        )
    return f"is no known shape ({'; '.join(_KNOWN)})", _suggestion(columns)


def _no_pairs(columns: Sequence[str], names: set[str]) -> tuple[str, str]:
    """What to say of columns that hold no pairs, and the line to write."""
    learnable = _converter(names, conversational=True) is not None
    other = "; or, where rows have one answer to learn, workflow: supervised" if learnable else ""
    return f"are no pairs of answers ({'; '.join(PAIR_SHAPES)})", f"{pair_suggestion(columns, _ASKING)}{other}"


def _suggestion(columns: Sequence[str]) -> str:
    """The line to write, with the columns that look like a question and an answer, else the first ones."""
    if len(columns) == 1:
        return f"columns: {{text: {columns[0]}}}"
    prompt = _first(columns, lambda name: name in _ASKING, lambda name: name not in _ANSWERING)
    answer = _first(columns, lambda name: name in _ANSWERING, lambda name: name != prompt)
    return f"columns: {{prompt: {prompt}, completion: {answer}}}"


def _first(columns: Sequence[str], *tests: Callable[[str], bool]) -> str:
    return next((name for test in tests for name in columns if test(name)), "…")
