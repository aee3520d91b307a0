"""Promise 1 for each method: the bits of a plain TRL script, in one go and after a SIGKILL in epoch 2."""

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from plain import PlainTrainer, weights_digest

import kitchen_assets as kitchen
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.embedded import write_model
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe, RecipeDefinition
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from tests.faults.forked import forked
from tests.faults.trl_kills import import_everything, train
from tests.workflows.conftest import Bench

pytestmark = pytest.mark.heavy

EPOCHS = 3
COMMON: dict[str, Any] = {
    "max_length": 64,
    "epochs": EPOCHS,
    "batch_size": 8,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1.0e-3,
    "lr_schedule": "linear",
    "eval_every": 0,
    "select_metric": "held_out/loss",
}
PLAIN: dict[str, Any] = {
    "num_train_epochs": EPOCHS,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1.0e-3,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "seed": 0,
    "data_seed": 0,
}
LORA = {"rank": 8, "alpha": 16, "dropout": 0.1}
PLAIN_LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}

PAIRS = {"dataset": "embedded:date_pairs", "max_rows": 90}
GAMES = {
    "dataset": "environment",
    "steps_per_epoch": 4,
    "group_size": 4,
    "groups_per_batch": 4,
    "max_tokens": 5,
    "max_rows": 30,
}
PLAIN_GAMES = {
    "num_generations": 4,
    "max_completion_length": 5,
    "temperature": 1.0,
    "scale_rewards": "none",
    "loss_type": "dapo",
    "epsilon": 0.2,
}
DATES = {"dataset": "embedded:dates", "max_rows": 90}


@dataclass(frozen=True)
class Case:
    """A recipe, and the plain script that does the same.

    Attributes:
        recipe: Class of the recipe.
        fields: Its fields beside the common ones; TEACHER stands for the folder of another model.
        script: Which of the plain scripts.
        arguments: Fields of TRL's config class beside the common ones.
        besides: What the script needs besides.
        lora: Whether a LoRA is trained.
        dropout: Whether the model has dropout in attention.
    """

    recipe: type[Recipe]
    fields: Mapping[str, Any]
    script: str
    arguments: Mapping[str, Any]
    besides: Mapping[str, Any] = field(default_factory=dict)
    lora: bool = False
    dropout: bool = False


