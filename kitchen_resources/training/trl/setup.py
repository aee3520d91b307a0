"""What a session holds for its method, beside what all methods share."""

from typing import Any

from kitchen_resources.training.port import TrainingJob
from kitchen_resources.training.pytorch.models import load_causal_lm


class Setup:
    """What a trainer of the method is built with, once an epoch, and what lives as long as the session.

    Args:
        job: What is trained.
        rows: The prepared rows, as a `datasets.Dataset` with the method's columns.

    Attributes:
        rows: What the trainer reads.
    """

    def __init__(self, job: TrainingJob, rows: Any) -> None:
        self.job = job
        self.rows = rows

    def prepare(self, model: Any) -> Any:
        """The model that is to be trained, as the trainer gets it."""
        return model

    def inputs(self) -> dict[str, Any]:
        """Further arguments of the trainer's constructor."""
        return {}

    def attach(self, trainer: Any, epoch: int) -> None:
        """Tie a newly built trainer to this session and epoch."""

    def close(self) -> None:
        """Free what is held; may be called twice."""
        self.rows = None

    def for_sampling(self, model: Any) -> Any:
        """A model that samples as the recipe says and ends its turns where the template does.

        TRL takes from the model's own generation settings where to stop, and transformers whatever else they say:
        suppressed tokens, n-grams that may not come twice.
        """
        from transformers import GenerationConfig

        stops = list(self.job.data.stop_token_ids)
        model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=self.job.data.pad_token_id)
        return model

    def companion(self, role: str, dtype: str) -> Any:
        """A model that training only reads: the one of that role, else the base; frozen, on the training device."""
        base = self.job.models.get(role, self.job.base)
        assert base.folder is not None
        model = load_causal_lm(base.folder, dtype=dtype, attention=self.job.resolution.values["attention"])
        return model.requires_grad_(False).to(self.job.resolution.device).eval()
