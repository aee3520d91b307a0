"""The `trainer` resource: which backend trains, chosen at launch by one word of run config."""

from typing import Literal, Optional, Union

import dagster as dg
from pydantic import Field, PrivateAttr

from kitchen_resources.errors import ConfigError
from kitchen_resources.training.live import LiveTrainer
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.port import Trainer


class TrlBackend(dg.Config):
    """TRL in this process."""

    kind: Literal["trl"] = "trl"
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to train; auto is a GPU where torch sees one."
    )
    threads: Optional[int] = Field(
        default=None,
        description="CPU threads; null is one for models under 10 million weights, else the physical cores. "
        "A run keeps the number it was started with.",
    )

    def adapter(self) -> Trainer:
        """The backend."""
        from kitchen_resources.training.trl.backend import TrlTrainer

        if self.threads is not None and self.threads < 1:
            raise ConfigError(
                f"must be at least 1, got {self.threads}", where="trainer.backend.trl.threads", fix="threads: 1"
            )
        return TrlTrainer(device=self.device, threads=self.threads)


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

    backend: Union[TrlBackend, LocalBackend, NoopBackend] = Field(
        default_factory=TrlBackend, discriminator="kind", description="Which backend trains."
    )

    _live: Optional[LiveTrainer] = PrivateAttr(default=None)

    def live(self) -> LiveTrainer:
        """The backend with its session, opened when it is first used."""
        if self._live is None:
            self._live = LiveTrainer(self.backend.adapter())
        return self._live

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Close the session, also after a failure."""
        if self._live is not None:
            self._live.discard()
            self._live = None
