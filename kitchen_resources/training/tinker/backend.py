"""The `tinker` backend as a `Trainer`."""

from typing import Any

from kitchen_resources.training.remote.backend import RemoteTrainer, ServiceKind
from kitchen_resources.training.tinker.service import TinkerService

TINKER = ServiceKind("tinker", TinkerService, sdk="tinker")


class TinkerTrainer(RemoteTrainer):
    """Trains at a service that speaks the Tinker API; see `RemoteTrainer` for its arguments."""

    def __init__(self, base_model: str, **how: Any) -> None:
        super().__init__(TINKER, base_model, **how)