CASES = {
    "preference, full": Case(PreferenceRecipe, {**PAIRS, "beta": 0.3}, "preference", {"beta": 0.3}),
    "preference, LoRA, precomputed, two losses": Case(
        PreferenceRecipe,
        {**PAIRS, "precompute_reference": True, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
        "preference",
        {"precompute_ref_log_probs": True, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
        lora=True,
    ),
    "preference, another reference": Case(
        PreferenceRecipe, {**PAIRS, "reference_model": "TEACHER"}, "preference", {}, {"reference": "TEACHER"}
    ),
    "reinforcement, one turn, KL to the base": Case(
        ReinforcementRecipe,
        {**GAMES, "environment": {"name": "letters", "args": {"turns": 1}}, "kl_coef": 0.1},
        "reinforcement",
        {**PLAIN_GAMES, "beta": 0.1},
        {"turns": 1, "blocks": {"prompts": 4, "draws": 4, "group": 4, "times": 2}},
        dropout=True,
    ),
    "reinforcement, two turns, LoRA, two PPO epochs": Case(
        ReinforcementRecipe,
        {**GAMES, "environment": {"name": "letters", "args": {"turns": 2}}, "ppo_epochs": 2, "kl_coef": 0.05},
        "reinforcement",
        {**PLAIN_GAMES, "num_iterations": 2, "beta": 0.05},
        {"turns": 2, "blocks": {"prompts": 4, "draws": 2, "group": 4, "times": 4}},
        lora=True,
    ),
    "distillation, logits": Case(
        DistillationRecipe,
        {**DATES, "teacher": "TEACHER", "mode": "logit", "alpha": 0.7, "kd_temperature": 1.5},
        "logits",
        {},
        {"teacher": "TEACHER", "alpha": 0.7, "temperature": 1.5},
        dropout=True,
    ),
    "distillation, logits, LoRA": Case(
        DistillationRecipe,
        {**DATES, "teacher": "TEACHER", "mode": "logit"},
        "logits",
        {},
        {"teacher": "TEACHER", "alpha": 0.5, "temperature": 2.0},
        lora=True,
    ),
    "distillation, on policy": Case(
        DistillationRecipe,
        {**DATES, "teacher": "TEACHER", "mode": "on_policy", "max_tokens": 6},
        "on_policy",
        {"max_completion_length": 6, "beta": 1.0, "temperature": 1.0},
        {"teacher": "TEACHER", "blocks": {"prompts": 16, "draws": 5, "group": 1, "times": 2}},
        dropout=True,
    ),
    "distillation, on policy, LoRA, generalised": Case(
        DistillationRecipe,
        {**DATES, "teacher": "TEACHER", "mode": "on_policy", "max_tokens": 6, "divergence": 0.5},
        "on_policy",
        {"max_completion_length": 6, "beta": 0.5, "temperature": 1.0},
        {"teacher": "TEACHER", "blocks": {"prompts": 16, "draws": 5, "group": 1, "times": 2}},
        lora=True,
    ),
    "distillation, sequence": Case(
        DistillationRecipe,
        {
            **DATES,
            "teacher": "TEACHER",
            "mode": "sequence",
            "max_tokens": 200,
            "max_length": 256,
            "row_limits": {"untrained": 1.0},
        },
        "supervised",
        {},
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_a_run_has_the_bits_of_a_plain_trl_script(bench: Bench, plain: PlainTrainer, name: str) -> None:
    import_everything()
    case = CASES[name]
    model, teacher = _models(bench.folder, dropout=case.dropout)
    fields = _named({**COMMON, "model": model, **case.fields, "lora": LORA if case.lora else None}, teacher)
    recipe = bind(case.recipe, fields, RecipeDefinition(name=case.recipe.method))

    result = kitchen.run(recipe, {}, bench.resources(), instance=bench.instance)
    ours = weights_digest(bench.weights(result.fingerprint))

    written: dict[str, Any] = {
        "model": Path(model),
        "parquet": bench.prepared(),
        "lora": PLAIN_LORA if case.lora else None,
        "method": case.script,
    }
    besides = _named(case.besides, teacher)
    blocks = besides.pop("blocks", None)
    arguments = {**PLAIN, **case.arguments}

    def by_script(folder: str, seed: int) -> str:
        drawn = {"blocks": {"seed": seed, **blocks}} if blocks else {}
        given = arguments if blocks else {**arguments, "data_seed": seed}
        return plain.train(bench.folder / folder, **written, arguments=given, **besides, **drawn)

    assert by_script("plain", 0) == ours
    assert weights_digest(Path(model)) != ours
    # Each method has cases of both kinds.
    if case.lora:
        assert _killed_in_epoch_2(bench.folder / "killed", case.recipe, fields) == ours
    else:
        # The control: with the rows in another order the same script gives other bits.
        assert by_script("control", 1) != ours


def _killed_in_epoch_2(root: Path, recipe: type[Recipe], fields: Mapping[str, Any]) -> str:
    """Digest of the weights of a run that is killed at its second step of epoch 2, and run again."""
    with forked(train(root, recipe, fields)) as child:
        said = []
        while len([line for line in said if line.startswith("step 2 ")]) < 2:
            said.append(child.line())
            assert said[-1], said
            assert not said[-1].startswith("failed"), said
        child.kill()
        assert child.wait() == -signal.SIGKILL
    with forked(train(root, recipe, fields)) as child:
        said = child.rest()
        assert child.wait() == 0, said
    steps = [line.split()[1:] for line in said if line.startswith("step ")]
    assert {epoch for epoch, _ in steps} == {"2", "3"}
    store = CheckpointStore(LocalBlobs(root))
    (fingerprint,) = store.find("")
    entry = store.head(fingerprint).entries()[-1]
    return weights_digest(store.checkout(fingerprint, entry, root / "weights").folder)


def _models(folder: Path, *, dropout: bool) -> tuple[str, str]:
    """Folders of the model and of another one, a teacher or reference."""
    for name, seed in (("student", 0), ("teacher", 5)):
        write_model(folder / name, seed=seed)
    path = folder / "student" / "config.json"
    config = {**json.loads(path.read_text()), "attention_dropout": 0.1 if dropout else 0.0}
    path.unlink()
    path.write_text(json.dumps(config))
    return str(folder / "student"), str(folder / "teacher")


def _named(fields: Mapping[str, Any], teacher: str) -> dict[str, Any]:
    return {name: teacher if value == "TEACHER" else value for name, value in fields.items()}
