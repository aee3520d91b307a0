"""The `modal` backend as a `Trainer`: TRL's trainers in a function of Modal."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from kitchen_resources.dagster_context import current_context
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.modal.calls import WHERE, ModalCalls
from kitchen_resources.training.port import BaseModel, Capabilities, Resolution, Session, TrainingJob
from kitchen_resources.training.trl.backend import TrlTrainer

CALL_TAG = "kitchen/modal_call"
"""Tag of a Dagster run: the Modal call that trains its epoch."""


class ModalTrainer:
    """Trains in a deployed function, by `trl` there.

    Args:
        app: Name of the app.
        function: Name of its function.
        environment: Modal environment; None for the profile's own.
        device: What the function has: cuda or cpu.
        threads: CPU threads there; None for as many as suit the model.
        start_deadline_s: How long a call may wait for a machine, in seconds.
    """

    def __init__(
        self,
        app: str = "crucible-kitchen",
        function: str = "carry_out",
        *,
        environment: str | None = None,
        device: str = "cuda",
        threads: int | None = None,
        start_deadline_s: float = 3600.0,
    ) -> None:
        self._calls = ModalCalls(app, function, environment)
        self._worker = TrlTrainer(device=device, threads=threads, elsewhere="Modal")
        self._start_deadline_s = start_deadline_s

    def capabilities(self) -> Capabilities:
        """See `Trainer.capabilities`."""
        return replace(self._worker.capabilities(), backend="modal", by_store=True)

    def check(self, recipe: Recipe) -> list[Problem]:
        """See `Trainer.check`."""
        return self._worker.check(recipe)

    def resolve(
        self, recipe: Recipe, base: BaseModel, models: Mapping[str, BaseModel] = MappingProxyType({})
    ) -> Resolution:
        """See `Trainer.resolve`. Asks Modal whether the function is there.

        Raises:
            BackendError: Modal can't be asked, or refuses the token.
            CapabilityError: The function isn't deployed, or a package is missing.
        """
        self._calls.require_function()
        return self._worker.resolve(recipe, base, models)

    def open(self, job: TrainingJob) -> Session:
        """See `Trainer.open`."""
        from kitchen_resources.training.orders.following import OrdersSession, Patience

        context = current_context(where=WHERE)
        return OrdersSession(
            job,
            self._calls,
            exact_inside=self.capabilities().is_exact_inside(job.recipe),
            called=lambda call: context.instance.add_run_tags(context.run.run_id, {CALL_TAG: call}),
            patience=Patience(start=self._start_deadline_s),
        )
