"""Conversations and raw text to tokens and loss weights: made once, here, before any backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

from kitchen_resources.datasets.chat_template import FIXED_DATE, ChatTemplate
from kitchen_resources.datasets.completeness import check_complete, check_trained
from kitchen_resources.datasets.encoding import Encoded, Span, encode, token_weights
from kitchen_resources.datasets.marking import Marked, mark_conversation
from kitchen_resources.datasets.messages import TRAIN_ON, Message, message_weights, read_messages, texts_of
from kitchen_resources.datasets.spans import SpanFinder, in_order
from kitchen_resources.datasets.templating import ensure_pad_token
from kitchen_resources.datasets.turns import Turns, any_of, as_parts, find_turns
from kitchen_resources.digests import digest_bytes
from kitchen_resources.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kitchen_resources.datasets.dialogue import Dialogue

__all__ = ["TRAIN_ON", "Rendered", "Renderer"]

RENDERING_VERSION = 1
"""Raised by hand when the same rows, template and tokenizer come out as other tokens or weights."""

Given = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Rendered:
    """Tokens and what is learned of them.

    Attributes:
        text: What was tokenized.
        input_ids: Token ids.
        weights: One per token: the loss weight of predicting this token. The first is 0.
    """

    text: str
    input_ids: list[int]
    weights: list[float]

    def trained_text(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """The tokens that are learned, as text; "…" stands for what lies between them."""
        pairs = zip(self.input_ids, self.weights, strict=True)
        runs = groupby(pairs, key=lambda pair: pair[1] > 0)
        pieces = [_decode(tokenizer, [token for token, _ in run]) for learned, run in runs if learned]
        return "…".join(pieces)


class Renderer:
    """The one way from examples to tokens, for a tokenizer, a chat template and what is trained.

    Args:
        tokenizer: A fast tokenizer. It gets a pad token where it has none.
        train_on: One of `TRAIN_ON`.
        template: Jinja source of the chat template; None when only raw text is rendered.

    Attributes:
        tokenizer: As given.
        train_on: As given.
        pad_token: The pad token in use, and `pad_token_id` its id.
        pad_token_id: See `pad_token`.

    Raises:
        ConfigError: `train_on` is unknown, the tokenizer is not a fast one or lacks tokens that the template
            writes, or the template can't write a question and an answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, train_on: str, template: str | None) -> None:
        if train_on not in TRAIN_ON:
            raise ConfigError(
                f"{train_on!r} is none of {', '.join(TRAIN_ON)}",
                where="train_on",
                fix=f"train_on: {TRAIN_ON[0]}",
            )
        if not tokenizer.is_fast:
            raise ConfigError(
                f"{type(tokenizer).__name__} doesn't tell where its tokens lie in the text",
                where="model",
                fix="use a fast tokenizer",
            )
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.pad_token = ensure_pad_token(tokenizer)
        self.pad_token_id = int(tokenizer.pad_token_id)
        self._chat = _Chat(tokenizer, template) if template is not None else None

    @property
    def conversational(self) -> bool:
        """Whether there is a chat template."""
        return self._chat is not None

    def dialogue(self) -> "Dialogue":
        """Conversations that go on while they are sampled.

        Raises:
            ConfigError: No token ends a turn.
        """
        from kitchen_resources.datasets.dialogue import Dialogue

        return Dialogue(self)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids at which generation must stop: eos, and what ends an assistant's last turn in the template."""
        if self._chat is not None:
            return tuple(sorted(self._chat.turns.stop_ids))
        return () if self.tokenizer.eos_token_id is None else (int(self.tokenizer.eos_token_id),)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts at which generation must stop, in a template that ends turns by text, as role_colon does."""
        stop = self._chat.turns.stop_string if self._chat is not None else None
        return () if stop is None else (stop,)

    def describe(self) -> dict[str, Any]:
        """What makes the tokens, beside the tokenizer's files: for the identity of prepared data."""
        template = self._chat.template if self._chat is not None else None
        return {
            "rendering_version": RENDERING_VERSION,
            "train_on": self.train_on,
            "template_digest": digest_bytes(template.source.encode()) if template else None,
            "template_date": FIXED_DATE.date().isoformat()
            if template and "strftime_now" in template.source
            else None,
            "tokenizer_class": type(self.tokenizer).__name__,
            "bos_token": self.tokenizer.bos_token,
            "eos_token": self.tokenizer.eos_token,
            "pad_token": self.pad_token,
            "stop_token_ids": list(self.stop_token_ids),
            "stop_strings": list(self.stop_strings),
        }

    def conversation(self, messages: Given, *, tools: Given | None = None) -> Rendered:
        """Tokens and weights of a conversation.

        Args:
            messages: Chat messages: role, content, and what else the template reads; in `customized` also
                `trainable` or `weight`.
            tools: Tool definitions that the template shows the model.

        Returns:
            The whole conversation. All weights are 0 when the mode picks nothing of it.

        Raises:
            ConfigError: There is no chat template.
            DataError: What is trained can't be told exactly, or the template loses some of it; the reason
                names the message.
        """
        chat = self._require_chat()
        read = chat.accept(messages, tools)
        weights = message_weights(messages, self.train_on)
        marked = mark_conversation(chat.template, read, tools)
        encoded = encode(self.tokenizer, marked.text)
        chat.refuse_merged_tokens(marked, encoded)
        check_complete(read, tools, marked)
        if self.train_on == "all_tokens":
            spans = [Span(0, len(marked.text), 1.0, "the conversation")]
            check_trained(len(read) - 1, read[-1], marked, len(marked.text))
        else:
            found = chat.spans.find(read, tools, weights, marked, encoded)
            spans = in_order(found)
            for index, pieces in enumerate(found):
                if pieces:
                    check_trained(index, read[index], marked, pieces[-1].end)
        return Rendered(marked.text, encoded.ids, token_weights(encoded, spans))

    def generation_prompt(self, messages: Given, *, tools: Given | None = None) -> list[int]:
        """Token ids of a conversation up to where the assistant starts to write.

        Raises:
            ConfigError: There is no chat template.
            DataError: The template refuses the conversation, or a message holds the text of a special token.
        """
        return encode(self.tokenizer, self.prompt_text(messages, tools=tools)).ids

    def prompt_text(self, messages: Given, *, tools: Given | None = None) -> str:
        """The text of `generation_prompt`, and its errors."""
        chat = self._require_chat()
        return chat.template.render(chat.accept(messages, tools), tools, add_generation_prompt=True).text

    def completion(self, prompt: str, completion: str) -> Rendered:
        """Raw text after raw text: the completion and an eos token are learned, whatever `train_on` is.

        Inference tokenizes the prompt alone, and the model goes on from there; so the prompt's tokens here
        are those. Where tokenizing the two together gives them too, with a border between the texts, the
        completion's tokens are the rest. Elsewhere a token would hold text of both, after a prompt that the
        model never gets at inference: then the completion is tokenized alone.

        Special tokens written in raw text are special tokens: rows that were formatted by hand need it.

        Raises:
            ConfigError: The tokenizer has no eos token.
            DataError: Tokenized apart, prompt and completion are another text than together.
        """
        head = encode(self.tokenizer, prompt).ids
        whole = encode(self.tokenizer, prompt + completion)
        border = len(head)
        rest = whole.starts[border:]
        if whole.ids[:border] == head and whole.across(len(prompt)) is None and (not rest or rest[0] >= len(prompt)):
            tail = whole.ids[border:]
        else:
            tail = encode(self.tokenizer, completion).ids
            if _decode(self.tokenizer, head + tail) != _decode(self.tokenizer, whole.ids):
                raise DataError(
                    "prompt and completion are another text tokenized apart, as at inference, than together",
                    fix="move white space between the end of the prompt and the start of the completion",
                )
        return self._ended(prompt + completion, head, tail)

    def raw_prompt(self, prompt: str) -> list[int]:
        """Token ids of a raw prompt as inference has them: after the special tokens that open a text."""
        ids = encode(self.tokenizer, prompt).ids
        return [*self._opening(ids), *ids]

    def text(self, text: str) -> Rendered:
        """Raw text and an eos token: all is learned, whatever `train_on` is, but for a BOS that opens it.

        Raises:
            ConfigError: The tokenizer has no eos token.
        """
        return self._ended(text, [], encode(self.tokenizer, text).ids)

    def _ended(self, text: str, head: list[int], tail: list[int]) -> Rendered:
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ConfigError(
                "the tokenizer has no eos token, so a model can't learn to stop",
                where="model",
                fix="set eos_token in its tokenizer_config.json",
            )
        opening = self._opening([*head, *tail])
        ending = [] if tail and tail[-1] == eos else [int(eos)]
        learned = [*tail, *ending]
        weights = [*([0.0] * (len(opening) + len(head))), *([1.0] * len(learned))]
        weights[0] = 0.0
        whole = "".join((_decode(self.tokenizer, opening), text, _decode(self.tokenizer, ending)))
        return Rendered(whole, [*opening, *head, *learned], weights)

    def _opening(self, ids: Sequence[int]) -> list[int]:
        """The special tokens that the tokenizer puts before raw text; none where the text has them."""
        opening = self._opens_with
        return [] if list(ids[: len(opening)]) == opening else opening

    @cached_property
    def _opens_with(self) -> list[int]:
        plain = encode(self.tokenizer, "a").ids
        whole = encode(self.tokenizer, "a", special_tokens=True).ids
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start]
        raise ConfigError(
            "the tokenizer changes a text when it adds its special tokens",
            where="model",
            fix="use another tokenizer",
        )

    def _require_chat(self) -> "_Chat":
        if self._chat is None:
            raise ConfigError(
                "the model has no chat template, and the data set holds conversations",
                where="chat_template",
                fix="chat_template: chatml (or llama3, role_colon, or a path that ends in .jinja)",
            )
        return self._chat


