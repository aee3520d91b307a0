"""The `fireworks_jobs` backend as a `Trainer`: a whole run is one managed job."""

import json
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pydantic

from kitchen_resources.dagster_context import current_context
from kitchen_resources.errors import CapabilityError
from kitchen_resources.recipes.fields import fields_with_facts, written_class
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.fireworks.account import Account
from kitchen_resources.training.fireworks.config import API
from kitchen_resources.training.fireworks.jobs import WHERE, FireworksJobs
from kitchen_resources.training.hosted.rows import TRAINED
from kitchen_resources.training.hosted.session import HostedSession, Patience
from kitchen_resources.training.port import BaseModel, Capabilities, Resolution, Session, TrainingJob
from kitchen_resources.training.remote.resolving import resolve_at_service

ALGORITHM_VERSION = 1
"""Raised by hand when what a job is made with changes."""

JOB_TAG = "kitchen/fireworks_job"
"""Tag of a Dagster run: the job that trains it."""

_SAID = frozenset(
    {
        *("epochs", "batch_size", "gradient_accumulation_steps", "learning_rate", "warmup_ratio", "warmup_steps"),
        *("weight_decay", "lora", "beta"),
        # Decides here which rows are held out; order and first weights are the service's own.
        "seed",
    }
)
"""Fields of a recipe that a job is told."""


class FireworksJobsTrainer:
    """Trains by a managed job.

    Args:
        base_model: The recipe's base, by its whole name there.
        base_url: Where the account is; None for Fireworks' own.
        account: Its id; None for the one that the key belongs to.
        patience: How long to wait for what.
    """

    def __init__(
        self,
        base_model: str,
        *,
        base_url: str | None = None,
        account: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._base_model = base_model
        self._url = base_url or API
        self._account = account
        self._patience = patience or Patience()

    def capabilities(self) -> Capabilities:
        """See `Trainer.capabilities`."""
        return Capabilities(
            backend="fireworks_jobs",
            methods=frozenset({"supervised", "preference"}),
            resume="none",
            full=False,
            in_one_go=True,
        )

    def check(self, recipe: Recipe) -> list[Problem]:
        """See `Trainer.check`: what a job can't be told must be as it is by default."""
        problems: list[Problem] = []
        problems.extend(_untold(recipe, _SAID))
        if recipe.lora is not None:
            problems.extend((f"lora.{name}", what, fix) for name, what, fix in _untold(recipe.lora, {"rank"}))
        for name in ("continue_from", "reference_model", "early_stop_patience"):
            if getattr(recipe, name, None) is not None:
                problems.append((name, "isn't offered by this backend, which trains a run in one go", "remove it"))
        train_on = getattr(recipe, "train_on", TRAINED[0])
        if train_on not in TRAINED:
            problems.append(("train_on", f"{train_on} can't be told to the service", f"train_on: {TRAINED[0]}"))
        if getattr(recipe, "packing", False):
            problems.append(("packing", "is the service's own affair", "packing: false"))
        if isinstance(recipe, PreferenceRecipe) and not 0 < recipe.beta < 0.5:
            problems.append(("beta", f"must be below 0.5 at this service, got {recipe.beta}", "beta: 0.1"))
        return problems

    def resolve(
        self, recipe: Recipe, base: BaseModel, models: Mapping[str, BaseModel] = MappingProxyType({})
    ) -> Resolution:
        """See `Trainer.resolve`. Asks the account whether it has the base.

        Raises:
            CapabilityError: It hasn't, or the SDK isn't installed.
        """
        self._account_there().require_model(self._base_model)
        return resolve_at_service(
            recipe,
            base,
            models,
            algorithm={"fireworks_jobs": ALGORITHM_VERSION},
            service_model=self._base_model,
            sdk="fireworks-ai",
        )

    def open(self, job: TrainingJob) -> Session:
        """See `Trainer.open`."""
        context = current_context(where=WHERE)
        pause = min(3.0, self._patience.ask)
        jobs = FireworksJobs(self._account_there(), job.recipe.method, self.settings(job), pause_s=pause)
        return HostedSession(
            job,
            jobs,
            state_file="fireworks_jobs.json",
            followed=lambda name: context.instance.add_run_tags(context.run.run_id, {JOB_TAG: name}),
            say=context.log.info,
            patience=self._patience,
        )

    def settings(self, job: TrainingJob) -> dict[str, Any]:
        """What a job is made with, by the SDK's own names."""
        recipe, template = job.recipe, job.data.extra.get("chat_template")
        if recipe.lora is None:
            raise CapabilityError("doesn't train the whole model", where=WHERE, fix="lora: {rank: 16}")
        told: dict[str, Any] = {
            "base_model": self._base_model,
            "epochs": recipe.epochs,
            "learning_rate": recipe.learning_rate,
            "learning_rate_warmup_steps": job.plan.warmup_steps,
            "lora_rank": recipe.lora.rank,
            "batch_size_samples": recipe.batch_size * recipe.gradient_accumulation_steps,
            "optimizer_weight_decay": recipe.weight_decay,
            "max_context_length": recipe.max_length,
        }
        if template:
            told["jinja_template"] = template
        if isinstance(recipe, PreferenceRecipe):
            told["loss_config"] = {"method": "DPO", "dpo": {"beta": recipe.beta}}
        return told

    def _account_there(self) -> Account:
        return Account("fireworks_jobs", self._url, self._account)


def _untold(fields: pydantic.BaseModel, told: Collection[str]) -> Iterator[Problem]:
    """What moves the weights, isn't as it is by default, and can't be told."""
    for name, field, facts in fields_with_facts(written_class(type(fields))):
        value, default = getattr(fields, name), field.get_default(call_default_factory=True)
        if facts.moves == "weights" and name not in told and value != default:
            usual = f"{name}: {json.dumps(default, default=str)}"
            yield name, f"is the service's own affair on this backend; got {value}", usual
