"""Tokens of a conversation that goes on while it is sampled: what the model wrote, and what it reads next."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kitchen_resources.datasets.encoding import encode
from kitchen_resources.environments.port import Action
from kitchen_resources.errors import ConfigError

if TYPE_CHECKING:
    from kitchen_resources.datasets.rendering import Renderer

_ASK = {"role": "user", "content": "zqx1"}
_ANSWER = {"role": "assistant", "content": "zqx2"}


class Dialogue:
    """The turns of a policy and of what it acts on, as tokens.

    Args:
        renderer: How conversations become tokens.

    Raises:
        ConfigError: No token ends a turn, so that sampling couldn't know where one is over.
    """

    def __init__(self, renderer: "Renderer") -> None:
        if not renderer.stop_token_ids or renderer.stop_strings:
            raise ConfigError(
                "no token ends an assistant's turn, so that what is sampled has no end",
                where="chat_template",
                fix="chat_template: chatml or llama3, or a model whose template ends turns by a token",
            )
        self._renderer = renderer
        self._stops = frozenset(renderer.stop_token_ids)

    def decode(self, token_ids: Sequence[int]) -> Action:
        """What was written in one turn, and whether it was ended by the model."""
        ended = bool(token_ids) and token_ids[-1] in self._stops
        written = list(token_ids[:-1] if ended else token_ids)
        text = self._renderer.tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Action(str(text), ended)

    def follow_up(self, observation: str, *, ended: bool) -> list[int]:
        """Tokens from the end of the model's turn to where it writes again.

        Args:
            observation: What it reads next, as the user's message.
            ended: Whether its turn holds the token that ends it.

        Raises:
            DataError: The observation holds a text that only the template may write.
        """
        if not self._renderer.conversational:
            return encode(self._renderer.tokenizer, observation).ids
        asked = [_ASK, _ANSWER, {"role": "user", "content": observation}]
        _, _, after = self._renderer.prompt_text(asked).partition(_ANSWER["content"])
        ids = encode(self._renderer.tokenizer, after).ids
        return ids[1:] if ended and ids[0] in self._stops else ids
