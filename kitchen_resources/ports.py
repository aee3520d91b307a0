"""The ports of one launch, bundled."""

from dataclasses import dataclass

from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.datasets.port import DatasetStore
from kitchen_resources.evaluation.port import Evaluator
from kitchen_resources.registry.port import ModelRegistry
from kitchen_resources.telemetry.port import Telemetry
from kitchen_resources.training.live import LiveTrainer


@dataclass(frozen=True)
class Ports:
    """See the module; one adapter each."""

    trainer: LiveTrainer
    blobs: BlobStore
    datasets: DatasetStore
    evaluator: Evaluator
    registry: ModelRegistry
    telemetry: Telemetry
