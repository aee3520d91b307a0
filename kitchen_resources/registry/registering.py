"""From a finished launch to a registered version."""

from typing import Any

from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.errors import RegistryError
from kitchen_resources.evaluation.final import FinalEvaluation, final_from_json
from kitchen_resources.launch import Launch
from kitchen_resources.registry.port import CANDIDATE, ModelRegistry, ModelVersion, Registration
from kitchen_resources.training.model_files import files_from_json


def register_model(launch: Launch) -> ModelVersion:
    """Register the model that this launch made, and point `candidate` to it unless it is simulated.

    Registering the same model again finds the same version.

    Raises:
        RegistryError: The launch made no model.
    """
    model, evaluated = launch.read("model"), launch.read("evaluation")
    where = f"recipe {launch.name}"
    missing = [stage for stage, noted in (("model", model), ("evaluation", evaluated)) if noted is None]
    if missing:
        with_it = " and ".join(f"{launch.name}/{stage}" for stage in missing)
        raise RegistryError(
            f"this launch has no {' and no '.join(missing)}",
            where=where,
            fix=f"materialize {with_it} with it, or run the job {launch.name}; what is in the store isn't made again",
        )
    final = final_from_json(evaluated)
    if final.fingerprint != model["fingerprint"]:
        raise RegistryError("model and evaluation are of two runs", where=where, fix=f"run the job {launch.name}")
    entry = launch.checkpoints.head(model["fingerprint"]).at(model["step"])
    if entry is None:
        raise RegistryError(
            "the checkpoint of the model is gone", where=where, fix=f"run the job {launch.name} again"
        )
    version = launch.ports.registry.register(_registration(launch, model, final, entry))
    if not version.simulated:
        _make_candidate(launch.ports.registry, version)
    return version


def _make_candidate(registry: ModelRegistry, version: ModelVersion) -> None:
    """Point `candidate` to a version, wherever it points now: of two launches at once, the later one has it."""
    while True:
        at = registry.alias(version.name, CANDIDATE)
        try:
            registry.move_alias(version.name, CANDIDATE, version.version, expected=at)
            return
        except RegistryError:
            if registry.alias(version.name, CANDIDATE) == at:
                raise


def _registration(launch: Launch, model: Any, final: FinalEvaluation, entry: CheckpointEntry) -> Registration:
    manifest = launch.checkpoints.manifest(entry)
    prepared = launch.prepared
    return Registration(
        name=launch.name,
        fingerprint=model["fingerprint"],
        step=model["step"],
        epoch=model["epoch"],
        state_digest=entry.state_digest,
        manifest=entry.manifest,
        model=files_from_json(model["files"]),
        base=manifest.base,
        dataset={
            "digest": prepared.trained.digest,
            "held_out_digest": prepared.held_out.digest if prepared.held_out else None,
            "key": prepared.key,
            "raw": dict(prepared.raw),
        },
        metrics=final.trained.as_json()["measures"],
        base_metrics=final.base.as_json()["measures"],
        cost=_cost(launch, model["fingerprint"], entry.step),
        identity=manifest.identity,
        environment=manifest.environment,
        launch=launch.run_id,
        simulated=manifest.simulated,
    )


def _cost(launch: Launch, fingerprint: str, step: int) -> dict[str, float]:
    """What the run's training up to a step took, over all its epochs: steps, learned tokens, seconds in steps,
    US dollars where a service says what it charges.

    Where a run continues another one, what that one took is not counted.
    """
    store = launch.checkpoints
    entries = store.head(fingerprint).entries()
    ends = [entry for entry in entries if entry.step <= step and (entry.epoch_complete or entry.step == step)]
    manifests = [store.manifest(entry) for entry in ends]
    charged = [manifest.metrics["cost_usd"] for manifest in manifests if "cost_usd" in manifest.metrics]
    return {
        **({"usd": sum(charged)} if charged else {}),
        "optimizer_steps": float(sum(manifest.steps_into_epoch for manifest in manifests)),
        "tokens": sum(manifest.metrics["tokens"] for manifest in manifests),
        "seconds": sum(manifest.metrics["seconds"] for manifest in manifests),
    }
