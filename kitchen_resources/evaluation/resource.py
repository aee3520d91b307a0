"""The `evaluator` resource: what measures models."""

from typing import Literal, Union

import dagster as dg
from pydantic import Field

from kitchen_resources.evaluation.local import LocalEvaluator, NoopEvaluator
from kitchen_resources.evaluation.port import Evaluator


class Local(dg.Config):
    """transformers on this machine."""

    kind: Literal["local"] = "local"

    def adapter(self) -> Evaluator:
        """The evaluator."""
        return LocalEvaluator()


class Noop(dg.Config):
    """Measures nothing, and says so."""

    kind: Literal["noop"] = "noop"

    def adapter(self) -> Evaluator:
        """The evaluator."""
        return NoopEvaluator()


class EvaluatorResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """What measures models."""

    evaluator: Union[Local, Noop] = Field(
        default_factory=Local, discriminator="kind", description="What measures models."
    )

    def adapter(self) -> Evaluator:
        """The evaluator."""
        return self.evaluator.adapter()
