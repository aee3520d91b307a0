"""Run config of the backends at Fireworks."""

from typing import Dict, Literal, Optional

import dagster as dg
from pydantic import Field

from kitchen_resources.endpoints import check_endpoint
from kitchen_resources.training.port import Trainer
from kitchen_resources.training.remote.config import check_service

API = "https://api.fireworks.ai"
"""The default endpoint of Fireworks' SDK."""


class FireworksBackend(dg.Config):
    """Fireworks' Training SDK, by the kitchen's own loops. Its key is read from FIREWORKS_API_KEY alone."""

    kind: Literal["fireworks"] = "fireworks"
    base_model: str = Field(
        description="The recipe's base model, by its whole name there: accounts/fireworks/models/…"
    )
    base_url: Optional[str] = Field(default=None, description="Where the trainers are; null for Fireworks' own.")
    request_deadline_s: float = Field(default=600.0, description="How long to wait for one answer, in seconds.")
    models: Dict[str, str] = Field(
        default={},
        description="The service's names of teacher and reference, by role; without one they run on this machine.",
    )

    def adapter(self) -> Trainer:
        """The backend."""
        from kitchen_resources.training.fireworks.backend import FireworksTrainer

        check_service("fireworks", {"request_deadline_s": self.request_deadline_s}, self.models)
        where = "trainer.backend.fireworks.base_url"
        return FireworksTrainer(
            self.base_model,
            # The key is sent there.
            base_url=check_endpoint(self.base_url, API, where=where) if self.base_url else None,
            deadline_s=self.request_deadline_s,
            models=self.models,
        )


class FireworksJobsBackend(dg.Config):
    """A managed job at Fireworks that trains the whole run. Its key is read from FIREWORKS_API_KEY alone."""

    kind: Literal["fireworks_jobs"] = "fireworks_jobs"
    base_model: str = Field(
        description="The recipe's base model, by its whole name there: accounts/fireworks/models/…"
    )
    account: Optional[str] = Field(
        default=None, description="Id of the account; null for the one that the key belongs to."
    )
    base_url: Optional[str] = Field(default=None, description="Where the account is; null for Fireworks' own.")
    poll_s: float = Field(default=30.0, description="Between two looks at the job, in seconds.")
    start_deadline_s: float = Field(default=21600.0, description="How long a job may wait to begin, in seconds.")
    silence_s: float = Field(
        default=3600.0, description="How long the service may be away before the launch gives up; the job goes on."
    )

    def adapter(self) -> Trainer:
        """The backend."""
        from kitchen_resources.training.fireworks.managed import FireworksJobsTrainer
        from kitchen_resources.training.hosted.session import Patience

        lasting = {"poll_s": self.poll_s, "start_deadline_s": self.start_deadline_s, "silence_s": self.silence_s}
        check_service("fireworks_jobs", lasting, ())
        where = "trainer.backend.fireworks_jobs.base_url"
        return FireworksJobsTrainer(
            self.base_model,
            # The key is sent there.
            base_url=check_endpoint(self.base_url, API, where=where) if self.base_url else None,
            account=self.account,
            patience=Patience(
                look=min(2.0, self.poll_s), ask=self.poll_s, start=self.start_deadline_s, silence=self.silence_s
            ),
        )
