"""Identities of recipes with everything around them fixed, so that they are the same on every machine.

`python tests/unit/recipe_identities.py > tests/unit/fingerprints.json` writes the committed ones anew. A fingerprint
that moves makes every finished run of such a recipe train again: see `test_recipes_identity.py` before you do.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipe_cases import recipe

from kitchen_assets.kitchen import BUILT_IN_RECIPES
from kitchen_resources.recipes.files import load_recipe
from kitchen_resources.recipes.identity import Identity, Start, identify
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.plan import TrainingPlan, make_plan
from kitchen_resources.training.port import BaseModel, LocalCheckpoint, Resolution
from kitchen_resources.training.pytorch.models import weight_dtype
from kitchen_resources.training.trl.arguments import OPTIMIZERS
from kitchen_resources.training.trl.backend import TRL_ALGORITHM_VERSION
from kitchen_resources.training.trl.supervised import ALGORITHM_VERSION

FINGERPRINTS = Path(__file__).with_name("fingerprints.json")

ROWS = 198
"""Training rows: 13 steps an epoch of 16 rows, the last with 6."""

BASE = BaseModel("path/to/model", Path("/models/base"), "b" * 64, {"config.json": "c" * 64}, 1_000_000, 4_000_000)
DATA_DIGEST = "d" * 64
PAD_TOKEN_ID = 258


def resolution(recipe: Recipe) -> Resolution:
    """What the `trl` backend answers on a CPU, whatever this machine is."""
    precision = "fp32" if recipe.precision == "auto" else recipe.precision
    return Resolution(
        algorithm={"trl": TRL_ALGORITHM_VERSION, "trl.supervised": ALGORITHM_VERSION},
        values={
            "precision": precision,
            "weight_dtype": weight_dtype(recipe, precision),
            "attention": "sdpa" if recipe.attention == "auto" else recipe.attention,
            "optimizer": OPTIMIZERS[recipe.optimizer],
            "world_size": 1,
        },
        threads=1,
        device="cpu",
        environment={"torch": "2.13.0", "threads": 1},
        memory_bytes=1,
        state_bytes=1,
    )


def plan(recipe: Recipe) -> TrainingPlan:
    """The steps of a recipe over the fixed number of rows."""
    return make_plan(recipe, ROWS)


def identity(recipe: Recipe, **others: Any) -> Identity:
    """The identity of a recipe; `others` replace what is fixed, by the names of the arguments of `identify`."""
    return identify(
        recipe,
        others.pop("base", BASE),
        others.pop("resolution", None) or resolution(recipe),
        others.pop("plan", None) or plan(recipe),
        data_digest=others.pop("data_digest", DATA_DIGEST),
        pad_token_id=others.pop("pad_token_id", PAD_TOKEN_ID),
        start=others.pop("start", None),
        besides=others.pop("besides", None),
    )


def start(carry: str = "all", **checkpoint: Any) -> Start:
    """A checkpoint to go on from."""
    fixed = LocalCheckpoint(Path("/starts/a"), 3, 39, 13, True, "e" * 64)
    return Start("f" * 64, replace(fixed, **checkpoint), carry)


def built_in() -> SupervisedRecipe:
    """The built-in recipe, as its file says."""
    made = load_recipe(BUILT_IN_RECIPES / "supervised.yaml", {"supervised": SupervisedRecipe})
    assert isinstance(made, SupervisedRecipe)
    return made


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "another seed": {"seed": 17},
    "another learning rate and decay": {"learning_rate": 2.0e-4, "weight_decay": 0.01, "max_grad_norm": 0.0},
    "cosine with a share of warm-up": {"lr_schedule": "cosine", "warmup_ratio": 0.1, "lr_final": 1.0e-6},
    "polynomial with steps of warm-up": {"lr_schedule": "polynomial", "lr_power": 2.0, "warmup_steps": 7},
    "exponential": {"lr_schedule": "exponential", "lr_decay_rate": 0.99},
    "constant, cut short": {"lr_schedule": "constant", "max_steps": 20},
    "accumulation": {"batch_size": 4, "gradient_accumulation_steps": 4, "gradient_checkpointing": True},
    "betas of another optimiser": {"optimizer": "adamw_fused", "adam_beta2": 0.95, "adam_eps": 1.0e-6},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1},
    "LoRA": {"lora": {"rank": 8, "alpha": 16, "dropout": 0.1}},
    "LoRA on two modules": {"lora": {"target_modules": ["v_proj", "q_proj"], "rslora": True}, "precision": "bf16"},
    "a quantized base": {"lora": {"rank": 64}, "quantization": "4bit", "precision": "bf16"},
    "deterministic": {"deterministic": True, "attention": "eager"},
    "further arguments": {"trainer_args": {"neftune_noise_alpha": 5.0, "label_smoothing_factor": 0.1}},
}
"""What differs from the defaults."""


def recipes() -> dict[str, Recipe]:
    """The recipes whose fingerprints are committed."""
    return {"built-in": built_in(), **{name: recipe(values) for name, values in VARIANTS.items()}}


def committed() -> dict[str, Any]:
    """By name: the fingerprint and the identity that it is the digest of."""
    import method_identities

    return {
        **{name: _record(made) for name, made in method_identities.committed().items()},
        **{name: _record(identity(made)) for name, made in recipes().items()},
        "continued": _record(identity(recipe(), start=start())),
        "continued with its weights alone": _record(identity(recipe(), start=start("weights"))),
    }


def _record(made: Identity) -> dict[str, Any]:
    return {"fingerprint": made.fingerprint, "identity": dict(made.value)}


if __name__ == "__main__":
    print(json.dumps(committed(), indent=1, sort_keys=True))
