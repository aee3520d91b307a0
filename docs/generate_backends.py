"""Writes docs/backends.md from its template and from what the backends say of themselves.

python docs/generate_backends.py           writes it
python docs/generate_backends.py --check   fails when it isn't up to date
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitchen_resources.errors import CapabilityError
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.local.backend import LocalTrainer
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.port import Trainer
from kitchen_resources.training.preflight import require_capable
from kitchen_resources.training.tinker.backend import TinkerTrainer
from kitchen_resources.training.trl.backend import TrlTrainer

HERE = Path(__file__).parent
TEMPLATE = HERE / "backends.template.md"
PAGE = HERE / "backends.md"

WORKS, NOT_OFFERED = "works", "not offered"


@dataclass(frozen=True)
class Shown:
    """A backend of the tables.

    Attributes:
        trainer: It.
        needs: Recipe fields without which nothing is trained there.
    """

    trainer: Trainer
    needs: Mapping[str, Any]


BACKENDS = {
    "trl": Shown(TrlTrainer(), {}),
    "trl, processes: 2": Shown(TrlTrainer(processes=2), {"gradient_accumulation_steps": 2}),
    "local": Shown(LocalTrainer(), {}),
    "tinker": Shown(TinkerTrainer("any"), {"lora": {"rank": 8}}),
    "noop": Shown(NoopTrainer(), {}),
}

_S, _P, _R, _D = SupervisedRecipe, PreferenceRecipe, ReinforcementRecipe, DistillationRecipe
Asked = tuple[type[Recipe], dict[str, Any]]

FEATURES: Mapping[str, Asked] = {
    "supervised": (_S, {}),
    "supervised, packed rows": (_S, {"packing": True}),
    "supervised, a loss of one's own": (_S, {"loss": "kitchen_resources.training.custom_loss:find_loss"}),
    "preference, sigmoid loss": (_P, {}),
    "preference, other losses": (_P, {"loss_type": ["ipo"]}),
    "preference, precomputed reference": (_P, {"precompute_reference": True}),
    "reinforcement (PPO's surrogate, per token)": (_R, {"loss_type": "dapo"}),
    "reinforcement, CISPO": (_R, {"loss_type": "cispo"}),
    "reinforcement, GRPO's own normalisation": (_R, {"loss_type": "grpo"}),
    "reinforcement, top-p and top-k": (_R, {"loss_type": "dapo", "top_p": 0.9}),
    "distillation, on the teacher's answers": (_D, {"mode": "sequence"}),
    "distillation, on policy": (_D, {"mode": "on_policy"}),
    "distillation, by logits": (_D, {"mode": "logit"}),
    "LoRA": (_S, {"lora": {"rank": 8}}),
    "the whole model": (_S, {"lora": None}),
    "a frozen base in 8 or 4 bits": (_S, {"lora": {"rank": 8}, "quantization": "4bit"}),
    "checkpoints inside an epoch": (_S, {"checkpoint_steps": 5}),
    "optimisers other than AdamW": (_S, {"optimizer": "sgd"}),
    "precision as the recipe says": (_S, {"precision": "fp32"}),
}
"""What is asked for, as a recipe; a backend offers it when it refuses nothing of it."""

_RESUME = {"exact": "the same bits", "state": "weights and moments, by a probe's loss", "none": "no"}


def render() -> str:
    """The whole page."""
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.replace("{{ features }}", "\n".join(_table()))


def offered(shown: Shown, asked: Asked) -> bool:
    """Whether a backend refuses nothing of a recipe."""
    method, values = asked
    values = {**shown.needs, **values}
    if "lora" in shown.needs and values["lora"] is not None:
        values["lora"] = {**shown.needs["lora"], **values["lora"]}
    loss = values.pop("loss", "")
    given = {"model": "any", "dataset": "any", "teacher": "any"}
    known = {name: value for name, value in {**given, **values}.items() if name in method.model_fields}
    recipe = bind(method, known, RecipeDefinition(name="asked", loss=loss))
    try:
        require_capable(recipe, shown.trainer.capabilities())
    except CapabilityError:
        return False
    return not shown.trainer.check(recipe)


def main(arguments: list[str]) -> int:
    """Write the page, or compare it; the exit status."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    page = render()
    if arguments == []:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    print(f"{PAGE} is not up to date; run: python docs/generate_backends.py", file=sys.stderr)  # noqa: T201
    return 1


def _table() -> Iterator[str]:
    yield "| | " + " | ".join(f"`{name}`" for name in BACKENDS) + " |"
    yield "|---" * (len(BACKENDS) + 1) + "|"
    for name, asked in FEATURES.items():
        marks = (_mark(shown, asked) for shown in BACKENDS.values())
        yield f"| {name} | " + " | ".join(marks) + " |"
    resumes = (_RESUME[shown.trainer.capabilities().resume] for shown in BACKENDS.values())
    yield "| what a resume gives back | " + " | ".join(resumes) + " |"


def _mark(shown: Shown, asked: Asked) -> str:
    if not offered(shown, asked):
        return NOT_OFFERED
    return "simulated" if shown.trainer.capabilities().simulated else WORKS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