class _Chat:
    """A chat template with what was found out about it."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", source: str) -> None:
        self.template = ChatTemplate(source, tokenizer.special_tokens_map)
        self.turns: Turns = find_turns(self.template, tokenizer)
        self.spans = SpanFinder(self.template, self.turns)
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._reserved = any_of([*self.turns.reserved, *self.turns.borders])

    def accept(self, messages: Given, tools: Given | None) -> list[Message]:
        """The messages in the form that the template reads.

        A text that the tokenizer would turn into a special token, or that this template sets between turns,
        could forge a turn. `apply_chat_template` can encode such texts as letters
        (`sanitize_control_tokens`), but what a user typed and what the model then reads would differ, at
        training and at inference, so they are refused.

        Raises:
            DataError: A message is not valid, or a text in it or in the tools is one that only the template
                may write.
        """
        read = read_messages(messages)
        for index, message in enumerate(read):
            self._refuse_forged(message, f"message {index} ({message['role']})")
        for tool in tools or ():
            self._refuse_forged(tool, "a tool definition")
        return as_parts(read) if self.turns.as_parts else read

    def _refuse_forged(self, value: Any, owner: str) -> None:
        for text in texts_of(value):
            found = self._reserved.search(text)
            if found is not None:
                raise DataError(
                    f"{owner} holds the text {found.group()!r}, which only the chat template may write: "
                    "it could forge a turn",
                    fix="remove the text, or take the row out",
                )

    def refuse_merged_tokens(self, marked: Marked, encoded: Encoded) -> None:
        """Refuse a conversation in which a text and the template around it make up a token together."""
        for index, place in enumerate(marked.places):
            for edge in place.content or ():
                token = encoded.across(edge)
                if token is not None and encoded.ids[token] in self._added:
                    parts = marked.text[encoded.starts[token] : edge], marked.text[edge : encoded.ends[token]]
                    if all(part.strip() for part in parts):
                        raise DataError(
                            f"message {index} and the text around it make up the token {''.join(parts)!r}",
                            fix="remove the text, or take the row out",
                        )


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
