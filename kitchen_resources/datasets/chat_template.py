"""A chat template, compiled once and rendered many times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kitchen_resources.errors import ConfigError, DataError

# Templates that print today's date would make other tokens of the same rows every day, and so another
# identity. This is the date that Llama 3.1's template writes when it knows none.
FIXED_DATE = datetime(2024, 7, 26)

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RenderedText:
    """What a template wrote.

    Attributes:
        text: The whole text.
        marks: What lies in `{% generation %}` blocks, as (start, end) in characters, in order.
    """

    text: str
    marks: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A chat template with the special tokens of a tokenizer.

    Rendering equals `tokenizer.apply_chat_template(tokenize=False)`, but for the date, which is always
    `FIXED_DATE`. Messages must be plain JSON values.

    Args:
        source: The Jinja source.
        special_tokens: What the template sees as `bos_token`, `eos_token` and so on.

    Attributes:
        source: As given.
        variables: Names that the template reads and doesn't define.

    Raises:
        ConfigError: The source is not a valid template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        import jinja2
        import jinja2.meta

        # The environment of inference servers, sandboxed and cached by source. It has no public name, and a
        # copy of it would drift from what the served model is prompted with.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.source = source
        self._special_tokens = dict(special_tokens)
        try:
            self._compiled: Any = _compile_jinja_template(source)
            tree = self._compiled.environment.parse(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"line {error.lineno} is not valid Jinja: {error.message}",
                where="chat_template",
                fix="correct the template, or choose a built-in one: chat_template: chatml",
            ) from error
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))

    def render(
        self,
        messages: Messages,
        tools: Messages | None = None,
        *,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> RenderedText:
        """Render a conversation.

        Args:
            messages: Chat messages; may be empty where the template allows it.
            tools: Tool definitions.
            add_generation_prompt: Whether to end where the assistant starts to write.
            **variables: Further template variables, such as `enable_thinking`.

        Raises:
            DataError: The template refuses the conversation, or can't handle a value in it.
        """
        import jinja2
        from transformers.utils.chat_template_utils import (
            _alias_reasoning_fields,
            _render_with_assistant_indices,
        )

        try:
            text, marks = _render_with_assistant_indices(
                self._compiled,
                _alias_reasoning_fields(messages),
                list(tools) if tools else None,
                None,
                add_generation_prompt,
                **{**self._special_tokens, "strftime_now": FIXED_DATE.strftime, **variables},
            )
        # A template is code of others: on a value that it doesn't expect it fails in any of these ways.
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
        ) as error:
            raise DataError(
                f"the chat template refuses the conversation: {error}",
                fix="bring the messages to what the template accepts, or set another chat_template",
            ) from error
        return RenderedText(text, tuple(marks))
