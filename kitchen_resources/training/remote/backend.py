"""A backend at a service of primitives as a `Trainer`: the kitchen's own loops on a client there."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.loops.offered import check_loops
from kitchen_resources.training.port import (
    BaseModel,
    Capabilities,
    Datum,
    Resolution,
    Session,
    TrainingClient,
    TrainingJob,
)
from kitchen_resources.training.remote.asking import Service, ServiceSettings
from kitchen_resources.training.remote.client import ALPHA, RemoteBaseClient, RemoteTrainingClient
from kitchen_resources.training.remote.resolving import resolve_at_service

_PROBE_ROWS = 4


@dataclass(frozen=True)
class ServiceKind:
    """An SDK, and the services that it opens.

    Attributes:
        name: Of the backend.
        open: Opens a session at a service; raises where the SDK or its key is missing.
        sdk: The SDK's package.
        algorithm_version: Raised by hand when what is sent changes its arithmetic.
    """

    name: str
    open: Callable[[ServiceSettings], Service]
    sdk: str
    algorithm_version: int = 1


class RemoteTrainer:
    """Trains at a service of primitives.

    Args:
        kind: By which SDK.
        base_model: The recipe's base, by the service's name of it.
        base_url: Where the service is; None for the SDK's own default.
        deadline_s: How long to wait for one answer, in seconds.
        keep_days: Days that the service keeps a state; None for as long as it likes.
        models: The service's names of the recipe's other models, by role; those without one run on this machine.
    """

    def __init__(
        self,
        kind: ServiceKind,
        base_model: str,
        *,
        base_url: str | None = None,
        deadline_s: float = 600.0,
        keep_days: float | None = 30.0,
        models: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._kind = kind
        self._base_model = base_model
        self._base_url = base_url
        self._deadline_s = deadline_s
        self._keep_days = keep_days
        self._models = dict(models)

    def capabilities(self) -> Capabilities:
        """See `Trainer.capabilities`."""
        return Capabilities(
            backend=self._kind.name,
            methods=frozenset({"supervised", "preference", "reinforcement", "distillation"}),
            resume="state",
            step_checkpoints=frozenset({"supervised", "preference", "distillation"}),
            own_code=True,
            full=False,
        )

    def check(self, recipe: Recipe) -> list[Problem]:
        """See `Trainer.check`."""
        return [*check_loops(recipe), *_check_adapter(recipe), *_check_numerics(recipe)]

    def resolve(
        self, recipe: Recipe, base: BaseModel, models: Mapping[str, BaseModel] = MappingProxyType({})
    ) -> Resolution:
        """See `Trainer.resolve`. Asks the service whether it is there and has the base."""
        from kitchen_resources.training.loops.session import LOOPS

        service = self._kind.open(self._settings(recipe))
        try:
            service.require_base_model()
        finally:
            service.close()
        algorithm = {
            self._kind.name: self._kind.algorithm_version,
            f"loops.{recipe.method}": LOOPS[recipe.method].ALGORITHM_VERSION,
        }
        return resolve_at_service(
            recipe, base, models, algorithm=algorithm, service_model=self._base_model, sdk=self._kind.sdk
        )

    def open(self, job: TrainingJob) -> Session:
        """See `Trainer.open`."""
        from kitchen_resources.training.loops.session import LoopSession

        service = self._kind.open(self._settings(job.recipe, job.fingerprint[:12]))
        clients = RemoteClients(job, service, self._models)
        return LoopSession(job, clients, exact_inside=self.capabilities().is_exact_inside(job.recipe))

    def _settings(self, recipe: Recipe, label: str = "") -> ServiceSettings:
        return ServiceSettings(
            base_url=self._base_url,
            base_model=self._base_model,
            rank=recipe.lora.rank if recipe.lora else 1,
            seed=recipe.seed,
            deadline_s=self._deadline_s,
            keep_days=self._keep_days,
            label=label,
        )


def _check_adapter(recipe: Recipe) -> list[Problem]:
    """An adapter's rank is all that such a service lets one choose."""
    lora = recipe.lora
    if lora is None:
        return []
    fixed: Mapping[str, tuple[Any, Any]] = {
        "alpha": (lora.alpha, ALPHA),
        "dropout": (lora.dropout, 0.0),
        "target_modules": (list(lora.target_modules), ["all-linear"]),
        "rslora": (lora.rslora, False),
    }
    return [
        (
            f"lora.{name}",
            f"must be {offered} on this backend, which always trains so; got {value}",
            f"{name}: {offered}",
        )
        for name, (value, offered) in fixed.items()
        if value != offered
    ]


def _check_numerics(recipe: Recipe) -> list[Problem]:
    """What the service alone decides."""
    fixed: Mapping[str, tuple[Any, Any]] = {
        "precision": (recipe.precision, "auto"),
        "attention": (recipe.attention, "auto"),
        "deterministic": (recipe.deterministic, False),
        "gradient_checkpointing": (recipe.gradient_checkpointing, False),
    }
    return [
        (name, f"is the service's own affair on this backend; got {value}", f"{name}: {str(offered).lower()}")
        for name, (value, offered) in fixed.items()
        if value != offered
    ]


class RemoteClients:
    """Opens clients of a job's models at the service; all of them in one session."""

    def __init__(self, job: TrainingJob, service: Service, models: Mapping[str, str]) -> None:
        self._job = job
        self._models = models
        self._service = service
        self._probe = _probe(job)

    def open(self) -> TrainingClient:
        """See `Clients.open`."""
        return RemoteTrainingClient(self._service, self._probe)

    def frozen(self, role: str) -> Any:
        """See `Clients.frozen`: at the service where it has a name there, else on this machine."""
        served = self._models.get(role)
        if served is None and role not in self._job.models:
            served = self._service.settings.base_model
        if served is not None:
            return RemoteBaseClient(self._service, served)
        from kitchen_resources.training.local.client import LocalSettings
        from kitchen_resources.training.local.opening import open_client

        job = self._job
        folder = job.models[role].folder
        assert folder is not None
        return open_client(
            folder,
            LocalSettings(seed=job.recipe.seed, pad_token_id=job.data.pad_token_id),
            attention=job.resolution.values["attention"],
            device=job.resolution.device,
        )

    @contextmanager
    def errors(self, epoch: int) -> Iterator[None]:
        """See `Clients.errors`; the client has named its own already."""
        yield

    def device_memory(self) -> int:
        """See `Clients.device_memory`; nobody tells."""
        return 0

    def close(self) -> None:
        """See `Clients.close`."""
        self._service.close()

    def longest_prompt(self) -> int | None:
        """See `Clients.longest_prompt`."""
        from kitchen_resources.training.pytorch.sizing import longest_prompt

        return longest_prompt(self._job)


def _probe(job: TrainingJob) -> list[Datum]:
    """The first rows that have something to train, as data whose loss tells one state from another."""
    import pyarrow.parquet

    from kitchen_resources.training.loops.data import completion, labelled

    rows = pyarrow.parquet.read_table(job.data.path).slice(0, _PROBE_ROWS).to_pylist()
    if rows and "labels" in rows[0]:
        return [datum for row in rows for datum in labelled(row)][:_PROBE_ROWS]
    if rows and "chosen_ids" in rows[0]:
        return [completion(row["prompt_ids"], row["chosen_ids"]) for row in rows]
    # Of a bare prompt every token is a target.
    return [completion(row["prompt_ids"][:1], row["prompt_ids"][1:]) for row in rows if len(row["prompt_ids"]) > 1]
