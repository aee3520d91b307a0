"""Preference pairs to tokens: one prompt, and what each side says after it up to the token that ends its turn.

A side is rendered as supervised training renders the whole conversation with `train_on: last_assistant_message`: the
prompt is what stands before its first learned token, the answer is what is learned, and what a template writes after the
end of the turn (mostly a newline) belongs to neither. TRL's own tokenization keeps that rest, and where a template writes
the prompt differently before the two answers, it takes the common start as the prompt and gives the rest to the answers.
Then the model would be compared on text that inference gives it and that it never writes, so such a row is refused here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from kitchen_resources.datasets.port import Answer, Example
from kitchen_resources.errors import DataError


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """Token ids of a pair. A side as the model reads it is the prompt and the answer.

    Attributes:
        prompt_ids: The prompt, up to where the assistant starts to write; empty for raw text after nothing.
        chosen_ids: The better answer, with what ends it.
        rejected_ids: The worse one.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def render_pair(example: Example, renderer: Any) -> RenderedPair:
    """Render a pair.

    Args:
        example: Of the shape "preference".
        renderer: A `rendering.Renderer` that trains the last assistant's message.

    Raises:
        ConfigError: There is no chat template for a conversation, or no eos token for raw text.
        DataError: A side can't be rendered exactly, or the two sides are rendered after different prompts; the reason
            names the side.
    """
    prompt_ids, chosen_ids = _parted(example, "chosen", example.chosen, renderer)
    other_ids, rejected_ids = _parted(example, "rejected", example.rejected, renderer)
    if prompt_ids != other_ids:
        # Templates that write reasoning end the prompt otherwise for an answer without any, by a block that is closed.
        one, other = (_end(ids, prompt_ids, other_ids, renderer) for ids in (prompt_ids, other_ids))
        raise DataError(
            f"the template ends the prompt with {one!r} before chosen and with {other!r} before rejected: answers to two "
            "prompts can't be compared",
            fix="give reasoning to both answers or to none, or set another chat_template",
        )
    return RenderedPair(prompt_ids, chosen_ids, rejected_ids)


def _end(ids: Sequence[int], one: Sequence[int], other: Sequence[int], renderer: Any) -> str:
    """The text of a prompt from where it differs from another."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return str(renderer.tokenizer.decode(ids[same:], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _parted(example: Example, name: str, answer: Answer, renderer: Any) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, and of one answer after it."""
    try:
        if isinstance(answer, str):
            return _raw(example.prompt, answer, renderer)
        return _last_message([*example.messages, *answer], list(example.tools) or None, renderer)
    except DataError as error:
        raise DataError(f"with its {name} answer: {error.what}", fix=error.fix) from error


def _raw(prompt: str, answer: str, renderer: Any) -> tuple[list[int], list[int]]:
    prompt_ids: list[int] = renderer.raw_prompt(prompt)
    ids: list[int] = renderer.completion(prompt, answer).input_ids
    border = len(prompt_ids)
    if ids[:border] != prompt_ids:
        raise DataError("the tokenizer opens the prompt differently before an answer", fix="take the row out")
    return prompt_ids, ids[border:]


def _last_message(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, renderer: Any
) -> tuple[list[int], list[int]]:
    rendered = renderer.conversation(messages, tools=tools)
    learned = [index for index, weight in enumerate(rendered.weights) if weight]
    if not learned:
        raise DataError("no token of it would be learned", fix="take the row out")
    start, end = learned[0], learned[-1] + 1
    if len(learned) != end - start:
        raise DataError(
            "the template leaves a part of it out of its {% generation %} blocks, and an answer of a pair counts whole",
            fix="set a chat_template with one block a message",
        )
    return rendered.input_ids[:start], rendered.input_ids[start:end]
