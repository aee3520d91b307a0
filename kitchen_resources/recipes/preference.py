"""The recipe of preference optimisation."""

from typing import Any, ClassVar, List, Optional

from kitchen_resources.recipes.fields import recipe_field
from kitchen_resources.recipes.recipe import Recipe

LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
"""TRL's preference losses."""


class PreferenceRecipe(Recipe):
    """Direct preference optimisation: of two answers to a prompt, the model learns to prefer the chosen one."""

    method: ClassVar[str] = "preference"
    promoted_by: ClassVar[str] = "held_out/accuracy"

    learning_rate: float = recipe_field(
        1.0e-6, "Peak learning rate. In YAML write 1.0e-6: 1e-6 is read as text.", moves="weights", minimum=0
    )
    beta: float = recipe_field(
        0.1,
        "How dearly leaving the reference is paid: reward is beta times the log-ratio to it.",
        moves="weights",
        above=0,
    )
    loss_type: List[str] = recipe_field(
        ["sigmoid"],
        f"One of TRL's preference losses, or several whose sum is trained: {', '.join(LOSSES)}.",
        moves="weights",
    )
    loss_weights: Optional[List[float]] = recipe_field(
        None, "Weight of each loss in `loss_type`; null for 1 each.", moves="weights"
    )
    label_smoothing: float = recipe_field(
        0.0,
        "Share of pairs taken to be the wrong way round (sigmoid doesn't read it; exo_pair needs it above 0).",
        moves="weights",
        minimum=0,
        below=1,
    )
    reference_model: Optional[str] = recipe_field(
        None,
        "Model that the log-ratio is to; null for the run's own base. Named as `model` is, same vocabulary.",
        moves="base",
    )
    precompute_reference: bool = recipe_field(
        False,
        "Work out the reference's log-probabilities once, into the store, and hold no second model in memory.",
        moves="weights",
    )
    select_metric: str = recipe_field(
        "held_out/accuracy",
        "Metric of `select`, `keep_best` and early stopping: `<evaluation>/<metric>`.",
        moves="nothing",
    )

    def resolved(self) -> dict[str, Any]:
        """See `Recipe.resolved`."""
        return {"loss_weights": self.loss_weights or [1.0] * len(self.loss_type)}

    def companions(self) -> dict[str, tuple[str, str]]:
        """See `Recipe.companions`: the reference, where it isn't the base."""
        return {} if self.reference_model is None else {"reference": (self.reference_model, "")}
