"""The `local` backend as a `Trainer`: the kitchen's own loops on a client in this process."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.port import BaseModel, Capabilities, Resolution, Session, TrainingClient, TrainingJob

ALGORITHM_VERSION = 1
"""Raised by hand when the client's arithmetic changes."""


class LocalTrainer:
    """Trains by primitives in this process."""

    def __init__(self, device: str = "auto", threads: int | None = None) -> None:
        self._device = device
        self._threads = threads

    def capabilities(self) -> Capabilities:
        """See `Trainer.capabilities`."""
        return Capabilities(
            backend="local",
            methods=frozenset({"supervised", "preference", "reinforcement", "distillation"}),
            resume="exact",
            step_checkpoints=frozenset({"supervised", "preference", "distillation"}),
            quantization=frozenset({"none", "8bit", "4bit"}),
        )

    def check(self, recipe: Recipe) -> list[Problem]:
        """See `Trainer.check`."""
        return check_loops(recipe)

    def resolve(
        self, recipe: Recipe, base: BaseModel, models: Mapping[str, BaseModel] = MappingProxyType({})
    ) -> Resolution:
        """See `Trainer.resolve`."""
        from kitchen_resources.training.loops.session import LOOPS
        from kitchen_resources.training.pytorch.sizing import resolve_here

        return resolve_here(
            recipe,
            base,
            models,
            device=self._device,
            threads=self._threads,
            algorithm={
                "local": ALGORITHM_VERSION,
                f"loops.{recipe.method}": LOOPS[recipe.method].ALGORITHM_VERSION,
            },
            optimizer="adamw",
            frozen_copies=int(isinstance(recipe, ReinforcementRecipe) and recipe.kl_coef > 0),
        )

    def open(self, job: TrainingJob) -> Session:
        """See `Trainer.open`."""
        from kitchen_resources.training.loops.session import LoopSession

        return LoopSession(job, LocalClients(job), exact_inside=self.capabilities().is_exact_inside(job.recipe))


def check_loops(recipe: Recipe) -> list[Problem]:
    """What of a recipe the kitchen's own loops don't do."""
    problems: list[Problem] = []
    for name in recipe.trainer_args:
        problems.append(
            (f"trainer_args.{name}", "is an argument of TRL, which this backend doesn't use", "remove it")
        )
    if recipe.optimizer != "adamw":
        problems.append(("optimizer", f"{recipe.optimizer} is not offered by this backend", "optimizer: adamw"))
    if isinstance(recipe, PreferenceRecipe) and recipe.loss_type != ["sigmoid"]:
        problems.append(("loss_type", "only sigmoid is offered by this backend", "loss_type: [sigmoid]"))
    if isinstance(recipe, ReinforcementRecipe):
        problems.extend(_check_reinforcement(recipe))
    if isinstance(recipe, DistillationRecipe):
        if recipe.mode == "logit":
            problems.append(
                (
                    "mode",
                    "logit needs the teacher's whole distribution, which primitives don't give",
                    "mode: on_policy",
                )
            )
        if recipe.mode == "on_policy" and recipe.divergence != 1.0:
            problems.append(("divergence", "only the reverse KL is offered by this backend", "divergence: 1.0"))
        if recipe.mode == "on_policy" and recipe.temperature != 1.0:
            problems.append(("temperature", "must be 1 on this backend", "temperature: 1.0"))
    return problems


def _check_reinforcement(recipe: ReinforcementRecipe) -> list[Problem]:
    problems: list[Problem] = []
    fixed: Mapping[str, tuple[Any, Any, str]] = {
        "top_p": (recipe.top_p, 1.0, "top_p: 1.0"),
        "top_k": (recipe.top_k, 0, "top_k: 0"),
        "temperature": (recipe.temperature, 1.0, "temperature: 1.0"),
        "importance_level": (recipe.importance_level, "token", "importance_level: token"),
        "generation.engine": (recipe.generation.engine, "transformers", "generation: {engine: transformers}"),
    }
    for path, (value, offered, fix) in fixed.items():
        if value != offered:
            problems.append((path, f"must be {offered} on this backend, got {value}", fix))
    if recipe.loss_type not in ("dapo", "cispo"):
        problems.append(("loss_type", f"{recipe.loss_type} is not offered by this backend", "loss_type: dapo"))
    if recipe.scale_rewards == "batch":
        problems.append(("scale_rewards", "batch is not offered by this backend", "scale_rewards: group"))
    return problems


class LocalClients:
    """Opens clients of a job's models in this process."""

    def __init__(self, job: TrainingJob) -> None:
        import torch

        self._job = job
        self._threads = torch.get_num_threads()
        torch.set_num_threads(job.resolution.threads)
        if job.recipe.deterministic:
            torch.use_deterministic_algorithms(True)

    def open(self) -> TrainingClient:
        """See `Clients.open`."""
        from kitchen_resources.training.local.opening import open_client
        from kitchen_resources.training.pytorch.models import lora_config

        job = self._job
        assert job.base.folder is not None
        return open_client(
            job.base.folder,
            self._settings(),
            dtype=job.resolution.values["weight_dtype"],
            attention=job.resolution.values["attention"],
            quantization=job.recipe.quantization,
            lora=lora_config(job.recipe),
            gradient_checkpointing=job.recipe.gradient_checkpointing,
            device=job.resolution.device,
        )

    def frozen(self, role: str) -> TrainingClient:
        """See `Clients.frozen`."""
        from kitchen_resources.training.local.opening import open_client

        job = self._job
        model = job.models.get(role, job.base)
        assert model.folder is not None
        return open_client(
            model.folder,
            self._settings(),
            dtype="bfloat16" if job.resolution.values["precision"] == "bf16" else "float32",
            attention=job.resolution.values["attention"],
            device=job.resolution.device,
        )

    def errors(self, epoch: int) -> AbstractContextManager[None]:
        """See `Clients.errors`."""
        from kitchen_resources.training.pytorch.failures import errors_named

        return errors_named(self._job, epoch)

    def device_memory(self) -> int:
        """See `Clients.device_memory`."""
        import torch

        return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0

    def close(self) -> None:
        """See `Clients.close`."""
        import torch

        torch.set_num_threads(self._threads)

    def longest_prompt(self) -> int | None:
        """See `Clients.longest_prompt`."""
        from kitchen_resources.training.pytorch.sizing import model_config

        assert self._job.base.folder is not None
        text = model_config(self._job.base.folder).get_text_config()
        positions = getattr(text, "max_position_embeddings", None)
        longest = getattr(self._job.recipe, "max_tokens", 0)
        return positions - longest if isinstance(positions, int) else None

    def _settings(self) -> Any:
        from kitchen_resources.training.local.client import LocalSettings

        job = self._job
        return LocalSettings(
            seed=job.recipe.seed,
            pad_token_id=job.data.pad_token_id,
            rows_at_a_time=job.recipe.batch_size,
            bf16=job.resolution.values["precision"] == "bf16",
        )
