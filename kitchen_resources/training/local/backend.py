"""The `local` backend as a `Trainer`: the kitchen's own loops on a client in this process."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.loops.offered import check_loops
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
            own_code=True,
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
        from kitchen_resources.training.pytorch.sizing import longest_prompt

        return longest_prompt(self._job)

    def _settings(self) -> Any:
        from kitchen_resources.training.local.client import LocalSettings

        job = self._job
        return LocalSettings(
            seed=job.recipe.seed,
            pad_token_id=job.data.pad_token_id,
            rows_at_a_time=job.recipe.batch_size,
            bf16=job.resolution.values["precision"] == "bf16",
        )
