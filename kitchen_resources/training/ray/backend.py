"""The `ray` backend as a `Trainer`: TRL's trainers as jobs of a Ray cluster."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import Problem
from kitchen_resources.training.port import BaseModel, Capabilities, Resolution, Session, TrainingJob
from kitchen_resources.training.ray.jobs import RayJobs, require_packages, require_room
from kitchen_resources.training.trl.backend import TrlTrainer, require_even_batches


class RayTrainer:
    """Trains on a Ray cluster, by the workers of `trl`.

    Args:
        address: The cluster's dashboard.
        processes: Workers that train together.
        cpus: CPUs of each.
        gpus: GPUs of each.
        threads: CPU threads of each; None for as many as suit the model.
    """

    def __init__(
        self, address: str, *, processes: int = 1, cpus: float = 1, gpus: float = 0, threads: int | None = None
    ) -> None:
        self._address = address
        self._processes = processes
        self._cpus = cpus
        self._gpus = gpus
        device = "cuda" if gpus else "cpu"
        self._worker = TrlTrainer(
            device=device, threads=threads, processes=processes, elsewhere="Ray" if gpus else ""
        )

    def capabilities(self) -> Capabilities:
        """See `Trainer.capabilities`."""
        # Environments' workers and a teacher's answers are this machine's, and not the cluster's.
        can = self._worker.capabilities()
        shared = frozenset({"supervised", "preference"})
        return replace(can, backend="ray", methods=shared, step_checkpoints=shared)

    def check(self, recipe: Recipe) -> list[Problem]:
        """See `Trainer.check`."""
        return self._worker.check(recipe)

    def resolve(
        self, recipe: Recipe, base: BaseModel, models: Mapping[str, BaseModel] = MappingProxyType({})
    ) -> Resolution:
        """See `Trainer.resolve`. Asks the cluster whether it is there and large enough.

        Raises:
            BackendError: It can't be reached.
            CapabilityError: It has too little, or a package is missing.
        """
        require_packages()
        require_room(self._address, processes=self._processes, cpus=self._cpus, gpus=self._gpus)
        return self._worker.resolve(recipe, base, models)

    def open(self, job: TrainingJob) -> Session:
        """See `Trainer.open`."""
        from kitchen_resources.training.worker.session import WorkersSession

        if self._processes > 1:
            require_even_batches(job, self._processes)
        jobs = RayJobs(self._address, processes=self._processes, cpus=self._cpus, gpus=self._gpus)
        inside = self.capabilities().is_exact_inside(job.recipe)
        return WorkersSession(job, jobs, processes=self._processes, exact_inside=inside)
