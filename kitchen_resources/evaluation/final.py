"""The final model against its base."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kitchen_resources.errors import EvaluationError
from kitchen_resources.evaluation.port import EvaluationResult, result_from_json
from kitchen_resources.launch import Launch

_NOTHING = EvaluationResult({}, [])


@dataclass(frozen=True)
class FinalEvaluation:
    """What was measured of a run's model and of its base.

    Attributes:
        fingerprint: The run.
        base: Of the base model.
        trained: Of the trained model.
    """

    fingerprint: str
    base: EvaluationResult
    trained: EvaluationResult

    def as_json(self) -> dict[str, Any]:
        """As stored."""
        return {"fingerprint": self.fingerprint, "base": self.base.as_json(), "trained": self.trained.as_json()}

    def samples(self) -> list[dict[str, Any]]:
        """A few rows with the answers of both."""
        before = {_asked(sample): sample for sample in self.base.samples}
        return [
            {
                "evaluation": sample["evaluation"],
                "prompt": sample["prompt"],
                "expected": sample["expected"],
                **({"rejected": sample["rejected"]} if "rejected" in sample else {}),
                "base": before.get(_asked(sample), {}).get("answer"),
                "trained": sample["answer"],
                "score": sample["score"],
            }
            for sample in self.trained.samples
        ]


def _asked(sample: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a sample is of; a held-out pair may be both compared and answered."""
    return sample["evaluation"], sample["where"], "rejected" in sample


def final_from_json(value: Mapping[str, Any]) -> FinalEvaluation:
    """A stored evaluation."""
    return FinalEvaluation(value["fingerprint"], result_from_json(value["base"]), result_from_json(value["trained"]))


def evaluate_final(launch: Launch) -> FinalEvaluation:
    """Evaluate the model that this launch made, and its base; what was measured before is not measured again.

    Raises:
        EvaluationError: There is no trained model yet.
    """
    from kitchen_resources.training.run import TrainingRun

    run = TrainingRun(launch, _Silent())
    noted = launch.read("model")
    if noted is None and run.head().last_epoch() < 1:
        raise EvaluationError(
            "there is no trained model to evaluate",
            where=f"recipe {launch.name}",
            fix=f"run the job {launch.name} first",
        )
    if launch.simulated:
        note = "not measured: the run is simulated"
        return FinalEvaluation(run.fingerprint, _NOTHING, EvaluationResult({}, [], note=note))
    if not run.evaluations.asked:
        note = "not measured: no rows are held out, and the recipe has no evaluations"
        return FinalEvaluation(run.fingerprint, _NOTHING, EvaluationResult({}, [], note=note))
    trained = run.evaluate_selected()
    return FinalEvaluation(run.fingerprint, run.evaluations.of_base(launch.resolution), trained)


class _Silent:
    """An observer that wants to know nothing."""

    def say(self, message: str) -> None:
        """See `Observer.say`."""

    def published(self, entry: object) -> None:
        """See `Observer.published`."""
