"""The `trainer` resource: which backend trains, chosen at launch by one word of run config."""

from pathlib import Path
from typing import Literal, Optional, Union

import dagster as dg
from pydantic import Field, PrivateAttr

from kitchen_resources.errors import ConfigError
from kitchen_resources.training.fireworks.config import FireworksBackend, FireworksJobsBackend
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.modal.config import ModalBackend
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.port import Trainer
from kitchen_resources.training.ray.config import RayBackend
from kitchen_resources.training.tinker.config import TinkerBackend


class TrlBackend(dg.Config):
    """TRL, in this process or in several of its own on this machine."""

    kind: Literal["trl"] = "trl"
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to train; auto is a GPU where torch sees one."
    )
    threads: Optional[int] = Field(
        default=None,
        description="CPU threads; null is one for models under 10 million weights, else the physical cores. "
        "A run keeps the number it was started with.",
    )

    processes: int = Field(
        default=1,
        description="Processes that train together, started by torchrun; on GPUs, one each. Supervised and preference "
        "only; the steps and their rows are the same, the bits those of this number.",
    )

    fsdp: Optional[str] = Field(
        default=None,
        description="File by which the processes share the weights too: transformers' fsdp_config (JSON), or a config "
        "of accelerate's (YAML). Null for a copy of them each.",
    )

    def adapter(self) -> Trainer:
        """The backend."""
        from kitchen_resources.training.trl.backend import TrlTrainer
        from kitchen_resources.training.trl.sharding import read_fsdp_config

        for name, value in (("threads", self.threads), ("processes", self.processes)):
            if value is not None and value < 1:
                raise ConfigError(
                    f"must be at least 1, got {value}", where=f"trainer.backend.trl.{name}", fix=f"{name}: 1"
                )
        if self.fsdp and self.processes == 1:
            raise ConfigError(
                "there is one process to share with", where="trainer.backend.trl.fsdp", fix="processes: 2"
            )
        settings = read_fsdp_config(Path(self.fsdp)) if self.fsdp else None
        return TrlTrainer(device=self.device, threads=self.threads, processes=self.processes, fsdp=settings)


class LocalBackend(dg.Config):
    """The kitchen's own loops by primitives (forward-backward, optimiser step, sampling), in this process."""

    kind: Literal["local"] = "local"
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to train; auto is a GPU where torch sees one."
    )
    threads: Optional[int] = Field(default=None, description="CPU threads, as with trl.")

    def adapter(self) -> Trainer:
        """The backend."""
        from kitchen_resources.training.local.backend import LocalTrainer

        if self.threads is not None and self.threads < 1:
            raise ConfigError(
                f"must be at least 1, got {self.threads}", where="trainer.backend.local.threads", fix="threads: 1"
            )
        return LocalTrainer(device=self.device, threads=self.threads)


class NoopBackend(dg.Config):
    """Nothing is learned: weightless, instant, deterministic; to try out everything around training."""

    kind: Literal["noop"] = "noop"

    def adapter(self) -> Trainer:
        """The backend."""
        return NoopTrainer()


class TrainerResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The training backend.

    At launch: `resources: {trainer: {config: {backend: {noop: {}}}}}`.
    """

    backend: Union[
        TrlBackend,
        LocalBackend,
        TinkerBackend,
        FireworksBackend,
        FireworksJobsBackend,
        RayBackend,
        ModalBackend,
        NoopBackend,
    ] = Field(default_factory=TrlBackend, discriminator="kind", description="Which backend trains.")

    _live: Optional[LiveTrainer] = PrivateAttr(default=None)

    def live(self) -> LiveTrainer:
        """The backend with its session, opened when it is first used."""
        if self._live is None:
            self._live = LiveTrainer(self.backend.adapter(), keeps_lease=True)
        return self._live

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Close the session and give the lease back, also after a failure."""
        if self._live is not None:
            live, self._live = self._live, None
            live.end()
