"""Stages of the registry: the version, the gate, and what is in production."""

import dagster as dg

from kitchen_assets.composition import CheckOutcome, Gate, StageResult, stage
from kitchen_assets.context import StageContext
from kitchen_resources.errors import RegistryError
from kitchen_resources.registry.port import CANDIDATE, PRODUCTION, ModelVersion
from kitchen_resources.registry.promotion import Verdict, judge
from kitchen_resources.registry.registering import register_model


@stage(group="registry", kinds=("huggingface",), after=("model", "evaluation"))
def registered_model(kitchen: StageContext) -> StageResult:
    """The model as an immutable version with its lineage and cost, under the alias `candidate`."""
    version = register_model(kitchen.launch)
    kitchen.launch.note_registered(version.version)
    kitchen.launch.ports.telemetry.emit(
        "model.registered", {"count": 1}, {"recipe": kitchen.name, "name": version.name, "version": version.version}
    )
    return StageResult(
        data_version=f"{version.version}-{version.model.digest}",
        metadata={
            "version": version.version,
            "alias": "none: it is simulated" if version.simulated else CANDIDATE,
            "fingerprint": version.fingerprint,
            "epoch": version.epoch,
            "step": version.step,
            "model_digest": version.model.digest,
            "dataset_digest": version.dataset["digest"],
            "base": f"{version.base['reference']} ({version.base['digest'][:12]})",
            "metrics": dg.MetadataValue.json(dict(version.metrics)),
            "base_metrics": dg.MetadataValue.json(dict(version.base_metrics)),
            "cost": dg.MetadataValue.json(dict(version.cost)),
            "export": dg.MetadataValue.text(
                f'python -c "import kitchen_assets as kitchen; '
                f"kitchen.export('{version.name}@{version.version}', 'model')\""
            ),
        },
    )


def _decide(kitchen: StageContext) -> CheckOutcome:
    verdict = _verdict(kitchen)
    return CheckOutcome(
        "promotion_gate", verdict.passed, verdict.reason, {"numbers": dg.MetadataValue.json(dict(verdict.numbers))}
    )


promotion_gate = Gate(
    name="promotion_gate",
    asset="registered_model",
    decide=_decide,
    description="May the candidate go to production? By the recipe's `promotion` rule, on recorded evaluations.",
)


@stage(group="registry", kinds=("huggingface",), after=("registered_model",), optional=True)
def production(kitchen: StageContext) -> StageResult | None:
    """The version in production. Only the job `<recipe>_promote` moves it, behind `promotion_gate`.

    Materialize leaves it alone: training anew is one decision, and going to production another.
    """
    job = f"{kitchen.name}_promote"
    if kitchen.job_name != job:
        kitchen.warn(f"production is left alone: only the job {job} moves it")
        return None
    registry = kitchen.launch.ports.registry
    candidate = _candidate(kitchen)
    before = registry.alias(kitchen.name, PRODUCTION)
    verdict = _verdict(kitchen)
    if not verdict.passed:
        raise RegistryError(verdict.reason, where=f"model {kitchen.name}", fix="see the check promotion_gate")
    registry.move_alias(kitchen.name, PRODUCTION, candidate.version, expected=before)
    return StageResult(
        data_version=f"{candidate.version}-{candidate.model.digest}",
        metadata={"version": candidate.version, "before": before, "reason": verdict.reason},
    )


def _candidate(kitchen: StageContext) -> ModelVersion:
    registry = kitchen.launch.ports.registry
    number = registry.alias(kitchen.name, CANDIDATE)
    if number is None:
        raise RegistryError(
            "has no candidate", where=f"model {kitchen.name}", fix=f"run the job {kitchen.name} first"
        )
    return registry.get(kitchen.name, number)


def _verdict(kitchen: StageContext) -> Verdict:
    registry = kitchen.launch.ports.registry
    number = registry.alias(kitchen.name, PRODUCTION)
    in_production = registry.get(kitchen.name, number) if number is not None else None
    return judge(kitchen.recipe.promotion, _candidate(kitchen), in_production)
