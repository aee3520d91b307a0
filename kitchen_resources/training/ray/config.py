"""Run config of the `ray` backend."""

from typing import Literal, Optional

import dagster as dg
from pydantic import Field

from kitchen_resources.endpoints import check_endpoint
from kitchen_resources.errors import ConfigError
from kitchen_resources.training.port import Trainer


class RayBackend(dg.Config):
    """TRL on a Ray cluster, as a job of it. Its nodes see this machine's disk, and have this package installed."""

    kind: Literal["ray"] = "ray"
    address: str = Field(description="The cluster's dashboard, such as http://127.0.0.1:8265.")
    processes: int = Field(default=1, description="Workers that train together, anywhere in the cluster.")
    cpus: float = Field(default=1.0, description="CPUs of each worker.")
    gpus: float = Field(default=0.0, description="GPUs of each worker.")
    threads: Optional[int] = Field(default=None, description="CPU threads of each worker, as with trl.")

    def adapter(self) -> Trainer:
        """The backend."""
        from kitchen_resources.training.ray.backend import RayTrainer

        for name, value, least in (("processes", self.processes, 1), ("cpus", self.cpus, 0), ("gpus", self.gpus, 0)):
            if value < least:
                raise ConfigError(
                    f"must be at least {least}, got {value}", where=f"trainer.backend.ray.{name}", fix=f"{name}: 1"
                )
        # The token is sent there.
        address = check_endpoint(self.address, "http://127.0.0.1:8265", where="trainer.backend.ray.address")
        return RayTrainer(address, processes=self.processes, cpus=self.cpus, gpus=self.gpus, threads=self.threads)
