"""Run config of the `modal` backend."""

from typing import Literal, Optional

import dagster as dg
from pydantic import Field

from kitchen_resources.errors import ConfigError
from kitchen_resources.training.port import Trainer


class ModalBackend(dg.Config):
    """TRL in a function that you have deployed at Modal (examples/modal), an epoch a call; the store is a bucket."""

    kind: Literal["modal"] = "modal"
    app: str = Field(default="crucible-kitchen", description="Name of the deployed app.")
    function: str = Field(default="carry_out", description="Name of its function.")
    environment: Optional[str] = Field(default=None, description="Modal environment; null for the profile's own.")
    device: Literal["cuda", "cpu"] = Field(
        default="cuda", description="What the function has. A GPU is taken to have bf16."
    )
    threads: Optional[int] = Field(
        default=None,
        description="CPU threads there; null is one for models under 10 million weights, else as many as "
        "this machine has cores.",
    )
    start_deadline_s: float = Field(default=3600.0, description="How long a call may wait for a machine, in seconds.")

    def adapter(self) -> Trainer:
        """The backend."""
        from kitchen_resources.training.modal.backend import ModalTrainer

        for name, value in (("threads", self.threads), ("start_deadline_s", self.start_deadline_s)):
            if value is not None and not value > 0:
                raise ConfigError(
                    f"must be above 0, got {value}", where=f"trainer.backend.modal.{name}", fix=f"{name}: 1"
                )
        return ModalTrainer(
            self.app,
            self.function,
            environment=self.environment,
            device=self.device,
            threads=self.threads,
            start_deadline_s=self.start_deadline_s,
        )
