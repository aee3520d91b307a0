"""The recipe of distillation."""

from typing import ClassVar, Literal

from kitchen_resources.recipes.fields import recipe_field
from kitchen_resources.recipes.recipe import Draws, Recipe

_READ = {
    "logit": frozenset({"alpha", "kd_temperature"}),
    "on_policy": frozenset({"divergence", "max_tokens", "temperature"}),
    # The answers that it reads are part of the data.
    "sequence": frozenset(),
}
"""Fields that only some modes read."""


class DistillationRecipe(Recipe):
    """Distillation: a student learns from a teacher.

    `sequence` trains on answers that the teacher gives to the prompts of the rows (Kim and Rush 2016). `logit` trains on
    the rows with the teacher's whole distribution: alpha x T^2 x KL + (1 - alpha) x cross entropy (Hinton et al. 2015).
    `on_policy` lets the student answer and compares its distribution with the teacher's on what it wrote (GKD, Agarwal et
    al. 2024).
    """

    method: ClassVar[str] = "distillation"

    teacher: str = recipe_field(
        "", "Teacher, named as `model` is; `teacher_from` in the recipe's file names another recipe.", moves="base"
    )
    mode: Literal["sequence", "logit", "on_policy"] = recipe_field(
        "logit",
        "What the student learns from: the teacher's answers, its distribution, or its own answers.",
        moves="weights",
    )
    train_on: Literal["last_assistant_message", "all_assistant_messages", "all_messages", "all_tokens"] = (
        recipe_field(
            "last_assistant_message", "Which tokens are learned, in the modes `logit` and `sequence`.", moves="data"
        )
    )
    alpha: float = recipe_field(
        0.5, "`logit`: share of the teacher's distribution in the loss.", moves="weights", minimum=0, maximum=1
    )
    kd_temperature: float = recipe_field(
        2.0, "`logit`: temperature at which the distributions are compared.", moves="weights", above=0
    )
    divergence: float = recipe_field(
        1.0,
        "`on_policy`: 1 is the reverse KL to the teacher, 0 the forward KL, between them the generalised Jensen-Shannon "
        "divergence.",
        moves="weights",
        minimum=0,
        maximum=1,
    )
    max_tokens: int = recipe_field(
        256, "`sequence` and `on_policy`: longest answer that is sampled, in tokens.", moves="weights", minimum=1
    )
    temperature: float = recipe_field(
        1.0,
        "`sequence` and `on_policy`: sampling temperature; 0 lets a teacher answer greedily. On policy also of the loss.",
        moves="weights",
        minimum=0,
    )

    def unread(self) -> frozenset[str]:
        """See `Recipe.unread`."""
        return frozenset[str]().union(*_READ.values()) - _READ[self.mode]

    def draws(self, rows: int) -> Draws | None:
        """See `Recipe.draws`: a pass over the prompts on policy too, but for those that fill no whole batch."""
        if self.mode != "on_policy":
            return None
        prompts = self.batch_size * self.gradient_accumulation_steps
        return Draws(prompts=prompts, count=max(1, rows // prompts))

    def companions(self) -> dict[str, tuple[str, str]]:
        """See `Recipe.companions`: the teacher."""
        return {"teacher": (self.teacher, self.definition.teacher_from)}
