"""Run config of the `tinker` backend."""

from typing import Dict, Literal, Optional

import dagster as dg
from pydantic import Field

from kitchen_resources.endpoints import check_endpoint
from kitchen_resources.training.port import Trainer
from kitchen_resources.training.remote.config import check_service

TINKER = "https://tinker.thinkingmachines.dev/services/tinker-prod"
"""The default endpoint of Tinker's SDK."""


class TinkerBackend(dg.Config):
    """A service that speaks the Tinker API, by the kitchen's own loops. Its key is read from TINKER_API_KEY alone."""

    kind: Literal["tinker"] = "tinker"
    base_model: str = Field(description="The recipe's base model, by the service's name of it.")
    base_url: Optional[str] = Field(default=None, description="Where the service is; null for Tinker's own.")
    request_deadline_s: float = Field(default=600.0, description="How long to wait for one answer, in seconds.")
    keep_days: Optional[float] = Field(
        default=30.0, description="Days that the service keeps what a run is resumed from; null for no limit."
    )
    models: Dict[str, str] = Field(
        default={},
        description="The service's names of teacher and reference, by role; without one they run on this machine.",
    )

    def adapter(self) -> Trainer:
        """The backend."""
        from kitchen_resources.training.tinker.backend import TinkerTrainer

        lasting = {"request_deadline_s": self.request_deadline_s, "keep_days": self.keep_days}
        check_service("tinker", lasting, self.models)
        where = "trainer.backend.tinker.base_url"
        return TinkerTrainer(
            self.base_model,
            # The key is sent there.
            base_url=check_endpoint(self.base_url, TINKER, where=where) if self.base_url else None,
            deadline_s=self.request_deadline_s,
            keep_days=self.keep_days,
            models=self.models,
        )
