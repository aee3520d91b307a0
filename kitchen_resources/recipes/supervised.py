"""The recipe of supervised fine-tuning."""

from typing import ClassVar, Literal

from kitchen_resources.recipes.fields import recipe_field
from kitchen_resources.recipes.recipe import Recipe


class SupervisedRecipe(Recipe):
    """Supervised fine-tuning: the model learns to give the answers that the rows hold."""

    method: ClassVar[str] = "supervised"

    train_on: Literal[
        "last_assistant_message",
        "all_assistant_messages",
        "all_messages",
        "all_tokens",
        "all_user_and_system_messages",
        "customized",
    ] = recipe_field(
        "last_assistant_message",
        "Which tokens are learned. `customized`: the messages with `trainable: true`.",
        moves="data",
    )
    packing: bool = recipe_field(
        False, "Put several rows into one sequence of `max_length`, each seeing only itself.", moves="data"
    )
