"""What the trainers of preference, reinforcement and distillation compute, against the formulas."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.embedded import write_model
from kitchen_resources.formulas.advantages import group_centered
from kitchen_resources.formulas.losses import distillation_loss
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import LOSSES, PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.training.port import StepMetrics
from kitchen_resources.training.trl import reinforcement
from kitchen_resources.training.trl.distillation import trainer_class
from tests import letters
from tests.faults.trl_kills import DISTILLATION, PREFERENCE, REINFORCEMENT, train

pytestmark = pytest.mark.heavy

PAIRS = {**PREFERENCE, "max_rows": 20, "epochs": 1, "held_out": "0", "eval_every": 0}


def steps(root: Path, recipe: type[Recipe], fields: Mapping[str, Any]) -> list[StepMetrics]:
    """The steps of a run, in this process."""
    train(root, recipe, fields)(lambda text: None)
    store = CheckpointStore(LocalBlobs(root))
    (fingerprint,) = store.find("")
    ends = [entry for entry in store.head(fingerprint).entries() if entry.epoch_complete]
    return [step for entry in ends for step in store.steps(store.manifest(entry))]


QUICK = ("sigmoid", "ipo", "sft")
"""Losses that `make test` trains with; the others are of the same shapes."""


@pytest.mark.parametrize(
    "loss", [pytest.param(loss, marks=() if loss in QUICK else pytest.mark.full) for loss in LOSSES]
)
def test_every_loss_trains(tmp_path: Path, loss: str) -> None:
    smoothing = {"label_smoothing": 0.1} if loss in ("exo_pair", "robust", "aot") else {}
    made = steps(tmp_path, PreferenceRecipe, {**PAIRS, "loss_type": [loss], **smoothing})
    assert len(made) == 3
    assert all(step.grad_norm > 0 for step in made)
    assert {"accuracy", "margin", "chosen_reward", "rejected_reward"} <= set(made[0].extra)


@pytest.mark.parametrize("fields", [{}, {"precompute_reference": True}, {"lora": {"rank": 4}}, {"precision": "bf16"}])
def test_the_first_step_prefers_nothing(tmp_path: Path, fields: dict[str, Any]) -> None:
    first = steps(tmp_path, PreferenceRecipe, {**PAIRS, **fields})[0]
    assert first.loss == pytest.approx(math.log(2), abs=1e-6)
    numbers = [first.extra[name] for name in ("accuracy", "margin", "chosen_reward")]
    if "precompute_reference" in fields:
        # Made in other batches, the reference's numbers differ in the last bits, and a tie may be broken by them.
        numbers[0] = 0.0
    assert numbers == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert first.tokens == 2 * 8 * 11


def test_another_reference_is_what_the_margin_is_to(tmp_path: Path) -> None:
    write_model(tmp_path / "other", seed=3)
    fields = {**PAIRS, "reference_model": str(tmp_path / "other")}
    first = steps(tmp_path / "store", PreferenceRecipe, fields)[0]
    assert first.extra["margin"] != 0.0
    ready = steps(tmp_path / "again", PreferenceRecipe, {**fields, "precompute_reference": True})[0]
    assert ready.extra["margin"] == first.extra["margin"]


def test_advantages_are_centred_in_their_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters.register()
    seen: list[tuple[list[float], list[float]]] = []
    trainer = reinforcement.trainer_class(ReinforcementRecipe())
    real = trainer._generate_and_score_completions

    def spied(self: Any, inputs: Any) -> Any:
        output = real(self, inputs)
        seen.append((list(self._logs["rewards"]["_episode_reward"]), output["advantages"].tolist()))
        return output

    monkeypatch.setattr(trainer, "_generate_and_score_completions", spied)
    made = steps(tmp_path, ReinforcementRecipe, {**REINFORCEMENT, "epochs": 1, "held_out": "0"})
    rewards, advantages = seen[-1]
    expected = [value for start in range(0, 16, 4) for value in group_centered(rewards[start : start + 4])]
    assert advantages == pytest.approx(expected, abs=1e-6)
    assert len(seen) == len(made) == 6
    assert made[-1].extra["reward"] == pytest.approx(sum(rewards) / 16, abs=1e-6)
    assert "ratio" not in made[-1].extra
    assert made[-1].extra["clip_fraction"] == 0.0


def test_several_steps_on_one_batch_move_the_ratio_and_clip(tmp_path: Path) -> None:
    letters.register()
    fields = {**REINFORCEMENT, "epochs": 1, "ppo_epochs": 3, "learning_rate": 1.0e-2, "held_out": "0"}
    made = steps(tmp_path, ReinforcementRecipe, fields)
    fresh, reused = made[0::3], [step for index, step in enumerate(made) if index % 3]
    assert all(step.extra["ratio_deviation"] < 1e-5 for step in fresh)
    assert all(step.extra["ratio_deviation"] > 1e-4 for step in reused)
    assert max(step.extra["clip_fraction"] for step in reused) > 0


def test_constant_groups_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters.register()
    shares: list[float] = []
    trainer = reinforcement.trainer_class(ReinforcementRecipe())
    real = trainer._generate_and_score_completions

    def spied(self: Any, inputs: Any) -> Any:
        output = real(self, inputs)
        rewards = list(self._logs["rewards"]["_episode_reward"])[-16:]
        pairs = list(zip(rewards[::2], rewards[1::2], strict=True))
        shares.append(sum(one == other for one, other in pairs) / len(pairs))
        assert all(output["advantages"].tolist()[2 * k] == 0 for k, (one, other) in enumerate(pairs) if one == other)
        return output

    monkeypatch.setattr(trainer, "_generate_and_score_completions", spied)
    # One token is a small letter or not: of two answers to a problem both are often the same.
    fields = {
        **REINFORCEMENT,
        "environment": {"name": "letters", "args": {"turns": 1}},
        "max_tokens": 1,
        "held_out": "0",
    }
    made = steps(tmp_path, ReinforcementRecipe, {**fields, "epochs": 1, "group_size": 2, "groups_per_batch": 8})
    assert [step.extra["constant_groups"] for step in made] == pytest.approx(shares)
    assert 0 < sum(shares) < len(shares)


def test_the_loss_of_logits_is_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    write_model(tmp_path / "teacher", seed=3)
    seen: list[tuple[float, float]] = []
    recipe = DistillationRecipe(mode="logit")
    trainer = trainer_class(recipe)
    real = trainer.compute_loss

    def spied(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            mask = inputs["labels"][:, 1:] != -100
            ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            own, wanted = (m(**ids).logits[:, :-1][mask].double().tolist() for m in (model, self._teacher))
        expected, _ = distillation_loss(
            own, wanted, inputs["labels"][:, 1:][mask].tolist(), alpha=0.3, temperature=1.7
        )
        loss = real(self, model, inputs, *args, **kwargs)
        seen.append((float(loss.detach()), expected))
        return loss

    monkeypatch.setattr(trainer, "compute_loss", spied)
    fields = {
        **DISTILLATION,
        "teacher": str(tmp_path / "teacher"),
        "mode": "logit",
        "alpha": 0.3,
        "kd_temperature": 1.7,
    }
    steps(tmp_path / "store", DistillationRecipe, {**fields, "max_rows": 20, "epochs": 1, "held_out": "0"})
    assert len(seen) == 3
    assert all(loss == pytest.approx(expected, rel=1e-5) for loss, expected in seen)


def test_what_is_sampled_ends_where_the_template_ends_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the base's own settings say otherwise: another token to stop at, and tokens that it may not write."""
    letters.register()
    write_model(tmp_path / "base")
    settings = {"eos_token_id": 256, "pad_token_id": 256, "suppress_tokens": list(range(200))}
    _rewritten(tmp_path / "base" / "generation_config.json", settings)
    config = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    _rewritten(tmp_path / "base" / "tokenizer_config.json", {**config, "eos_token": "<|pad|>"})
    turns: list[list[int]] = []
    trainer = reinforcement.trainer_class(ReinforcementRecipe())
    real = trainer._generate_single_turn

    def spied(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = real(self, *args, **kwargs)
        turns.extend(made[0])
        return made

    monkeypatch.setattr(trainer, "_generate_single_turn", spied)
    fields = {**REINFORCEMENT, "model": str(tmp_path / "base"), "max_tokens": 60, "epochs": 1, "held_out": "0"}
    made = steps(tmp_path / "store", ReinforcementRecipe, {**fields, "steps_per_epoch": 3})
    assert len(made) == 3
    ended = [turn for turn in turns if 258 in turn]
    assert ended
    assert all(turn.index(258) == len(turn) - 1 for turn in ended)
    assert any(token < 200 for turn in turns for token in turn)


def _rewritten(path: Path, value: Mapping[str, Any]) -> None:
    path.unlink()
    path.write_text(json.dumps(value))
