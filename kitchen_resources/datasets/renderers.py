"""The renderer of a recipe: its model's tokenizer and template, or their stand-ins where nothing is real."""

from dataclasses import dataclass
from typing import Any

from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.training.base_models import tokenizer_digest
from kitchen_resources.training.port import BaseModel


@dataclass(frozen=True)
class RecipeRenderer:
    """A renderer and what is known of it.

    Attributes:
        renderer: See `rendering.Renderer`.
        template: Jinja source of the chat template, or None for raw text.
        own_template: Whether it is the model's own, and needn't be written beside an exported model.
        rendering: What identifies it: tokenizer files, template, trained roles.
        simulated: Whether the tokenizer stands in for a model that isn't there.
    """

    renderer: Any
    template: str | None
    own_template: bool
    rendering: dict[str, Any]
    simulated: bool

    @property
    def conversational(self) -> bool:
        """Whether prompts and answers become conversations."""
        return self.template is not None


def make_renderer(recipe: Recipe, base: BaseModel) -> RecipeRenderer:
    """The renderer of a recipe.

    Raises:
        ConfigError: The template isn't known, or needs tokens that the tokenizer lacks.
    """
    from kitchen_resources.datasets.rendering import Renderer
    from kitchen_resources.datasets.templating import load_template, load_tokenizer

    if base.folder is None:
        from kitchen_resources.embedded import build_tokenizer

        tokenizer: Any = build_tokenizer()
        identity = "simulated"
    else:
        tokenizer = load_tokenizer(base.folder)
        identity = tokenizer_digest(base)
    template = load_template(recipe.chat_template, tokenizer)
    renderer = Renderer(tokenizer, train_on=getattr(recipe, "train_on", "last_assistant_message"), template=template)
    return RecipeRenderer(
        renderer=renderer,
        template=template,
        own_template=recipe.chat_template is None,
        rendering={"tokenizer": identity, **renderer.describe()},
        simulated=base.folder is None,
    )


def renderer_of(base: BaseModel, template: str | None) -> Any:
    """A renderer of prompts for a model, with the chat template that its rows were rendered with; None for raw text."""
    from kitchen_resources.datasets.rendering import Renderer
    from kitchen_resources.datasets.templating import load_tokenizer

    assert base.folder is not None
    return Renderer(load_tokenizer(base.folder), train_on="last_assistant_message", template=template)
